"""Metrics as pure numbers."""
