"""Floor 2: what is to be learned, and how a recipe is found."""
