"""Draw the picture of the README from today's code: python docs/images/make.py

answer.json records what the picture was made from; tests/docs/test_docs.py compares.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DETECTOR = ROOT / "klassify/detectors/demo"
INPUTS = (
    ROOT / "klassify/prediction/picture.py",
    DETECTOR / "klassify/manifest.json",
    DETECTOR / "clip.mp4",
)


def inputs() -> dict[str, str]:
    """{file: SHA-256} of what the picture depends on."""
    return {
        str(path.relative_to(ROOT)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in INPUTS
    }


def main() -> None:
    """Draw the answer about the package's own clip, and record the inputs."""
    from klassify import load_detector
    from klassify.prediction import picture

    clip = DETECTOR / "clip.mp4"
    answer = load_detector(DETECTOR / "klassify").predict(clip, device="cpu")
    picture.draw(clip, answer, HERE / "answer.png")
    (HERE / "answer.json").write_text(json.dumps(inputs(), indent=2) + "\n")


if __name__ == "__main__":
    main()
