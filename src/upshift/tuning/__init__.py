"""Floor 2: how fast, and the evidence for it."""
