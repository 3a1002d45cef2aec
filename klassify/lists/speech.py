"""Data sets of speech that anyone may download: their protocols -> the rows of a data list.

PartialSpoof, LlamaPartialSpoof and HalfTruth (HAD) say which parts of a clip are fake; ASVspoof
2019 LA, ASVspoof 5 and In-the-Wild which clips. docs/benchmarks.md says where each layout is
described, and what has not been checked against a copy.

No clip has a picture. A spoofed clip is `audio_modified`. The source is the speaker where nothing
tells which recording a fake was made from, so that a speaker's clips stay together.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from klassify.errors import KlassifyError
from klassify.lists import partialspoof
from klassify.lists.data_list import SEGMENTS
from klassify.lists.official import tabulate, usable_rows
from klassify.lists.records import Fault, read_text

CODES = {"train": "T", "dev": "D", "eval": "E_eval"}  # of ASVspoof 5
KEYS = {"bonafide": "real", "bona-fide": "real", "spoof": "audio_modified"}
Entry = dict[str, Any]  # with the fields of the official metadata, and `name` for `file`


@dataclasses.dataclass(frozen=True)
class Corpus:
    """One data set.

    splits: the official name of each split, {0} in what follows; {1} is its code in CODES.
    protocols: the files that describe a split, relative to the data set's folder. folders: where
    its clips may be. entry: the cells of a line -> its fields, or what is wrong with it. names: of
    the folder that the archives unpack to.
    """

    splits: dict[str, str]
    protocols: tuple[str, ...]
    folders: tuple[str, ...]
    ending: str
    entry: Callable[[Sequence[str]], Entry | str]
    names: tuple[str, ...] = ("",)

    def paths(self, patterns: Sequence[str], split: str) -> list[str]:
        """The protocols or folders of a split."""
        official = self.splits[split]
        return [pattern.format(official, CODES.get(official, "")) for pattern in patterns]


def _keyed(cells: Sequence[str], key: int, **columns: Any) -> Entry | str:
    """An entry whose class is the word in cell `key`."""
    if cells[key] not in KEYS:
        return f"unknown class {cells[key]!r} (known: {', '.join(KEYS)})"
    return {"modify_type": KEYS[cells[key]]} | columns


def _asvspoof2019(cells: Sequence[str]) -> Entry | str:
    """`LA_0079 LA_T_1138215 - A06 spoof`: speaker, clip, nothing, system, class."""
    if len(cells) != 5:
        return f"it has {len(cells)} cells, not 5"
    speaker, name, _, model, _ = cells
    model = "" if model == "-" else model
    return _keyed(cells, 4, name=name, source=speaker, speaker=speaker, audio_model=model)


def _asvspoof5(cells: Sequence[str]) -> Entry | str:
    """`T_4850 T_0000000000 F - - - AC3 A05 spoof -`: speaker, clip, gender, codec, its quality,
    the clip before coding, attack tag, attack, class, nothing.
    """
    if len(cells) != 10:
        return f"it has {len(cells)} cells, not 10"
    speaker, name, gender, model = cells[0], cells[1], cells[2], cells[7]
    return _keyed(
        cells,
        8,
        name=name,
        source=speaker,
        speaker=speaker,
        gender=gender,
        audio_model="" if model == "bonafide" else model,
    )


def _in_the_wild(cells: Sequence[str]) -> Entry | str:
    """`0.wav,Alec Guinness,spoof`: clip, speaker, class."""
    if len(cells) != 3:
        return f"it has {len(cells)} cells, not 3"
    name, speaker, _ = cells
    return _keyed(cells, 2, name=name, source=speaker, speaker=speaker)


def _halftruth(cells: Sequence[str]) -> Entry | str:
    """`HAD_test_00000003 0.00-1.43-T/1.43-2.02-F/2.02-4.03-T 0`: clip, its true and false parts in
    seconds, 1 for a true clip. Nothing tells who speaks, so each clip is a source.
    """
    if len(cells) != 3 or cells[2] not in ("0", "1"):
        return "it is not a name, parts and 0 or 1"
    fake = _parts(cells[1].split("/"), "F", ("T", "F"))
    if isinstance(fake, str):
        return fake
    kind = "real" if cells[2] == "1" else "audio_modified"
    return {"name": cells[0], "modify_type": kind, "source": cells[0], "fake_segments": fake}


def _llama(cells: Sequence[str]) -> Entry | str:
    """`dev01-cosyvoice-partial-cp_1272_128104_000005_000014 5.6 spoof 0.0-0.4-bonafide ...`: clip,
    seconds, class, parts. The name ends in speaker, chapter and utterance of LibriTTS.
    """
    if len(cells) < 4:
        return f"it has {len(cells)} cells, not 4 or more"
    fake = _parts(cells[3:], "spoof", tuple(KEYS))
    if isinstance(fake, str):
        return fake
    how, _, source = cells[0].partition("_")
    model = re.match(r"[^-]+-([^-]+)-", how) if cells[2] == "spoof" else None
    return _keyed(
        cells,
        2,
        name=cells[0],
        duration=float(cells[1]),
        source=source,
        speaker=source.split("_")[0],
        audio_model=model[1] if model else "",
        fake_segments=fake,
    )


def _parts(parts: Sequence[str], fake: str, known: Sequence[str]) -> list[list[float]] | str:
    """The fake ones of parts `start-end-label`, in seconds, or what is wrong with one."""
    segments = []
    for part in parts:
        start, _, rest = part.partition("-")
        end, _, label = rest.partition("-")
        if label not in known:
            return f"a part is not start-end-label: {part[:80]!r}"
        if label == fake:
            segments.append([float(start), float(end)])
    return segments


PARTIALSPOOF, LLAMAPARTIALSPOOF = "partialspoof", "llamapartialspoof"
CORPORA = {
    PARTIALSPOOF: Corpus(
        splits={"train": "train", "val": "dev", "test": "eval"},
        protocols=("protocols/PartialSpoof_LA_cm_protocols/PartialSpoof.LA.cm.{}.trl.txt",),
        folders=("{}/con_wav",),
        ending=".wav",
        entry=_asvspoof2019,
        names=("", "database"),
    ),
    LLAMAPARTIALSPOOF: Corpus(
        splits={LLAMAPARTIALSPOOF: "R01TTS.0"},
        protocols=("label_{}.a.txt", "label_{}.b.txt"),
        folders=("{}.a", "{}.b"),
        ending=".wav",
        entry=_llama,
    ),
    "halftruth": Corpus(
        splits={"train": "train", "val": "dev", "test": "test"},
        protocols=("HAD_{0}/HAD_{0}_label.txt",),
        folders=("HAD_{0}/conbine", "HAD_{0}/{0}/conbine", "HAD_{0}/{0}", "wav/{0}"),
        ending=".wav",
        entry=_halftruth,
        names=("", "HAD"),
    ),
    "asvspoof2019la": Corpus(
        splits={"train": "train", "val": "dev", "test": "eval"},
        protocols=(
            "ASVspoof2019_LA_cm_protocols/ASVspoof2019.LA.cm.{}.trn.txt",
            "ASVspoof2019_LA_cm_protocols/ASVspoof2019.LA.cm.{}.trl.txt",
        ),
        folders=("ASVspoof2019_LA_{}/flac",),
        ending=".flac",
        entry=_asvspoof2019,
        names=("", "LA"),
    ),
    "asvspoof5": Corpus(
        splits={"train": "train", "val": "dev", "test": "eval"},
        protocols=(
            "ASVspoof5.{}.tsv",
            "ASVspoof5.{}.track_1.tsv",
            "ASVspoof5_protocols/ASVspoof5.{}.tsv",
            "ASVspoof5_protocols/ASVspoof5.{}.track_1.tsv",
        ),
        folders=("flac_{1}",),
        ending=".flac",
        entry=_asvspoof5,
    ),
    "inthewild": Corpus(
        splits={"inthewild": ""},
        protocols=("meta.csv",),
        folders=("", "wav"),
        ending="",
        entry=_in_the_wild,
        names=("", "release_in_the_wild"),
    ),
}


def find_protocol(root: Path, data: str, split: str) -> Path | None:
    """The first file that describes a split; None where there is none."""
    corpus = CORPORA[data]
    if split not in corpus.splits:
        return None
    spelt = corpus.paths(corpus.protocols, split)
    paths = (root / name / protocol for name in corpus.names for protocol in spelt)
    return next((path for path in paths if path.is_file()), None)


def read_protocol(
    source: Path, data: str, split: str, root: Path
) -> tuple[pd.DataFrame, list[Fault]]:
    """All clips of a split as list rows, and the lines that were wrong.

    `file` is relative to the root. Lengths are unknown unless the protocol has them; that there is
    no picture is known. Raises KlassifyError where no line is usable, and for PartialSpoof without
    its segment labels.
    """
    corpus, faults, entries, rows = CORPORA[data], [], [], []
    base = _base(source, root, corpus)
    lines = [cells for path in _together(source, corpus, split, base) for cells in _cells(path)]
    for number, cells in enumerate(lines, 1):
        entry = _entry(corpus, cells)
        if isinstance(entry, str):
            faults.append(Fault(number, cells[0] if cells else "", entry, "skipped"))
        else:
            entries.append(entry)
            rows.append(number)
    if data == PARTIALSPOOF:
        _add_segments(entries, partialspoof.read_segments(base, corpus.splits[split]))
    _add_files(entries, corpus, split, base, root)
    frame, more = tabulate(entries, rows)
    frame[["n_frames", "fps"]] = 0.0
    frame, faults = usable_rows(frame.drop(columns="original"), [*faults, *more], source, split)
    if not any("fake_segments" in entry for entry in entries):
        frame = frame.drop(columns=list(SEGMENTS))
    return frame.reset_index(drop=True), faults


def _entry(corpus: Corpus, cells: Sequence[str]) -> Entry | str:
    try:
        return corpus.entry(cells) if cells else "the line is empty"
    except ValueError as error:
        return f"a number cannot be read: {error}"


def _cells(path: Path) -> list[list[str]]:
    """The cells of each line, without the header of a CSV."""
    text = read_text(path)
    if path.suffix != ".csv":
        return [line.split() for line in text.splitlines()]
    try:
        table = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text))]
    except csv.Error as error:
        raise KlassifyError(f"This table cannot be read: {error}.", where=path) from None
    return table[1:]


def _base(source: Path, root: Path, corpus: Corpus) -> Path:
    """The data set's own folder, below which the protocol was found."""
    below = [root / name for name in corpus.names if source.is_relative_to(root / name)]
    return max(below, key=lambda folder: len(folder.parts))


def _together(source: Path, corpus: Corpus, split: str, base: Path) -> list[Path]:
    """The files that describe a split together: both parts of LlamaPartialSpoof."""
    if split != LLAMAPARTIALSPOOF:
        return [source]
    spelt = corpus.paths(corpus.protocols, split)
    return [base / name for name in spelt if (base / name).is_file()]


def _add_files(
    entries: Sequence[Entry], corpus: Corpus, split: str, base: Path, root: Path
) -> None:
    """Name each clip by its path relative to the root: in the first folder that holds it, else in
    the folder of the clip before.
    """
    own = base.relative_to(root)
    folders = [own / folder for folder in corpus.paths(corpus.folders, split)]
    for entry in entries:
        name = entry.pop("name") + corpus.ending
        at = next((i for i, one in enumerate(folders) if os.path.isfile(root / one / name)), 0)
        folders.insert(0, folders.pop(at))  # the next clip is most likely there too
        entry["file"] = (folders[0] / name).as_posix()


def _add_segments(entries: Sequence[Entry], segments: partialspoof.Segments) -> None:
    """A bona fide clip needs no labels; the segments of a spoofed one without stay unknown."""
    for entry in entries:
        nothing = [] if entry["modify_type"] == "real" else None
        entry["fake_segments"] = segments.get(entry["name"], nothing)
