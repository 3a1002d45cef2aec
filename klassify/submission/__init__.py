"""The parts of a submission: its answers, its manifest, what the checker looks at, the ledger's
file.
"""
