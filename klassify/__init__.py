"""Detect and localise partially faked talking-head videos."""

__version__ = "0.1.0"
