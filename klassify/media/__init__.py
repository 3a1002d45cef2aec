"""The one place that decodes."""
