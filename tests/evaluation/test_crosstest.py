"""Tables of several data sets joined to one."""

from __future__ import annotations

import pandas as pd
import pytest

from klassify import cli
from klassify.errors import KlassifyError
from klassify.evaluation import crosstest


def task1(folder, split, aucs, n_sources=12):
    """A table of Task 1 as `klassify evaluate` writes it, with the columns that are read."""
    rows = [
        {
            "system": name,
            "split": split,
            "label": label,
            "group": group,
            "n": 48,
            "n_sources": n_sources,
            "auc": auc - 0.1 * (label == "own") - 0.2 * (group != "all"),
            "auc_low": auc - 0.05,
            "auc_high": auc + 0.05,
            "eer": 1 - auc,
        }
        for name, auc in aucs.items()
        for label in ("video", "own")
        for group in ("all", "audio_modified")
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{split}.tsv"
    pd.DataFrame(rows).to_csv(path, sep="\t", index=False)
    return path


def eers(folder, split, value):
    rows = [
        {"system": "bam", "split": split, "measure": measure, "eer": value, "n_sources": 7}
        for measure in ("utterance", "20 ms", "160 ms", "range")
    ]
    pd.DataFrame(rows).to_csv(folder / f"{split}.eer.tsv", sep="\t", index=False)


@pytest.fixture
def evaluation(tmp_path):
    folder = tmp_path / "exp/demo/klassify/evaluation"
    task1(folder, "val", {"tcn": 0.95, "maxout": 0.99})
    task1(folder, "testA", {"tcn": 0.9, "maxout": 0.97})
    task1(folder, "tune-testA", {"tcn": 0.6}, n_sources=30)
    eers(folder, "partialspoof-test", 0.0358)
    pd.DataFrame({"file": ["a.mp4"], "score": [1.0]}).to_csv(folder / "other.tsv", sep="\t")
    return folder


def test_systems_are_rows_and_data_sets_columns(evaluation, capsys):
    assert cli.main(["crosstest", str(evaluation), "--out", str(evaluation / "cross.v2")]) == 0
    said = capsys.readouterr().out
    auc, eer, utterance, _, ranges, _ = said.split("\n\n")
    head, _, tcn, maxout, sources = auc.splitlines()
    assert head.split() == ["AUC", "val", "testA", "tune-testA"]
    assert tcn.startswith("tcn") and "0.6000 [0.5500, 0.6500]" in tcn and "0.9000" in tcn
    assert maxout.rstrip().endswith("-") and sources.split() == ["sources", "12", "12", "30"]
    assert eer.splitlines()[2].split() == ["tcn", "0.0500", "0.1000", "0.4000"]
    assert utterance.startswith("utterance EER") and "0.0358" in ranges
    assert (evaluation / "cross.v2.txt").read_text() == said
    table = pd.read_csv(evaluation / "cross.v2.tsv", sep="\t")
    assert list(table)[:4] == ["metric", "system", "split", "value"]
    # its own files do not change a second run
    assert cli.main(["crosstest", str(evaluation), "--out", str(evaluation / "cross.v2")]) == 0
    assert capsys.readouterr().out == said


def test_tables_of_several_recipes_name_the_recipe(evaluation, tmp_path):
    other = task1(tmp_path / "exp/demo/fused/seed-2/evaluation", "testA", {"tcn": 0.8})
    found = crosstest.gather([evaluation / "testA.tsv", other])
    names = ["klassify/tcn", "klassify/maxout", "fused/seed-2/tcn"]
    assert list(dict.fromkeys(found["system"])) == names


def test_two_numbers_for_one_cell_are_refused(evaluation):
    again = evaluation / "again.tsv"
    again.write_bytes((evaluation / "testA.tsv").read_bytes())
    with pytest.raises(KlassifyError, match="AUC of tcn on testA") as error:
        crosstest.gather(crosstest.tables_in([evaluation]))
    assert str(error.value.where) == f"{again} and {evaluation / 'testA.tsv'}"
    named = [path for path in crosstest.tables_in([evaluation]) if path != again]
    assert len(crosstest.gather(named))  # as the advice says


def test_a_column_is_one_data_set_for_recipes_of_several(tmp_path):
    """Each trained on its own data and tested on both."""
    for own, other in (("a", "b"), ("b", "a")):
        folder = tmp_path / f"exp/{own}/klassify/evaluation"
        task1(folder, "testA", {"tcn": 0.9})
        task1(folder, f"{other}-testA", {"tcn": 0.6})
    folders = [tmp_path / f"exp/{name}/klassify/evaluation" for name in "ab"]
    found = crosstest.gather(crosstest.tables_in(folders))
    auc = found[found["metric"] == "AUC"].pivot(index="system", columns="split", values="value")
    assert auc.to_dict() == {
        "a-testA": {"a/klassify/tcn": 0.9, "b/klassify/tcn": 0.6},
        "b-testA": {"a/klassify/tcn": 0.6, "b/klassify/tcn": 0.9},
    }


def test_a_folder_without_tables_is_refused(tmp_path, capsys):
    (tmp_path / "a.tsv").write_text("file\n")
    assert cli.main(["crosstest", str(tmp_path)]) == 2
    assert "no table of klassify evaluate" in capsys.readouterr().err
