"""Floor 2: from a trained model to the fastest verified artifact."""
