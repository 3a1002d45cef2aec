"""Commands on a cluster: an array of shards under Slurm, or one training job over nodes.

The unit is the shard i/n, whose files exist only when they are whole, so that any shard may run twice, die or be done
by hand. A command offers `add_launcher_arguments(parser)` and begins its run with `if submitted(args): return 0`.
"""

from klassify.launch.options import add_launcher_arguments
from klassify.launch.submit import submitted

__all__ = ["add_launcher_arguments", "submitted"]
