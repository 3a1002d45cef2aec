"""detector.yaml comes from elsewhere: what is wrong with it is said."""

from __future__ import annotations

import pytest
import yaml

from klassify.errors import KlassifyError
from klassify.systems.detector import read_detector

ENTRY = {"kind": "model", "modality": "audio", "supervision": "clip", "inputs": [], "hash": "0"}


@pytest.mark.parametrize(
    ("answers", "systems", "said"),
    [
        (["m"], {"m": ENTRY}, "mappings"),
        ({"task1": "other"}, {"m": ENTRY}, "'other' answers, but is not among the systems"),
        ({"task1": "../m"}, {"../m": ENTRY}, "'../m' is not a folder beside it"),
        ({"task1": "m"}, {"m": {"kind": "model"}}, "the entry of 'm' is incomplete"),
        ({"task1": "m"}, {"m": ENTRY | {"lmm": "tiny"}}, "the LMM of 'm'"),
    ],
)
def test_a_damaged_detector_is_refused(tmp_path, answers, systems, said):
    text = yaml.safe_dump({"answers": answers, "systems": systems})
    (tmp_path / "detector.yaml").write_text(text)
    with pytest.raises(KlassifyError, match="This detector is damaged") as error:
        read_detector(tmp_path)
    assert said in error.value.what
