"""Frame scores -> fake segments."""
