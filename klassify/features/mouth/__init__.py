"""The eight mouth features."""
