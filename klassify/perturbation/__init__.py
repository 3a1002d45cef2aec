"""Clips perturbed by families of operations at five levels each, with their labels."""
