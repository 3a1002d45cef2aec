"""The training loop of `klassify train` and its parts."""
