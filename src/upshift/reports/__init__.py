"""Floor 2: from records to pages."""
