"""The generated corpus: talking heads, painted and voiced, with fakes at known places."""
