"""What a search for an artifact does where nothing else is said. Imports nothing: `upshift --help` shows it."""

MAX_DROP = 0.005
"""Largest loss of test accuracy, as a share: half a percentage point."""
