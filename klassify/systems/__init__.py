"""Whatever yields a score."""
