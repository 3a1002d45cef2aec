"""Raw videos through a detector."""
