"""Data lists: one TSV per split."""
