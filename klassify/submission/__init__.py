"""A submission: answers, manifest, what the checker looks at, the ledger's file."""
