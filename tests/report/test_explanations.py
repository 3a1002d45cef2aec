"""The page says why, for as many mistakes and disagreements as were asked for."""

import loudest
import pytest
from browser import needs_browser, opened

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


@pytest.fixture(scope="module")
def report(small_data, tmp_path_factory):
    """The page of a system that scores the first mouth feature; one clip of each list explained."""
    root = tmp_path_factory.mktemp("explained")
    system = loudest.make_system(root / "exp/small/recipe/loud")
    sources = Sources(small_data.lists, small_data.media, small_data.features)
    score(load_system(system), "val", sources, device="cpu")
    words = ["compare", str(system), "--split", "val", "--subset", "all", "--bootstrap", "0"]
    words += ["--labels", str(small_data.lists / "val.tsv"), "--out", str(root)]
    words += ["--clips", "1", "--explain", "1"]
    assert cli.main(words) == 2  # it needs media and features
    words += ["--media", str(small_data.media), "--features", str(small_data.features)]
    assert cli.main(words) == 0
    return root / "val/report.html"


def test_the_report_has_sentences_and_pictures(report):
    page = report.read_text()
    assert page.count('"why":[{"name":"loud","text":"picture ') == 1
    assert page.count("data:image/png;base64,iVBOR") == 1


@needs_browser
def test_the_panel_of_a_clip_says_why_and_draws_it(browser, report, small_data):
    with opened(browser, report, small_data.media) as tab:
        tab.locator("#mistakes tr.clip .open").first.click()
        panel = tab.locator("#mistakes tr.timeline")
        said = panel.locator("p.why").text_content()
        assert said.startswith("Why, by loud: picture 0.") and len(said.split()) > 4
        picture = panel.locator("img.why")
        assert "loud" in picture.get_attribute("alt")
        size = picture.evaluate("image => image.decode().then(() => image.naturalWidth)")
        box = picture.bounding_box()
        assert size > 500 and 300 < box["width"] <= panel.bounding_box()["width"]
