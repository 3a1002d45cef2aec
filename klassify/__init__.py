"""Detect and localise partially faked talking-head videos."""
