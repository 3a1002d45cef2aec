"""From a model and a list to scores: windows, features that they share, chunks and shards, clip
scores.
"""
