"""report.html: one file with everything in it, made from the aggregates of a comparison and a
sample of its clips.

Names of files, reasons and an LMM's words are strangers' text: the template escapes all of it, data
travels as JSON without a `<`, scripts put text into the page as text only, and a content security
policy allows no script but the two of this page, and no request to any host.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import itertools
import json
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from klassify.errors import KlassifyError
from klassify.evaluation import leaks
from klassify.files import write_text
from klassify.report import clips, plots, tables
from klassify.report.comparison import Comparison
from klassify.report.drift import LARGE

LIBRARIES = ("jinja2", "plotly")
MAX_BYTES = 12_000_000
MAX_MISSING = 100
FAILED_SHARE = 0.01  # of the clips, above which a failing system is warned of
SECTIONS = {
    "headline": "Answers",
    "coverage": "Coverage",
    "task1": "Task 1",
    "task2": "Task 2",
    "groups": "Groups",
    "agreement": "Agreement",
    "drift": "Drift",
    "leaks": "Leaks",
    "mistakes": "Mistakes",
    "disagreements": "Disagreements",
}


def check_libraries() -> None:
    """KlassifyError where a library that the page needs is not installed."""
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise KlassifyError(
            f"The report needs {' and '.join(missing)}.", fix="pip install -e '.[report]'"
        )


def write(
    path: Path, result: Comparison, *, media_root: Path | None, features: Path | None, n_clips: int
) -> None:
    """Write the page; KlassifyError should it come out larger than MAX_BYTES."""
    from plotly.offline import get_plotlyjs

    drawn = plots.of(result)
    content = _words(result) | _clips(result, path.parent, media_root, features, n_clips)
    content |= {"figures": drawn, "tables": tables.of(result)}
    content["sections"] = [(name, SECTIONS[name]) for name in SECTIONS if _is_there(name, content)]
    scripts = {"plotly_js": get_plotlyjs(), "page_js": _text("timeline.js") + _text("page.js")}
    for name, text in scripts.items():
        if "</script" in text.lower() or "<!--" in text or "\r" in text:
            raise KlassifyError(
                f"{name} cannot stand inside a page.", fix="install the plotly of constraints.txt"
            )
    content |= {name: _safe(text) for name, text in scripts.items()}
    content |= {"css": _safe(_text("page.css")), "policy": _policy(scripts.values())}
    content["figures_json"] = _json({name: plot.variants for name, plot in drawn.items()})
    page = _template().render(**content)
    if len(page.encode()) > MAX_BYTES:
        raise KlassifyError(
            f"The page exceeds {MAX_BYTES / 1e6:.0f} MB.", where=path, fix="fewer --clips"
        )
    write_text(path, page)


def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.from_string(_text("page.html.j2"))


def _text(name: str) -> str:
    return resources.files("klassify.report").joinpath(name).read_text(encoding="utf-8")


def _safe(text: str) -> str:
    """Not to be escaped: this package's own text, or JSON without a single "<"."""
    from markupsafe import Markup

    return Markup(text)


def _json(content: Any) -> str:
    """JSON that can stand inside a script element whatever its texts say."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return _safe(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _policy(scripts: Iterable[str]) -> str:
    """Content security policy: these scripts, styles and pictures of the page itself, media
    files, nothing else.
    """
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    allowed = " ".join(f"'sha256-{one}'" for one in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:;"
        " media-src 'self' file:; base-uri 'none'; form-action 'none'"
    )


def _is_there(section: str, content: dict[str, Any]) -> bool:
    if section in ("headline", "coverage", "agreement"):
        return True
    if section in ("mistakes", "disagreements"):
        return bool(content[section])
    if section == "groups":
        return any(name.startswith("groups") for name in content["figures"])
    if section == "task1" and "histogram" in content["figures"]:
        return True
    return content["tables"][section] is not None or (
        section == "task2" and content["tables"]["frames"] is not None
    )


# ------------------------------------------------------------------------------ texts


def _words(result: Comparison) -> dict[str, Any]:
    missing = result.tables["not-answered"]
    as_it_is = sorted({one.how for one in result.calibrated if one.on_fit is None})
    return {
        "split": result.split,
        "title": result.title,
        "labelled": result.label is not None,
        "notes": result.notes,
        "verdicts": _verdicts(result),
        "warnings": _warnings(result),
        "leak_limit": leaks.WARN_ABOVE,
        "missing": [_missing(row) for _, row in missing.head(MAX_MISSING).iterrows()],
        "missing_count": len(missing),
        "calibration_note": (
            f"Some probabilities are taken {'; '.join(as_it_is)}."
            if as_it_is
            else "Scores are calibrated on val_fit first (Platt)."
        ),
        "footer": f"klassify compare: {len(result.frame)} clips, {len(result.entries)} systems.",
    }


def _missing(row: pd.Series) -> str:
    why = f" ({row['reason']})" if row["reason"] else ""
    return f"{row['system']}, task {row['task'][-1]}: {row['file']} {row['state']}{why}"


def _warnings(result: Comparison) -> list[str]:
    """What a team must know before it believes the numbers."""
    found = []
    if "leaks" in result.tables:
        for row in result.tables["leaks"].query("leaks").itertuples():
            chance = " Its interval holds 0.5: this may be chance." if row.auc_low <= 0.5 else ""
            found.append(
                f"Possible leak: {row.trait} alone tells fake from real with AUC"
                f" {row.auc:.3f}.{chance}"
            )
    if "drift" in result.tables:
        for row in result.tables["drift"].itertuples():
            if row.psi > max(LARGE, row.by_chance):
                found.append(
                    f"The scores of {row.system} have moved far from those of val (PSI"
                    f" {row.psi:.2f})."
                )
    for row in result.tables["coverage"].itertuples():
        if row.failed > FAILED_SHARE * row.n:
            found.append(
                f"{row.system} failed on {row.failed} of {row.n} clips (task {row.task[-1]})."
            )
    return found


def _verdicts(result: Comparison) -> list[str]:
    """The answers of the recipes against each other, in words."""
    if "differences" not in result.tables:
        return []
    table = result.tables["differences"]
    found = []
    for answers, metric in ((result.answers1, "auc"), (result.answers2, "Score")):
        for a, b in itertools.combinations([one.name for one in answers], 2):
            chosen = table[(table["metric"] == metric) & (table["a"] == a) & (table["b"] == b)]
            found += [_verdict(row) for row in chosen.itertuples()]
    return found


def _verdict(row: Any) -> str:
    name = (
        f"{tables.NAMES.get(row.metric, row.metric)} of {row.a} minus {row.b}:"
        f" {row.difference:+.4f}"
    )
    if pd.isna(row.difference_low):
        return f"{name}."
    if row.difference_low > 0 or row.difference_high < 0:
        verdict = f"{row.a if row.difference > 0 else row.b} is better"
    else:
        verdict = "these clips do not tell them apart"
    return f"{name} [{row.difference_low:+.4f}, {row.difference_high:+.4f}]: {verdict}."


# ------------------------------------------------------------------------------ clips


def _clips(
    result: Comparison, folder: Path, media_root: Path | None, features: Path | None, n_each: int
) -> dict[str, Any]:
    """The rows of both lists, and the payload of each clip in them."""
    names = [one.name for one in result.answers1]
    by_name = {one.name: one for one in result.calibrated}
    answers = [by_name[name] for name in names]
    rows: dict[str, list[dict[str, Any]]] = {"mistake": [], "disagreement": []}
    payloads = []
    if answers:
        timelines = clips.Timelines(
            result.entries,
            result.frame,
            result.split,
            media_root=media_root,
            features=features,
            page_folder=folder,
            labelled=result.label is not None,
        )
        for at, chosen in enumerate(clips.choose(answers, result.frame, result.label, n_each)):
            row = _clip_row(result, answers, chosen) | {"id": f"clip-{at}"}
            payloads.append((row["id"], _json(timelines.of(chosen.row))))
            for why in chosen.why:
                rows[why].append(row)
    mistakes = sorted(rows["mistake"], key=lambda row: -row["loss"])
    apart = sorted(rows["disagreement"], key=lambda row: (-row["spread"], -row["highest"]))
    return {
        "mistakes": mistakes,
        "disagreements": apart,
        "payloads": payloads,
        "answer_names": names,
    }


def _clip_row(result: Comparison, answers: Sequence[Any], chosen: clips.Chosen) -> dict[str, Any]:
    truth = None if result.label is None else bool(result.label[chosen.row])
    probabilities = [float(one.probability[chosen.row]) for one in answers]
    return {
        "file": str(result.frame["file"].iloc[chosen.row]),
        "type": (
            ""
            if truth is None
            else str(result.frame["modify_type"].iloc[chosen.row]).replace("_", " ")
        ),
        "probabilities": [
            {"text": f"{p:.3f}", "key": p, "wrong": truth is not None and (p > 0.5) != truth}
            for p in probabilities
        ],
        "highest": max(probabilities),
        "loss": chosen.loss,
        "spread": chosen.spread,
    }
