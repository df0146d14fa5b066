"""Floor 0: what every room stands on. Standard library, numpy and torch only."""
