"""A short fixed part of the fuzz campaign, and whether it can find anything."""

from __future__ import annotations

import pytest

from fuzz import campaign
from fuzz.targets import TARGETS, Target
from klassify.errors import KlassifyError


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_sound_files_are_answered(target, tmp_path):
    for path in target.sound(tmp_path):
        target.run(path)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_broken_files_end_in_an_answer_or_a_clear_error(target):
    todo = [campaign.Case(target.name, seed) for seed in range(12)]
    counts, findings = campaign.campaign(todo, jobs=1)
    assert counts.total() == len(todo)
    assert not findings, "\n".join(
        f"--target '{case.target}' --case {case.seed}\n{what}" for case, what in findings
    )


def outcome(tmp_path, run):
    target = Target("try", lambda folder: [_written(folder / "a.bin")], run)
    return campaign.try_target(campaign.Scratch(limited=False), target, seed=1)[0]


def _written(path):
    path.write_bytes(b"0123456789" * 20)
    return path


def test_the_campaign_sees_what_it_looks_for(tmp_path):
    def refuse(path):
        raise KlassifyError("This file is broken.", where=path)

    def stray(path):
        (path.parents[1] / "outside").write_text("x")

    assert outcome(tmp_path, lambda path: None) == "answered"
    assert outcome(tmp_path, refuse) == "refused"
    assert outcome(tmp_path, lambda path: 1 / 0) == "found"
    assert outcome(tmp_path, stray) == "found"
