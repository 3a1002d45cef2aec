"""Commands on a cluster: an array of shards under Slurm, or one training job over nodes.

The unit is the shard i/n. Its files exist only when they are complete, so a shard may run twice, be
killed, or be made by hand. A command adds `options.add_launcher_arguments(parser)` and begins its
run with `submit.submitted(launch_from(args), prepare)`; `prepare` returns the records of what is to
be submitted. Nothing here knows the commands.
"""
