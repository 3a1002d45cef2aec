"""How many shards the tests make: of the four nodes for CPU work one is free for what is started
again.
"""

SHARDS = 3
