"""How many shards the tests make: one of the four nodes for CPU work stays free."""

SHARDS = 3
