"""The metrics of both tasks, and the tables and figures of `klassify evaluate`."""
