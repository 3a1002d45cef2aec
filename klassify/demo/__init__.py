"""The demo: the recipes' commands on the generated corpus, run by a few processes."""
