"""Genuine talking-head clips from public repositories, for `klassify corpus --from`.

    git clone https://github.com/rizkiarm/LipNet clones/rizkiarm+LipNet   # and the others
    python benchmarks/real_clips.py clones media/clips
    klassify corpus --from media/clips --people benchmarks/real_clips.tsv --out media/real --jobs 2

real_clips.tsv names the origin of each clip: repository, commit and path. This script takes the
first seconds of each out of the clones, without encoding them anew, under the names of the table.
The licence is that of the repository; the people in the clips have rights of their own.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import subprocess
from pathlib import Path

import av

TABLE = Path(__file__).with_suffix(".tsv")
ORIGIN = re.compile(r"https://github\.com/([^/]+)/([^/]+)/blob/([0-9a-f]+)/(.+)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clones", type=Path, help="folder with OWNER+NAME of each repository")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=4.2, help="of each clip (default 4.2)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with open(TABLE, encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    for row in rows:
        owner, name, commit, path = ORIGIN.fullmatch(row["origin"]).groups()
        clone = args.clones / f"{owner}+{name}"
        shown = subprocess.run(
            ["git", "-C", clone, "show", f"{commit}:{path}"], capture_output=True
        )
        if shown.returncode:
            raise SystemExit(f"{clone} does not have {path} of {commit}; clone {row['origin']}")
        _write_start(shown.stdout, args.out / row["file"], args.seconds)
    print(f"{len(rows)} clips of {len({row['person'] for row in rows})} people: {args.out}")


def _write_start(media: bytes, path: Path, seconds: float) -> None:
    """The packets of the first seconds, unchanged."""
    with av.open(io.BytesIO(media)) as source, av.open(str(path), "w") as target:
        kept = [*source.streams.video[:1], *source.streams.audio[:1]]
        streams = {stream.index: target.add_stream_from_template(stream) for stream in kept}
        for packet in source.demux(*kept):
            if packet.dts is None or packet.dts * packet.time_base >= seconds:
                continue
            packet.stream = streams[packet.stream.index]
            target.mux(packet)


if __name__ == "__main__":
    main()
