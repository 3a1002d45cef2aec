"""Commands on a cluster: an array of shards under Slurm, or one training job over nodes.

The unit is the shard i/n, whose files exist only when they are whole, so that any shard may run
twice, die or be done by hand. A command offers `add_launcher_arguments(parser)` and begins its run
with `submitted(args, prepare)`, where `prepare` says which work (klassify.cluster.work) its
arguments mean. Nothing here knows the commands.
"""

from klassify.cluster.options import Options, add_launcher_arguments
from klassify.cluster.record import Record
from klassify.cluster.submit import record_of, submitted

__all__ = ["Options", "Record", "add_launcher_arguments", "record_of", "submitted"]
