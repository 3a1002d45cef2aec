"""Make the detector and the example clip that are part of the package again.

    make demo size=large recipe=klassify seed=1
    .venv/bin/python recipes/package_detector.py exp/demo-large/klassify

The clip is of a corpus with another seed, so that no system has learned from it. Commit what
changes below klassify/detectors/.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from klassify.corpus.clips import make_versions
from klassify.corpus.plan import DIFFICULTIES, SIZES, originals
from klassify.files import write_json
from klassify.prediction.publish import publish

FOLDER = Path(__file__).resolve().parents[1] / "klassify/detectors/demo"
SEED, VERSION = 11, "both_modified"


def make_clip(folder: Path) -> dict:
    """Write clip.mp4, and clip.json with its true fake segments in seconds; returns the latter."""
    original = next(one for one in originals(SIZES["small"], SEED) if one.split == "testA")
    with tempfile.TemporaryDirectory() as made:
        entries = make_versions(original, Path(made), SEED, DIFFICULTIES["normal"])
        entry = next(one for one in entries if one["modify_type"] == VERSION)
        shutil.copyfile(Path(made, "testA", entry["file"]), folder / "clip.mp4")
    told = ("modify_type", "fake_segments", "audio_fake_segments", "visual_fake_segments")
    truth = {"corpus_seed": SEED} | {name: entry[name] for name in told if name in entry}
    write_json(folder / "clip.json", truth)
    return truth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("detector", type=Path, help="folder of the trained recipe")
    detector = parser.parse_args().detector
    shutil.rmtree(FOLDER / "klassify", ignore_errors=True)
    publish(detector, FOLDER / "klassify")
    print(make_clip(FOLDER))


if __name__ == "__main__":
    main()
