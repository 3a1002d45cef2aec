"""What the page says first: where its numbers come from, which system to submit, what each modality
contributes, and what has changed since the last comparison.
"""

from __future__ import annotations

import ast
import datetime
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

import klassify
from klassify.corpus.build import RECORD
from klassify.files import read_json, read_yaml
from klassify.localisation.localise import read_proposals
from klassify.report.comparison import Comparison
from klassify.report.entries import Entry
from klassify.systems.experiment import CONFIG, ENVIRONMENT, SETTINGS, git_commit
from klassify.systems.merged import Merged
from klassify.systems.scores import PROPOSALS

METRIC = {"task1": "auc", "task2": "Score"}
METRIC_NAME = {"task1": "AUC", "task2": "Score"}
TITLE = {"task1": "Task 1", "task2": "Task 2"}
ALONE = {"visual": "picture alone", "audio": "sound alone"}
GUESSING = 0.5  # AUC


def measured(result: Comparison, task: str) -> dict[str, pd.Series]:
    """The row of each system in the table of a task; empty without labels."""
    table = result.tables.get(task, pd.DataFrame())
    return {row["system"]: row for _, row in table.iterrows()}


def guessing(result: Comparison, task: str) -> float:
    """What guessing reaches: AUC 0.5, and the Score of random proposals."""
    if task == "task1":
        return GUESSING
    table = result.tables.get("beside", pd.DataFrame())
    return float(table["Score"].iloc[0]) if len(table) else np.nan


def provenance(result: Comparison, media: Path | None) -> list[tuple[str, str]]:
    """(name, text) of what the page was made from, at this moment."""
    commit = git_commit()
    version = klassify.__version__
    code = f"klassify {version}, commit {commit[:10]}" if commit else f"klassify {version}"
    if commit.endswith("+changes"):
        code += " with uncommitted changes"
    now = datetime.datetime.now(datetime.timezone.utc)
    data = sorted(set(result.frame.get("dataset", pd.Series(dtype=str)).dropna()) - {""})
    corpus = media / RECORD if media is not None else None
    if corpus is not None and corpus.exists() and "difficulty" in read_json(corpus):
        data.append(f"generated corpus, seed {read_json(corpus)['seed']}")
    rows = [("clips", result.title)]
    rows += [("data set", ", ".join(data))] if data else []
    rows += [("made", f"{now:%Y-%m-%d %H:%M} UTC by {code}")]
    names = result.recipes
    rows += [(f"trained, {names[folder]}", text) for folder, text in _trainings(result)]
    return rows


def _trainings(result: Comparison) -> Iterator[tuple[Path, str]]:
    """Seeds and commits of the trained models of each recipe."""
    recipes: dict[Path, dict[str, set[str]]] = {}
    for one in result.entries:
        settings, environment = (_record(one, name) for name in (SETTINGS, ENVIRONMENT))
        known = recipes.setdefault(one.system.folder.parent, {"seed": set(), "commit": set()})
        known["seed"].add(str(settings.get("seed", "")))
        known["commit"].add(str(environment.get("commit") or "")[:10])
    for folder, known in recipes.items():
        words = [f"{name} {', '.join(sorted(some - {''}))}" for name, some in known.items()]
        words = [text for text in words if not text.endswith(" ")]
        if words:
            yield folder, "; ".join(words)


def _record(entry: Entry, name: str) -> Mapping:
    path = entry.system.folder / name
    return read_json(path) if path.exists() else {}


def recommendations(result: Comparison) -> list[str]:
    """For each task, which of the recipes' answers to submit, and how sure that is."""
    found = []
    for task, answers in (("task1", result.answers1), ("task2", result.answers2)):
        rows = measured(result, task)
        known = [rows[one.name] for one in answers if one.name in rows]
        known = [row for row in known if not pd.isna(row[METRIC[task]])]
        if known:
            known.sort(key=lambda row: -row[METRIC[task]])
            found.append(_recommendation(result, task, known))
    return found


def _recommendation(result: Comparison, task: str, rows: Sequence[pd.Series]) -> str:
    """rows: of the answers, best first."""
    metric, best = METRIC[task], rows[0]
    value = f"{METRIC_NAME[task]} {best[metric]:.3f}{_interval(best, metric)}"
    chance = guessing(result, task)
    low = best[f"{metric}_low"]
    if best[metric] <= chance or low <= chance:
        return (
            f"{TITLE[task]}: nothing to submit yet. {best['system']} is ahead with {value}, which"
            f" these clips do not tell from guessing ({chance:.3f})."
        )
    text = f"{TITLE[task]}: submit {best['system']}, {value}"
    if len(rows) == 1:
        return f"{text}; guessing reaches {chance:.3f}."
    rival = rows[1]["system"]
    gain, low, high = difference(result, metric, best["system"], rival)
    if np.isnan(low):
        return f"{text}; {gain:+.3f} ahead of {rival}, without an interval."
    ahead = f"{gain:+.3f} [{low:+.3f}, {high:+.3f}] ahead of {rival}"
    if low > 0:
        return f"{text}; {ahead}."
    return f"{text}; {ahead}, from which these clips do not tell it apart."


def _interval(row: pd.Series, name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return "" if pd.isna(low) else f" [{low:.3f}, {high:.3f}]"


def confusions(result: Comparison) -> list[str]:
    """For each answer to Task 1, how many clips a calibrated 0.5 gets wrong; [] without labels."""
    if result.label is None:
        return []
    names, is_fake = {one.name for one in result.answers1}, result.label == 1
    found = []
    for one in result.calibrated:
        if one.name in names:
            called = one.probability > 0.5
            alarms, hits = (called & ~is_fake).sum(), (called & is_fake).sum()
            found.append(
                f"{one.name} calls {alarms} of {(~is_fake).sum()} real clips fake, and {hits} of"
                f" {is_fake.sum()} fake clips fake."
            )
    return found


def difference(result: Comparison, metric: str, a: str, b: str) -> tuple[float, float, float]:
    """a minus b with the ends of its interval; NaN if it was not measured."""
    table = result.tables.get("differences", pd.DataFrame(columns=["metric", "a", "b"]))
    table = table[table["metric"] == metric]
    for first, second, sign in ((a, b, 1), (b, a, -1)):
        found = table[(table["a"] == first) & (table["b"] == second)]
        if len(found):
            row = found.iloc[0]
            ends = sorted([sign * row["difference_low"], sign * row["difference_high"]])
            return sign * row["difference"], *ends
    return np.nan, np.nan, np.nan


def contributions(result: Comparison) -> pd.DataFrame:
    """What each modality reaches alone, and both together: one row per recipe, task and kind.

    `picture alone` and `sound alone` are the best such inputs of the recipe's answer on val_fit, so
    that they are not chosen on these clips. `gain`: of both over the better of the two.
    """
    rows, names = [], result.recipes
    for task, answers in (("task1", result.answers1), ("task2", result.answers2)):
        known = measured(result, task)
        for answer in answers:
            alone = _alone(result, task, answer, known)
            if answer.system.modality != "both" or len(alone) < 2 or answer.name not in known:
                continue
            named = {ALONE[modality]: one.name for modality, one in alone.items()}
            better = max(alone.values(), key=lambda one: known[one.name][METRIC[task]]).name
            gain = difference(result, METRIC[task], answer.name, better)
            for kind, name in {**named, "both": answer.name}.items():
                row = {"recipe": names[answer.system.folder.parent], "task": task, "kind": kind}
                values = [known[name].get(f"{METRIC[task]}{end}") for end in ("", "_low", "_high")]
                row |= {"system": name, **dict(zip(("value", "value_low", "value_high"), values))}
                ends = gain if kind == "both" else (np.nan,) * 3
                rows.append(row | dict(zip(("gain", "gain_low", "gain_high"), ends)))
    return pd.DataFrame(rows)


def _alone(
    result: Comparison, task: str, answer: Entry, known: Mapping[str, pd.Series]
) -> dict[str, Entry]:
    """The best input of each single modality by what val_fit says of it."""
    folders = {one.folder for one in answer.system.with_inputs()}
    on_val = {one.name: one.auc_on_fit for one in result.calibrated}
    ranked = []
    for one in result.entries:
        if one.system.folder in folders and one.name in known:
            ranked.append((on_val.get(one.name, np.nan) if task == "task1" else _tuned(one), one))
    ranked.sort(key=lambda pair: -np.nan_to_num(pair[0], nan=-1.0))
    found: dict[str, Entry] = {}
    for _, one in ranked:
        found.setdefault(one.system.modality, one)
    return {modality: found[modality] for modality in ALONE if modality in found}


def _tuned(entry: Entry) -> float:
    """The Score on val_fit that `klassify tune` wrote down."""
    path = entry.system.folder / PROPOSALS
    return read_proposals(path).get("tuned", {}).get("score", np.nan) if path.exists() else np.nan


def described(entry: Entry) -> str:
    """What a system is, in words, from its own files."""
    system = entry.system
    inputs = [one.name for one in system.input_systems]
    if system.kind == "model":
        return _of_model(system.folder / CONFIG)
    if system.kind == "calibrated":
        return f"{inputs[0]}, calibrated on val_fit"
    if isinstance(system, Merged):
        return f"proposals of {', '.join(inputs)} together"
    return f"{system.parameters.get('rule', 'fusion')} of {', '.join(inputs)}"


def _of_model(config: Path) -> str:
    """What a model's file, which is not run, says first, and the name of its class."""
    if not config.exists():
        return "a model"
    module, _, name = read_yaml(config)["model"]["class_path"].rpartition(".")
    file = Path(klassify.__file__).parents[1].joinpath(*module.split(".")).with_suffix(".py")
    about = ast.get_docstring(ast.parse(file.read_text("utf-8"))) if file.is_file() else None
    if not about:
        return f"{name} model"
    first = about.split("\n\n")[0].replace("\n", " ")
    return f"{first} ({name})"


def earlier(folder: Path) -> dict[str, pd.DataFrame]:
    """The tables of both tasks that a comparison left in its output folder."""
    paths = {task: folder / f"{task}.tsv" for task in METRIC}
    return {task: pd.read_csv(path, sep="\t") for task, path in paths.items() if path.exists()}


def changes(result: Comparison, before: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Systems whose main number differs from that of the last comparison: before, now, change."""
    rows = []
    for task, table in before.items():
        metric, now = METRIC[task], measured(result, task)
        if not {"system", metric} <= set(table):
            continue
        for name, value in zip(table["system"], table[metric]):
            if name in now and abs(now[name][metric] - value) > 1e-6:
                row = {"system": name, "metric": METRIC_NAME[task], "before": value}
                rows.append(row | {"now": now[name][metric], "change": now[name][metric] - value})
    return pd.DataFrame(rows)
