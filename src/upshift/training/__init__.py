"""Floor 1: from a model and loaders to a trained model."""
