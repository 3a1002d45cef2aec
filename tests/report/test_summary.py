"""What the page says first, against tables made by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from two_recipes import make

from klassify.report import comparison, summary, tables
from klassify.report.comparison import Comparison


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> Comparison:
    recipes = make(tmp_path_factory.mktemp("summary"))
    labels = recipes.path("lists", "heldout", "testA_labels.tsv")
    folders = [recipes.path("exp", name) for name in ("one", "two")]
    return comparison.compare(folders, "testA", labels=labels, n_bootstrap=20)


def with_auc(result: Comparison, auc: dict[str, tuple[float, float, float]]) -> Comparison:
    """Only Task 1, with these values and ends of intervals; differences of 0.1 +- 0.05."""
    columns = ["system", "auc", "auc_low", "auc_high"]
    table = pd.DataFrame([(name, *values) for name, values in auc.items()], columns=columns)
    pairs = [("auc", "one/both", "two/frames", 0.1, 0.05, 0.15)]
    names = ["metric", "a", "b", "difference", "difference_low", "difference_high"]
    tables = {"task1": table, "differences": pd.DataFrame(pairs, columns=names)}
    answers = {"answers1": result.answers1, "answers2": []}
    return Comparison(**{**vars(result), **answers, "tables": {**result.tables, **tables}})


def test_the_better_answer_is_recommended_with_its_lead(result):
    made = with_auc(result, {"one/both": (0.9, 0.85, 0.95), "two/frames": (0.8, 0.7, 0.9)})
    (text,) = summary.recommendations(made)
    assert text == (
        "Task 1: submit one/both, AUC 0.900 [0.850, 0.950]; +0.100 [+0.050, +0.150] ahead of"
        " two/frames."
    )


def test_a_lead_without_an_interval_is_said_without_one(result):
    made = with_auc(result, {"one/both": (0.9, np.nan, np.nan), "two/frames": (0.8, 0.7, 0.9)})
    made.tables["differences"][["difference_low", "difference_high"]] = np.nan
    (text,) = summary.recommendations(made)
    assert text.endswith("+0.100 ahead of two/frames, without an interval.")


def test_what_is_not_told_from_guessing_is_not_recommended(result):
    made = with_auc(result, {"one/both": (0.55, 0.45, 0.65), "two/frames": (0.5, 0.4, 0.6)})
    (text,) = summary.recommendations(made)
    assert "nothing to submit yet" in text and "guessing (0.500)" in text


def test_a_difference_has_the_sign_of_the_question(result):
    made = with_auc(result, {"one/both": (0.9, 0.8, 1.0), "two/frames": (0.8, 0.7, 0.9)})
    assert summary.difference(made, "auc", "one/both", "two/frames") == (0.1, 0.05, 0.15)
    assert summary.difference(made, "auc", "two/frames", "one/both") == (-0.1, -0.15, -0.05)
    assert np.isnan(summary.difference(made, "auc", "one/both", "one/sound")).all()


def test_modalities_are_those_of_the_answer_s_inputs(result):
    table = summary.contributions(result).set_index(["recipe", "task", "kind"])
    assert set(table.index) == {
        ("one", "task1", kind) for kind in ("picture alone", "sound alone", "both")
    }
    rows = result.tables["task1"].set_index("system")
    both = table.loc[("one", "task1", "both")]
    assert table.loc[("one", "task1", "picture alone"), "system"] == "one/picture"
    assert both["value"] == rows.loc["one/both", "auc"]
    better = rows.loc[["one/picture", "one/sound"], "auc"].max()
    assert both["gain"] == pytest.approx(rows.loc["one/both", "auc"] - better)


def test_numbers_that_changed_since_the_last_comparison(result, tmp_path):
    assert summary.earlier(tmp_path) == {}
    table = result.tables["task1"].copy()
    table.loc[0, "auc"] -= 0.25
    table.to_csv(tmp_path / "task1.tsv", sep="\t", index=False)
    found = summary.changes(result, summary.earlier(tmp_path))
    assert found[["system", "metric"]].to_numpy().tolist() == [[table["system"][0], "AUC"]]
    assert found["change"].tolist() == pytest.approx([0.25])


def test_recipes_in_folders_of_one_name_stay_apart(tmp_path):
    """Two recipes trained with the same seed: exp/one/seed-2 and exp/two/seed-2."""
    recipes = make(tmp_path)
    folders = []
    for name in ("one", "two"):
        place = recipes.path("exp", name)
        moved = place.rename(place.with_name("moved")).rename(tmp_path / "moved")
        place.mkdir()
        folders.append(moved.rename(place / "seed-2"))
    labels = recipes.path("lists", "heldout", "testA_labels.tsv")
    made = comparison.compare(folders, "testA", labels=labels, n_bootstrap=0)
    assert list(made.recipes.values()) == ["one/seed-2", "two/seed-2"]
    assert set(summary.contributions(made)["recipe"]) == {"one/seed-2"}
    assert [column.title for column in tables.headline(made).head] == [
        "",
        "one/seed-2",
        "two/seed-2",
    ]


def test_a_model_is_described_by_its_own_file(result, tmp_path):
    (entry,) = [one for one in result.entries if one.name == "one/sound"]
    config = entry.system.folder / "config.yaml"
    for path, said in {
        "klassify.models.bam.BAM": "BAM, the boundary-aware attention mechanism: ",
        "elsewhere.Model": "Model model",
    }.items():
        config.write_text(f"model:\n  class_path: {path}\n")
        assert summary.described(entry).startswith(said)
    config.unlink()
