"""Score files, and what makes them."""
