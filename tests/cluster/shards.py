"""How many shards the tests make: of four nodes one is free for what is started again."""

SHARDS = 3
