"""The page says why, for as many mistakes and disagreements as were asked for."""

import loudest

from klassify import cli
from klassify.data.base import Sources
from klassify.report.clips import Chosen
from klassify.report.explanations import first_of_each
from klassify.systems.score import score
from klassify.systems.system import load_system


def test_the_first_of_each_list_are_explained():
    mistake, apart = frozenset(["mistake"]), frozenset(["disagreement"])
    reasons = {4: mistake | apart, 7: mistake, 2: apart, 5: apart}
    chosen = [Chosen(row, 0, 0, why) for row, why in reasons.items()]
    assert first_of_each(chosen, 1) == {4}
    assert first_of_each(chosen, 2) == {4, 7, 2}
    assert first_of_each(chosen, 0) == set()


def test_the_report_has_sentences_and_pictures(small_data, tmp_path):
    system = loudest.make_system(tmp_path / "exp/small/recipe/loud")
    sources = Sources(small_data.lists, small_data.media, small_data.features)
    score(load_system(system), "val", sources, device="cpu")
    words = ["compare", str(system), "--split", "val", "--subset", "all", "--bootstrap", "0"]
    words += ["--labels", str(small_data.lists / "val.tsv"), "--out", str(tmp_path)]
    words += ["--clips", "1", "--explain", "1"]
    assert cli.main(words) == 2  # it needs media and features
    words += ["--media", str(small_data.media), "--features", str(small_data.features)]
    assert cli.main(words) == 0
    page = (tmp_path / "val/report.html").read_text()
    assert page.count('"why":[{"name":"loud","text":"picture ') == 1
    assert page.count("data:image/png;base64,iVBOR") == 1
