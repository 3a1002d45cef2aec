"""Time as numbers: seconds, frames, windows, many clips in one array."""
