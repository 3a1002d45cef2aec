"""report.html in headless Chromium: no errors, no requests, sorting, opening, playing, and no
stranger's text is run.

The browser's tests are skipped where Playwright or Chromium is not installed; KLASSIFY_SCREENSHOTS
names a folder that keeps what they saw.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from browser import eventually, needs_browser, opened
from two_recipes import HOSTILE, make

from klassify import parts
from klassify.evaluation import crosstest, shortcuts
from klassify.features import shards
from klassify.features.lmm import kind as lmm_kind
from klassify.features.mouth import kind
from klassify.report import figures, page, tables
from klassify.report.clips import IMAGE_BYTES

WORDS = f"The mouth {HOSTILE} </script><script>alert(1)</script> moves."


def an_audit() -> shortcuts.Audit:
    """A shortcut, with foreign text as its remedy, one property within chance, and a detector."""
    rows = [
        ("silence_start_ms", "audio", 0.987, 0.97, 1.0, 0.61, 32, shortcuts.SHORTCUT, HOSTILE),
        ("loudness_db", "audio", 0.52, 0.45, 0.6, 0.61, 32, shortcuts.WITHIN, ""),
    ]
    traits = pd.DataFrame(rows, columns=shortcuts.COLUMNS)
    row = ("one", "cut", *(0.9, 0.8, 1.0), *(0.7, 0.6, 0.8), *(-0.2, -0.3, -0.1), 32)
    systems = pd.DataFrame([(*row, shortcuts.FALLS)], columns=shortcuts.SYSTEM_COLUMNS)
    return shortcuts.Audit("val", 32, 24, 8, 0, traits, systems)


def write_robustness(path: Path, systems: Sequence[str] = (HOSTILE,)) -> Path:
    """A table of klassify perturb: systems under one family, one with foreign text in its name."""
    rows = [
        (name, *row)
        for name in systems
        for row in (
            ("AUC", "clean", 0, 0.9, 0.0, 0.0, 0.0),
            ("AUC", "mp3", 1, 0.85, -0.05, -0.08, -0.02),
            ("AUC", "mp3", 5, 0.6, -0.3, -0.4, -0.2),
            ("Score", "clean", 0, 0.5, 0.0, 0.0, 0.0),
            ("Score", "mp3", 5, 0.4, -0.1, -0.2, -0.05),
        )
    ]
    columns = ["system", "metric", "family", "level", "value", "change", "change_low"]
    table = pd.DataFrame(rows, columns=[*columns, "change_high"])
    table[["value_low", "value_high"]] = np.nan  # as without resamples
    table.to_csv(path, sep="\t", index=False)
    return path


def write_crosstest(path: Path) -> Path:
    """A table of klassify crosstest: a system on two data sets, one with a foreign name."""
    rows = [
        ("EER", "both", "testA", 0.2, np.nan, np.nan),
        ("AUC", "both", "testA", 0.9, 0.8, 0.95),
        ("AUC", "both", f"{HOSTILE}-test", 0.6, 0.5, 0.7),
    ]
    pd.DataFrame(rows, columns=crosstest.COLUMNS).to_csv(path, sep="\t", index=False)
    return path


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """A report with labels, videos of the first six clips, mouth features and an LMM's words."""
    data = make(tmp_path_factory.mktemp("report"), n_videos=6)
    names = [f"testA-{i // 4}" for i in range(8)]
    files = sorted(
        path.relative_to(data.path("media", "testA")).as_posix()
        for path in data.path("media").rglob("*.mp4")
    )
    assert len(files) == 6 and names[0] in files[0]
    rng, place = np.random.default_rng(0), parts.Place(1, 1, 0, 1)
    mouth = [
        kind.MouthRow(file, 25.0, rng.random((30, 8)).astype(np.float32), np.arange(30) >= 3)
        for file in files
    ]
    shards.write_part(data.path("features", "mouth", "testA"), place, mouth, {"made": "up"}, "x")
    settings = {"kind": "lmm", "visual_dim": 2, "textual_dim": 3, "new_tokens": 1}
    words = [
        lmm_kind.LMMRow(
            file,
            25.0,
            30,
            np.array([0], np.int32),
            np.zeros((1, 2), np.float16),
            np.zeros((1, 1, 3), np.float16),
            [WORDS],
        )
        for file in files
    ]
    shards.write_part(data.path("features", "lmm", "testA"), place, words, settings, "x")
    shortcuts.write(data.path("exp", "audit"), an_audit())
    labels = data.path("lists", "heldout", "testA_labels.tsv")
    folders = ["--media", str(data.path("media")), "--features", str(data.path("features"))]
    folders += ["--clips", "40"]  # all of them
    folders += ["--robustness", str(write_robustness(data.path("robustness.tsv")))]
    folders += ["--crosstest", str(write_crosstest(data.path("crosstest.tsv")))]
    assert data.compare("--split", "testA", "--labels", str(labels), *folders) == 0
    return data.path("out", "testA", "report.html")


class Elements(HTMLParser):
    """Names of elements, and every attribute with its value."""

    def __init__(self):
        super().__init__()
        self.names, self.attributes = [], []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += attrs


def test_page_is_whole_small_and_holds_no_foreign_markup(report):
    text = report.read_text()
    assert len(text.encode()) < 2_000_000
    elements = Elements()
    elements.feed(text)
    assert "img" not in elements.names and elements.names.count("script") == 2 + len(
        re.findall(r'id="clip-\d+"', text)
    )
    assert not [name for name, _ in elements.attributes if name.startswith("on")]
    outside = [
        value
        for name, value in elements.attributes
        if name in ("src", "href") and not value.startswith(("#", "data:"))
    ]
    assert not outside
    assert "&lt;img src=x onerror=alert(1)&gt;" in text  # it is there, as text


def test_payloads_hold_all_lanes(report):
    text = report.read_text()
    payloads = [json.loads(one) for one in re.findall(r'json" id="clip-\d+">(.*?)</script>', text)]
    with_video = [one for one in payloads if one["video"]]
    assert len(payloads) >= 30 and len(with_video) == 6
    for clip in with_video:
        assert len(clip["thumbs"]) == 12 and clip["wave"] and len(clip["mouth"]["rows"]) == 8
        assert clip["words"] == [[0.0, WORDS]]
        assert (report.parent / unquote(clip["video"])).exists()
    spans = [
        one["values"] for clip in with_video for one in clip["frames"] if one["name"] == "one/spans"
    ]
    assert spans and all(values[:3] == [None] * 3 and None not in values[3:] for values in spans)
    fake = next(one for one in payloads if one["truth"]["fake"])
    assert fake["truth"]["fake"] == [[0.4, 0.8]] and fake["seconds"] == pytest.approx(1.2)
    assert {one["name"] for one in fake["frames"]} <= {"one/spans", "two/frames"}


def test_json_cannot_close_its_element():
    text = str(page._json({"a": "</script><!-- & \u2028"}))
    assert not set("<>&\u2028") & set(text) and json.loads(text) == {"a": "</script><!-- & \u2028"}
    with pytest.raises(ValueError):
        page._json([float("nan")])


def test_missing_library_says_how_to_install(monkeypatch):
    monkeypatch.setattr(page, "LIBRARY", "no_such_library")
    with pytest.raises(Exception, match="no_such_library") as error:
        page.check_library()
    assert "klassify[report]" in error.value.fix


def test_curves_of_many_clips_have_few_points_on_the_curve():
    rng = np.random.default_rng(0)
    label = (np.arange(50_000) % 4 > 0).astype(int)
    figure = figures.roc(label, {"one": rng.normal(label, 1)}, ["one"])
    curve = figure["lines"][1]
    assert len(curve["x"]) <= figures.MAX_POINTS + 2
    area = (
        np.trapezoid(curve["y"], curve["x"])
        if hasattr(np, "trapezoid")
        else np.trapz(curve["y"], curve["x"])
    )
    assert -area == pytest.approx(0.7602, abs=0.01)  # it runs from (1, 1) to (0, 0)
    assert (curve["x"][0], curve["x"][-1], curve["y"][0], curve["y"][-1]) == (1, 0, 1, 0)
    assert len(json.dumps(figures.det(label, {"one": rng.normal(label, 1)}, []))) < 40_000


def test_colours_are_okabe_and_ito_then_lines_differ_in_style():
    lines = [figures.line_style(i) for i in range(3 * len(figures.COLOURS))]
    assert len({(line["colour"], line["dash"]) for line in lines}) == len(lines)


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desktop", "phone"])
def tab(request, browser, report):
    """The report, opened."""
    width, height = request.param
    phone = width < 600
    how = {"viewport": {"width": width, "height": height}, "has_touch": phone, "is_mobile": phone}
    with opened(browser, report, report.parents[2] / "media", **how) as tab:
        tab.screenshot_name = "phone" if phone else "desktop"
        yield tab


def keep(tab, name: str, **options) -> None:
    folder = os.environ.get("KLASSIFY_SCREENSHOTS")
    if folder:
        tab.screenshot(path=Path(folder) / f"{tab.screenshot_name}-{name}.png", **options)


@needs_browser
def test_page_fits_its_width_and_draws_every_plot(tab):
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    for plot in tab.locator("figure.plot").all():
        assert plot.locator(".canvas > svg, .square").count() == 1
    titles = tab.locator(".canvas .title").all_text_contents()
    assert (
        "false alarms, % of real clips" in titles and "mean predicted probability of fake" in titles
    )
    plot = tab.locator('figure[data-figure="groups-task1"]')
    plot.locator("select").select_option("speaker")
    plot.locator(".title", has_text="speaker (clips in it)").wait_for()
    plot.locator("select").select_option("audio generator")
    plot.locator(".category title", has_text=HOSTILE).wait_for(state="attached")
    keep(tab, "page", full_page=True)


@needs_browser
def test_shortcuts_are_in_their_section_and_among_the_warnings(tab):
    row = tab.locator("#shortcuts tbody tr", has_text="silence_start_ms")
    cells = row.locator("td").all_text_contents()
    assert cells[:3] == ["silence_start_ms", "val", "audio"] and cells[3].startswith("0.987")
    assert cells[4:] == ["0.610", "32", "shortcut", HOSTILE]
    assert "within chance" in tab.locator("#shortcuts").text_content()
    cells = tab.locator("#shortcuts tbody tr", has_text="falls").locator("td").all_text_contents()
    assert cells[3].startswith("0.900") and cells[5].startswith("-0.200") and cells[7] == "falls"
    summary = tab.locator("details.warning > summary").text_content()
    assert "shortcuts in the content (2)" in summary


@needs_browser
def test_robustness_has_a_plot_by_level_and_a_table(tab):
    plot = tab.locator('#robustness figure[data-figure="robustness-mp3"]')
    ticks = plot.locator(".canvas > svg").text_content()
    assert "clean" in ticks and "kbit/s of MP3" in plot.text_content()
    tab.locator("#robustness summary").click()
    cells = tab.locator("#robustness tbody tr").first.locator("td").all_text_contents()
    assert cells[:5] == [HOSTILE, "AUC", "mp3", "0.9000", "0.8500"]
    assert cells[8].startswith("0.6000") and cells[9].startswith("-0.3000")


@needs_browser
def test_other_data_are_columns_beside_the_systems_own(tab):
    assert tab.locator('nav a[href="#crosstest"]').text_content() == "Other data"
    head = tab.locator("#crosstest th").all_text_contents()
    assert head == ["system", "metric", "testA", f"{HOSTILE}-test"]
    rows = [row.locator("td") for row in tab.locator("#crosstest tbody tr").all()]
    assert rows[0].all_text_contents() == [
        "both",
        "AUC",
        "0.9000[0.8000, 0.9500]",
        "0.6000[0.5000, 0.7000]",
    ]
    assert rows[1].all_text_contents() == ["both", "EER", "0.2000", "-"]


@needs_browser
def test_thresholds_costs_and_gaps_are_in_their_sections(tab):
    points = tab.locator("#drift table", has_text="false alarms").first.locator("tbody tr")
    points = points.filter(has_text="one/both")
    few = points.filter(has_text="1 % false alarms").first.locator("td").all_text_contents()
    assert few[2] == "val_fit has real clips of 4 sources, 99 are needed" and few[3] == "-"
    equal = points.filter(has_text="equal error rate").locator("td").all_text_contents()
    counts = [sum(map(int, cell.split(" / "))) for cell in equal[7:9]]
    assert counts == [8, 24] and "%" in equal[3]  # of the real clips, and of the fakes
    costs = tab.locator("#task1 table", has_text="t-EER").first
    costs = costs.locator("tbody tr", has_text="one/both")
    cells = costs.locator("td").all_text_contents()
    assert len(cells) == 6 and all(cell[0].isdigit() for cell in cells[1:])
    assert "DCF: prior of fake 0.05" in tab.locator("#task1").text_content()
    shown, every = tab.locator("#task1 table", has_text="t-EER").all()  # the answers, and all
    names = shown.locator("tbody td:first-child").all_text_contents()
    assert names == ["one/both", "two/frames"] and not every.is_visible()
    assert every.locator("tbody tr").count() > len(names)
    box = tab.locator("#drift .scroll", has_text="false alarms").first
    fades = "box => box.classList.contains('more')"
    eventually(lambda: box.evaluate(fades))
    box.evaluate("box => box.scrollTo(box.scrollWidth, 0)")
    eventually(lambda: not box.evaluate(fades))
    gaps = tab.locator("#groups table", has_text="by chance").locator("tbody tr")
    assert "chance" in gaps.first.text_content()
    tab.locator("#groups summary", has_text="of every group").click()
    tab.locator("#groups td", has_text=HOSTILE).first.wait_for()


@needs_browser
def test_answers_beside_guesses_on_the_grid(tab):
    systems = tab.locator("#task2 table").first.locator("tbody tr td:first-child")
    names = systems.all_text_contents()
    assert "random" in names and "perfect on the 40 ms grid" in names
    assert "guessing" in tab.locator("#headline table").first.text_content()
    rows = tab.locator("#mistakes tr.clip")
    wrong = rows.locator("td.wrong")
    assert rows.count() and wrong.count() >= rows.count()  # each row has one, marked by a sign
    assert all(
        re.match(r"[\d.]+own [\d.]+", text) for text in wrong.all_text_contents()
    )  # calibrated, and as submitted
    assert tab.locator("#coverage > details").get_attribute("open") is not None  # some are missing
    words = tab.locator("#words details").last
    words.locator("summary").click()  # what a phone has instead of tooltips
    heads = {head for head in tab.locator("table.sortable th").all_text_contents() if head}
    told = set(words.locator("dt").all_text_contents())
    # names of answers and of splits
    assert len(heads) > 20
    assert heads - told == {"one/both", "two/frames", "testA", "<img src=x onerror=alert(1)>-test"}


@needs_browser
def test_lists_sort_by_any_column_and_back(tab):
    table = tab.locator("#mistakes table")

    def losses():
        cells = table.locator("tr.clip td:nth-child(5)").all_text_contents()
        return [float(cell) for cell in cells]

    assert losses() == sorted(losses(), reverse=True)
    head = table.locator("th", has_text="loss")
    head.locator("button").click()
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending" and losses() == sorted(losses())
    table.locator("th", has_text="it is").locator("button").click()
    kinds = table.locator("tr.clip td:nth-child(2)").all_text_contents()
    assert kinds == sorted(kinds)


@pytest.mark.slow
@needs_browser
def test_the_page_of_many_clips_is_small_opens_fast_and_has_pages(browser, tmp_path):
    data = make(tmp_path, n_sources=200)
    labels = str(data.path("lists", "heldout", "testA_labels.tsv"))
    many = write_robustness(tmp_path / "many.tsv", [f"system {i}" for i in range(35)])
    how = ("--split", "testA", "--labels", labels, "--robustness", str(many))
    assert data.compare(*how) == 0
    path = data.path("out", "testA", "report.html")
    text = path.read_text()
    assert "800 clips" in text and len(text) < 600_000
    assert len(re.findall(r'id="clip-\d+"', text)) <= 60  # 30 mistakes, 30 disagreements
    began = time.monotonic()
    with opened(browser, path, tmp_path) as tab:
        tab.locator("#mistakes .open").first.click()
        assert tab.locator("#mistakes .lanes svg").count() == 1
        assert time.monotonic() - began < 3
        section = tab.locator("#robustness details")
        section.locator("summary").click()
        shown, said = section.locator("tbody tr:visible"), section.locator(".pages [role=status]")
        assert shown.count() == 50 and said.text_content() == "rows 1 to 50 of 70"
        section.get_by_role("button", name="next").click()
        assert shown.count() == 20 and said.text_content() == "rows 51 to 70 of 70"
        assert section.get_by_role("button", name="next").is_disabled()
        section.locator("th", has_text="clean").locator("button").click()
        assert shown.count() == 50 and said.text_content() == "rows 1 to 50 of 70"


@needs_browser
def test_a_row_opens_a_timeline_with_a_synchronous_cursor(tab):
    row = tab.locator("#disagreements tr.clip", has_text="<img src=x").first
    button = row.locator(".open")
    button.click()
    opened = tab.locator("#disagreements tr.timeline")
    assert button.get_attribute("aria-expanded") == "true"
    lanes = opened.locator(".lanes svg").text_content()
    for lane in (
        *("picture", "waveform", "mouth features", "frame scores", "proposals of two/frames"),
        "true fake audio",
    ):
        assert lane in lanes
    assert WORDS in opened.locator(".words").text_content()
    assert "two/frames" in opened.locator(".key").text_content()
    video = opened.locator("video")
    eventually(lambda: video.evaluate("video => video.readyState >= 1"))
    box = opened.locator(".lanes").bounding_box()
    opened.locator(".lanes").click(position={"x": box["width"] / 2, "y": 90})
    assert "in truth fake" in opened.locator(".readout").text_content()
    assert video.evaluate("video => video.currentTime") == pytest.approx(0.6, abs=0.1)
    video.evaluate("video => { video.currentTime = 0.2; }")
    eventually(lambda: opened.locator(".readout").text_content().startswith("0.20 s"))
    keep(tab, "timeline")
    button.click()
    assert opened.count() == 0


@needs_browser
def test_clip_without_a_file_opens_all_the_same(tab):
    row = tab.locator("#disagreements tr.clip", has_text="testA-5/").first
    row.locator(".open").click()
    opened = tab.locator("#disagreements tr.timeline")
    assert (
        opened.locator("video").count() == 0
        and "frame scores" in opened.locator(".lanes svg").text_content()
    )
    assert "cannot be read" in opened.locator(".problem").text_content()


@needs_browser
def test_proposals_of_other_systems_show_on_a_press(tab):
    row = tab.locator("#disagreements tr.clip", has_text="testA-5/").first
    data = tab.locator(f"#{row.get_attribute('data-clip')}")
    swap = """data => {
        data.textContent = data.textContent.replace('"answer":true', '"answer":false');
    }"""
    data.evaluate(swap)
    row.locator(".open").click()
    lanes = tab.locator("#disagreements .lanes svg")
    hidden = "proposals of two/frames"
    assert "proposals of one/spans" in lanes.text_content() and hidden not in lanes.text_content()
    tab.locator("button.others", has_text="of 1 more").click()
    assert hidden in lanes.text_content()


@needs_browser
def test_a_curve_is_hidden_and_shown_by_its_name(tab):
    plot = tab.locator('figure[data-figure="roc"]')
    button = plot.locator(".toggle", has_text="one/sound")
    n_paths = plot.locator(".canvas > svg > path").count()
    assert button.get_attribute("aria-pressed") == "false"
    button.focus()
    tab.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    assert plot.locator(".canvas > svg > path").count() == n_paths + 1
    plot.locator(".canvas > svg").hover(position={"x": 62, "y": 290})  # where both rates are 0
    assert re.search(r": \S+, \S+", plot.locator(".tip").text_content())


@needs_browser
def test_any_clip_is_ten_tabs_away_at_most(tab):
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")  # skip to the clips
    for _ in range(8):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.className") == "open":
            break
    rows = tab.locator("#mistakes .open")
    assert tab.evaluate("document.activeElement.textContent") == rows.first.text_content()
    tab.keyboard.press("End")
    assert tab.evaluate("document.activeElement.textContent") == rows.last.text_content()
    tab.keyboard.press("Enter")
    assert tab.locator("#mistakes tr.timeline").count() == 1


@needs_browser
def test_print_has_all_plots_and_dark_pages_have_light_text(tab):
    plots = tab.locator("figure.plot")
    tab.emulate_media(media="print", color_scheme="dark")
    widths = [plot.locator(".canvas > *").first.bounding_box()["width"] for plot in plots.all()]
    assert widths and min(widths) > 100
    colour = "getComputedStyle(document.body).{}"
    assert tab.evaluate(colour.format("backgroundColor")) == "rgb(255, 255, 255)"
    tab.emulate_media(media="screen", color_scheme="dark")
    for name, light in (("color", True), ("backgroundColor", False)):
        levels = re.findall(r"\d+", tab.evaluate(colour.format(name)))
        assert (sum(map(int, levels[:3])) > 384) is light
    keep(tab, "dark", full_page=True)
    # paper is laid out after all events, so that a drawing has to fit it as it is
    narrow = """svg => {
        svg.parentNode.style.width = "200px";
        const [drawn, box] = [svg.viewBox.baseVal, svg.getBoundingClientRect()];
        return [box.width, box.width / box.height - drawn.width / drawn.height];
    }"""
    for drawing in tab.locator(".canvas > svg").all():
        width, bent = drawing.evaluate(narrow)
        assert width <= 200 and abs(bent) < 0.01


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_a_contrast_of_four_and_a_half(tab, scheme):
    tab.emulate_media(color_scheme=scheme)
    style = "getComputedStyle(document.documentElement).getPropertyValue('--{}')"
    colours = {
        name: tab.evaluate(style.format(name)).strip()
        for name in ("page", "ink", "soft", "accent", "warn", "tint", "alarm", "alarm-tint")
    }
    pairs = [
        (name, ground) for name in ("ink", "soft", "accent", "warn") for ground in ("page", "tint")
    ]
    for text, ground in [*pairs, ("alarm", "alarm-tint")]:
        light, dark = sorted(map(luminance, (colours[text], colours[ground])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


def luminance(colour: str) -> float:
    """Relative luminance of #rgb or #rrggbb (WCAG 2.1)."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    levels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in levels]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_page_says_first_where_it_comes_from_and_what_to_submit(report):
    text = report.read_text()
    top = text[text.index("<body>") : text.index('id="mistakes"')]
    assert re.search(r"one/both calls \d of 8 real clips fake, and \d+ of 24 fake clips fake", text)
    assert 'title="how well scores rank fakes above reals' in top
    for word in ("32 clips", "klassify 0", "of 8 sources", "Task 1: ", "picture alone", "guessing"):
        assert word in top, word


def test_every_head_has_a_meaning():
    for columns in (*tables.TABLES.values(), tables.ABOUT):
        assert all(column.help for column in columns if column.title)


def test_pictures_leave_room_for_everything_else():
    assert IMAGE_BYTES * 4 / 3 + 2_000_000 < page.MAX_BYTES
