"""Floor 1: data, from a source to batches on the device."""
