"""Data sets in small, laid out as they are released: names, folders and fields, empty media."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from metadata import family

ONE = [[1.0, 1.4]]


def touch(folder: Path, files: Iterable[str]) -> None:
    """Empty files."""
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()


def av_deepfake1m_plus_plus(root: Path) -> None:
    """Doubled folders as the archives unpack, a JSON file beside each video, names of tests."""
    for number, split in enumerate(("train", "val")):
        entries = [
            entry
            for i in range(5)
            for entry in family(f"vox_celeb_2/id{number:05}/x{i}/00001", split=split)
        ]
        entries += family(f"silent_videos/subject_{number}/0", split=split)
        folder = root / split / split
        touch(folder, (entry["file"] for entry in entries))
        for entry in entries:
            (folder / entry["file"]).with_suffix(".json").write_text(json.dumps(entry))
        (root / f"{split}_metadata.json").write_text(json.dumps(entries))
    for split in ("testA", "testB"):
        names = [f"{i:06}.mp4" for i in range(3)]
        touch(root / split, names)
        (root / f"{split}_files.txt").write_text("\n".join(names) + "\n")


def av_deepfake1m(root: Path) -> None:
    """A folder of JSON files for train and val, and the names of test."""
    for number, split in enumerate(("train", "val")):
        for i in range(5):
            for entry in family(f"id{number:05}/x{i}/00001", split=split):
                touch(root / split, [entry["file"]])
                touch(root / f"{split}_metadata", [entry["file"].replace(".mp4", ".json")])
                path = (root / f"{split}_metadata" / entry["file"]).with_suffix(".json")
                path.write_text(json.dumps(entry | {"file": entry["file"]}))
    names = [f"{i:06}.mp4" for i in range(3)]
    touch(root / "test", names)
    (root / "test_files.txt").write_text("\n".join(names) + "\n\n")


def lav_df(root: Path) -> None:
    """One metadata file; the split of validation is called dev, and names begin with the split."""
    entries = []
    for split in ("train", "dev", "test"):
        for i in range(5):
            first = len(entries)
            for k, (audio, video) in enumerate([(False, False), (True, False), (True, True)]):
                entry = {
                    "file": f"{split}/{first + k:06}.mp4",
                    "n_fakes": int(k > 0),
                    "fake_periods": ONE if k else [],
                    "duration": 4.224,
                    "original": f"{first:06}.mp4" if k else None,
                    "modify_video": video,
                    "modify_audio": audio,
                    "split": split,
                    "video_frames": 103 + i,
                    "audio_channels": 1,
                    "audio_frames": 65_536 + i,
                    "transcript": "x",
                    "timestamps": [["x", 0.1, 0.2]],
                }
                entries.append(entry)
    touch(root, (entry["file"] for entry in entries))
    (root / "metadata.json").write_text(json.dumps(entries))
    (root / "README.md").write_text("# LAV-DF\n")


def fake_av_celeb(root: Path) -> None:
    """A table with the header of its release, and folders by type, race, gender and source."""
    header = "source,target1,target2,method,category,type,race,gender,path,"
    lines = [header]
    kinds = {
        "RealVideo-RealAudio": "real",
        "RealVideo-FakeAudio": "rtvc",
        "FakeVideo-RealAudio": "faceswap",
        "FakeVideo-FakeAudio": "faceswap-wav2lip",
    }
    for i in range(4):
        for category, (kind, method) in zip("ABCD", kinds.items()):
            folder = f"{kind}/Asian (South)/women/id{i:05}"
            lines.append(
                f"id{i:05},-,-,{method},{category},{kind},Asian (South),women,0{i}.mp4,"
                f"FakeAVCeleb/{folder}"
            )
            touch(root / folder, [f"0{i}.mp4"])
    (root / "meta_data.csv").write_text("\n".join(lines) + "\n")


def demo(root: Path) -> None:
    """As the generated corpus: the layout of AV-Deepfake1M++ with labels of the test splits."""
    av_deepfake1m_plus_plus(root)
    (root / "heldout").mkdir()
    for split in ("testA", "testB"):
        names = (root / f"{split}_files.txt").read_text().split()
        entries = [
            entry | {"file": name}
            for name, entry in zip(names, family(f"held/{split}", split=split))
        ]
        (root / f"heldout/{split}_metadata.json").write_text(json.dumps(entries))


def label_folders(root: Path) -> None:
    """A user's own clips in folders named after their labels."""
    for split in ("train", "val", "test"):
        for label in ("real", "fake"):
            touch(root / split / label, (f"{split} {i}.mp4" for i in range(5)))


def tables(root: Path) -> None:
    """A user's own clips in one CSV per split, with segments."""
    for split in ("train", "dev", "test"):
        lines = ["file,label,fake_segments,audio_fake_segments,visual_fake_segments"]
        for i in range(5):
            lines.append(f"{split}{i}a.mp4,real,[],[],[]")
            cells = '"[[1.0,1.4]]","[[1.0,1.4]]",[]'
            lines.append(f"{split}{i}b.mp4,fake,{cells}")
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n")
        touch(root / split, (line.split(",")[0] for line in lines[1:]))


RELEASED: dict[str, Callable[[Path], None]] = {
    "avdeepfake1mpp": av_deepfake1m_plus_plus,
    "avdeepfake1m": av_deepfake1m,
    "lavdf": lav_df,
    "fakeavceleb": fake_av_celeb,
    "demo": demo,
    "folders-of-mine": label_folders,
    "tables-of-mine": tables,
}
