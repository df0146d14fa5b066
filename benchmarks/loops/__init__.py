"""The training loops that are compared: each trains the same job from the same weights."""
