"""Floor 1: the models of the built-in recipes."""
