"""Commands on a cluster: an array of shards under Slurm, or one training job over nodes.

The unit is the shard i/n. Its files exist only when they are complete, so a shard may run twice, be
killed, or be made by hand. A command adds `add_launcher_arguments(parser)` and begins its run with
`submitted(launch_from(args), prepare)`; `prepare` returns the records (klassify.cluster.record) of
what is to be submitted. Nothing here knows the commands.
"""

from klassify.cluster.options import Options, add_launcher_arguments, launch_from
from klassify.cluster.record import Record
from klassify.cluster.submit import record_of, submitted

__all__ = ["Options", "Record", "add_launcher_arguments", "launch_from", "record_of", "submitted"]
