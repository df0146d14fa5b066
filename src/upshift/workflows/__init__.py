"""Floor 3: one user verb a file."""
