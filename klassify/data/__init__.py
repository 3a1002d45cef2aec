"""Clips -> examples for training, windows for scoring."""
