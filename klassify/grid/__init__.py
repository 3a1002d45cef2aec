"""Time as numbers: seconds, 40 ms frames, windows, many clips in one array."""
