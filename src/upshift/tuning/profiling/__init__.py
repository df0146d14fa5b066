"""Where the time of a training goes, and what to do about it."""
