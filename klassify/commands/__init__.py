"""The commands: arguments, one call, what to print."""
