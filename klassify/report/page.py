"""report.html: one file with everything in it, made from the aggregates of a comparison and a
sample of its clips.

File names, reasons and an LMM's words are foreign text: the template escapes all of it, data is
JSON without a `<`, scripts insert text as text only, and a content security policy allows only the
two scripts of this page and no request to any host.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import importlib.util
import json
import shlex
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from klassify.errors import KlassifyError
from klassify.evaluation import leaks
from klassify.evaluation.decisions import MORE, cost_note
from klassify.files import write_text
from klassify.report import clips, plots, summary, tables
from klassify.report.agreement import Calibrated
from klassify.report.comparison import Comparison
from klassify.report.drift import LARGE

LIBRARY = "jinja2"
SCRIPTS = ("timeline.js", "plots.js", "page.js")
MAX_BYTES = 10_000_000
MAX_MISSING = 100
FAILED_SHARE = 0.01  # of the clips, above which a failing system is warned of
SECTIONS = {
    "headline": "Answers",
    "mistakes": "Mistakes",
    "disagreements": "Disagreements",
    "task1": "Task 1",
    "task2": "Task 2",
    "groups": "Groups",
    "agreement": "Agreement",
    "drift": "Drift",
    "leaks": "Leaks",
    "shortcuts": "Shortcuts",
    "robustness": "Robustness",
    "crosstest": "Other data",
    "coverage": "Coverage",
    "words": "Systems and words",
}


def check_library() -> None:
    """KlassifyError if the library that the page needs is not installed."""
    if importlib.util.find_spec(LIBRARY) is None:
        raise KlassifyError(f"The report needs {LIBRARY}.", fix="pip install 'klassify[report]'")


def write(
    path: Path,
    result: Comparison,
    *,
    media_root: Path | None,
    features: Path | None,
    n_clips: int,
    n_explained: int = 0,
    command: Sequence[str] = ("klassify", "compare"),
) -> None:
    """Write the page; KlassifyError if it is larger than MAX_BYTES. command: that it shows.

    n_explained: of the mistakes and of the disagreements, so many are explained, which needs media
    and features.
    """
    import jinja2

    drawn = plots.of(result)
    content = _words(result) | _clips(
        result, path.parent, media_root, features, n_clips, n_explained
    )
    content |= {"figures": drawn, "tables": tables.of(result), "words": tables.words()}
    content["heads"] = tables.CLIPS
    content["provenance"] = summary.provenance(result, media_root)
    content["command"] = shlex.join(command)
    content["sections"] = {
        name: title for name, title in SECTIONS.items() if _has_section(name, content)
    }
    script = '"use strict";\n' + "".join(map(_text, SCRIPTS))
    content |= {"script": _safe(script), "css": _safe(_text("page.css")), "policy": _policy(script)}
    content["figures_json"] = _json({name: plot.variants for name, plot in drawn.items()})
    settings = {"undefined": jinja2.StrictUndefined, "trim_blocks": True}
    template = jinja2.Environment(autoescape=True, **settings).from_string(_text("page.html.j2"))
    page = template.render(**content)
    if len(page.encode()) > MAX_BYTES:
        raise KlassifyError(
            f"The page exceeds {MAX_BYTES / 1e6:.0f} MB.", where=path, fix="fewer --clips"
        )
    write_text(path, page)


def _text(name: str) -> str:
    return resources.files("klassify.report").joinpath(name).read_text(encoding="utf-8")


def _safe(text: str) -> str:
    """Text that is not escaped: this package's own, or JSON without any "<"."""
    from markupsafe import Markup

    return Markup(text)


def _json(content: Any) -> str:
    """JSON that is safe inside a script element, whatever its texts are."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return _safe(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _policy(script: str) -> str:
    """Content security policy: the page's own script, styles, pictures, and media files."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline';"
        " img-src data: blob:; media-src 'self' file:; base-uri 'none'; form-action 'none'"
    )


def _has_section(section: str, content: dict[str, Any]) -> bool:
    tables, figures = content["tables"], content["figures"]
    if section in ("mistakes", "disagreements"):
        return bool(content[section])
    if section == "groups":
        return (
            any(name.startswith("groups") for name in figures)
            or tables["rates-by-group"] is not None
            or tables["differences"] is not None
        )
    has = {
        "headline": True,
        "agreement": True,
        "words": True,
        "task1": "histogram" in figures,
        "task2": tables["frames"] is not None,
        "drift": tables["thresholds"] is not None,
    }
    return has.get(section, False) or tables[section] is not None


def _words(result: Comparison) -> dict[str, Any]:
    missing = result.tables["not-answered"]
    uncalibrated = sorted({one.how for one in result.calibrated if one.on_fit is None})
    calibration = "Scores are calibrated on val_fit first (Platt)."
    if uncalibrated:
        calibration = f"Some probabilities are {'; '.join(uncalibrated)}."
    return {
        "split": result.split,
        "title": result.title,
        "labelled": result.label is not None,
        "notes": result.notes,
        "recommendations": summary.recommendations(result),
        "confusions": summary.confusions(result),
        "guesses_like": result.answers2[-1].name if result.answers2 else "",
        "complete": bool(
            (result.tables["coverage"]["answered"] == result.tables["coverage"]["n"]).all()
        ),
        "warnings": _warnings(result),
        "leak_limit": leaks.WARN_ABOVE,
        "missing": [_missing(row) for _, row in missing.head(MAX_MISSING).iterrows()],
        "missing_count": len(missing),
        "calibration_note": calibration,
        "cost_note": cost_note(result.tables["costs"]) if "costs" in result.tables else "",
    }


def _missing(row: pd.Series) -> str:
    why = f" ({row['reason']})" if row["reason"] else ""
    return f"{row['system']}, task {row['task'][-1]}: {row['file']} {row['state']}{why}"


def leaks_in(result: Comparison) -> list[str]:
    """The traits of the files that tell fake from real better than they should, in words."""
    found = []
    for row in result.tables.get("leaks", pd.DataFrame()).itertuples():
        if row.leaks and row.auc_low > 0.5:  # else it may be chance
            found.append(
                f"{row.trait} alone tells fake from real with AUC {row.auc:.3f} ({row.n} clips)."
            )
    return found


def _warnings(result: Comparison) -> dict[str, list[str]]:
    """What a team must know before it believes the numbers: {summary: details}."""
    moved, broken, failing = [], [], []
    for row in result.tables.get("drift", pd.DataFrame()).itertuples():
        if row.psi > max(LARGE, row.by_chance):
            moved.append(f"{row.system}: PSI {row.psi:.2f}")
    for row in result.tables.get("thresholds", pd.DataFrame()).itertuples():
        if row.reading.startswith(MORE):
            broken.append(f"{row.system} at {row.point}: {row.reading}")
    for row in result.tables["coverage"].itertuples():
        if row.failed > FAILED_SHARE * row.n:
            task = row.task[-1]
            failing.append(f"{row.system}: {row.failed} of {row.n} clips (task {task})")
    found = {
        "possible leaks": leaks_in(result),
        "shortcuts in the content": [text for one in result.audits for text in one.warnings],
        "scores that have moved far from those of val": moved,
        "thresholds that do not hold": broken,
        f"answers that failed on more than {FAILED_SHARE:.0%} of the clips": failing,
    }
    return {f"{what} ({len(some)})": some for what, some in found.items() if some}


def _clips(
    result: Comparison,
    folder: Path,
    media_root: Path | None,
    features: Path | None,
    n_each: int,
    n_explained: int,
) -> dict[str, Any]:
    """The rows of both lists of clips, and the payload of each clip in them."""
    by_name = {one.name: one for one in result.calibrated}
    answers = [by_name[one.name] for one in result.answers1]
    rows, payloads = [], []
    if answers:
        timelines = clips.Timelines(result, media_root, features, folder)
        shown = clips.choose(answers, result.frame, result.label, n_each)
        explained: set[int] = set()
        if n_explained:
            from klassify.report.explanations import Explanations, first_of_each  # loads PyTorch

            explained = first_of_each(shown, n_explained)
            why = Explanations(result, media_root, features)
        for at, chosen in enumerate(shown):
            rows.append(_clip_row(result, answers, chosen) | {"id": f"clip-{at}"})
            payload = timelines.of(chosen.row)
            if chosen.row in explained:
                payload["why"] = why.of(chosen.row)
            payloads.append((f"clip-{at}", _json(payload)))
    mistakes = [row for row in rows if "mistake" in row["why"]]
    apart = [row for row in rows if "disagreement" in row["why"]]
    return {
        "mistakes": sorted(mistakes, key=lambda row: -row["loss"]),
        "disagreements": sorted(apart, key=lambda row: (-row["spread"], -row["highest"])),
        "payloads": payloads,
        "answer_names": [one.name for one in answers],
    }


def _clip_row(
    result: Comparison, answers: Sequence[Calibrated], chosen: clips.Chosen
) -> dict[str, Any]:
    probabilities = [float(one.probability[chosen.row]) for one in answers]
    raw = [float(one.raw[chosen.row]) for one in answers]
    clip, kind, wrong = result.frame.iloc[chosen.row], "", [False] * len(answers)
    if result.label is not None:
        kind = str(clip["modify_type"]).replace("_", " ")
        wrong = [(p > 0.5) != bool(result.label[chosen.row]) for p in probabilities]
    return {
        "file": str(clip["file"]),
        "type": kind,
        "probabilities": [
            {"text": f"{p:.3f}", "key": p, "wrong": is_wrong, "raw": f"{own:.3f}"}
            for p, own, is_wrong in zip(probabilities, raw, wrong)
        ],
        "highest": max(probabilities),
        **dataclasses.asdict(chosen),
    }
