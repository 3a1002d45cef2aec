"""Explanations of the systems of a detector, for clips that they have scored."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from klassify.data.base import NoAnswer, Reader, Sources
from klassify.data.mouth import MouthFeatures
from klassify.data.visual import VisualClip
from klassify.errors import KlassifyError
from klassify.explanation import fusions
from klassify.explanation.answering import Answering
from klassify.explanation.axes import Axis, axes_of, features_of
from klassify.explanation.contributions import (
    FRAME_SCORES,
    MODALITIES,
    Contribution,
    Explanation,
    SystemExplanation,
    span,
)
from klassify.explanation.integrated import integrated_gradients
from klassify.explanation.squares import occluded_squares
from klassify.features.lips import LipsRow
from klassify.grid.frames import FRAME_S
from klassify.models.audio_encoder import AudioFrameModel
from klassify.models.devices import pick_device
from klassify.models.lips import LipMIL
from klassify.scores.clip_scores import read_reasons
from klassify.scores.frame_file import FrameFile
from klassify.scores.score_file import ScoreFile
from klassify.systems.base import System
from klassify.systems.fused import Fused
from klassify.systems.linear import Linear
from klassify.systems.merged import Merged
from klassify.systems.scores import to_probability
from klassify.systems.stack import Stack
from klassify.systems.trained import Trained

OCCLUSION, GRADIENTS = "occlusion", "integrated gradients"
BATCH = 32  # windows


class Explainer:
    """Explains why systems give the clips of a split their scores, which must be there.

    answer: the system whose answer the sentence tells. others: systems to explain beside it and its
    inputs. loaded: {name: (model, data)} of models that are loaded already; others are loaded when
    they are needed, and kept.
    """

    def __init__(
        self,
        answer: System,
        split: str,
        sources: Sources,
        *,
        others: Sequence[System] = (),
        device: str = "auto",
        loaded: Mapping[str, tuple[Any, Any]] | None = None,
    ):
        found = [one for top in (answer, *others) for one in top.with_inputs()]
        self.systems = {one.name: one for one in found}
        self.answer, self.split = answer, split
        self.device = pick_device(device)
        self.models = dict(loaded or {})
        of = self.systems  # of each, what follows is read once
        self._clips = functools.cache(lambda name: of[name].clip_scores(split))
        self._frames = functools.cache(lambda name: FrameFile(of[name].frames_path(split)))
        self._readers = functools.cache(lambda name: of[name].data().reader(sources, split))
        self._places = functools.cache(
            lambda name: {file: row for row, file in enumerate(self._clips(name).table["file"])}
        )

    def explain(self, file: str) -> Explanation:
        """Why the systems give this clip their scores."""
        found = {name: self._system(one, file) for name, one in self.systems.items()}
        return Explanation(file, self._sentence(file, found), found)

    def answering(self, system: Trained) -> Answering:
        """The loaded model of a system, which scores variants of clips."""
        if system.name not in self.models:
            self.models[system.name] = system.load()
        model, data = self.models[system.name]
        aggregate = self._clips(system.name).header.settings["aggregate"]
        return Answering(model, data, aggregate, self.device, BATCH)

    def reader(self, system: Trained) -> Reader:
        """What reads clips for a system."""
        return self._readers(system.name)

    def clip_score(self, system: System, file: str) -> ScoreFile:
        """The clip scores of a system with the row of one clip alone."""
        scores, place = self._clips(system.name), self._places(system.name).get(file)
        if place is None:
            raise KlassifyError(
                f"{system.name} has no score of {file}.", where=system.path(self.split, "clips")
            )
        return ScoreFile(scores.header, scores.table.iloc[[place]])

    def _system(self, system: System, file: str) -> SystemExplanation:
        about = (system.name, system.kind, system.modality, system.scale)
        if isinstance(system, Merged):
            names = " and ".join(one.name for one in system.input_systems)
            note = f"joins the proposals of {names}: see their frame scores"
            return SystemExplanation(*about, np.nan, np.nan, (), note)
        row = self.clip_score(system, file)
        score = float(row.table["score"].iloc[0])
        probability = float(to_probability(np.array([score]), system.scale)[0])
        if isinstance(system, Trained):
            contributions, note = self._model(system, file)
        else:
            contributions, note = self._derived(system, file)
        return SystemExplanation(*about, score, probability, tuple(contributions), note)

    def _derived(self, system: System, file: str) -> tuple[list[Contribution], str]:
        inputs = system.input_systems
        if isinstance(system, Linear):
            sources = [self._frames(one.name) for one in inputs]
            found = fusions.of_linear(system, sources, file)
        else:
            scores = [self.clip_score(one, file) for one in inputs]
            found = [one for one in [fusions.over_systems(system, scores)] if one is not None]
        if not found:
            return [], "no input has an answer"
        if found[0].method == fusions.DECIDES:
            return found, f"decided by {found[0].names[int(np.argmax(np.abs(found[0].values)))]}"
        return found, ""

    def _model(self, system: Trained, file: str) -> tuple[list[Contribution], str]:
        if reason := read_reasons(system.folder, self.split).get(file):
            return [], f"no answer: {reason}"
        try:
            found = self.contributions(system, file)
        except NoAnswer as error:
            return [], f"no answer: {error}"
        except KlassifyError as error:
            return [], f"no answer: {error.what}"
        if not found:
            return [], f"no method explains models on {type(system.data()).__name__}"
        return found, ""

    def contributions(self, system: Trained, file: str) -> list[Contribution]:
        """All contributions to a model's score of a clip. NoAnswer or KlassifyError for a clip that
        cannot be read.
        """
        answering, clip = self.answering(system), self.reader(system).read(file)
        found = self._frame_scores(system, clip, file) if has_telling_frames(answering) else []
        return found + explain_model(answering, clip)

    def _frame_scores(self, system: Trained, clip: Any, file: str) -> list[Contribution]:
        frames = self._frames(system.name)
        rows = frames.read([file], ["start", "end", "score"]).values
        values = np.where(system.data().valid_frames(clip, len(rows)), rows[:, 2], np.nan)
        edges = np.append(rows[:, 0], rows[-1, 1])
        return [Contribution("time", FRAME_SCORES, system.scale, values, edges)]

    def _sentence(self, file: str, found: Mapping[str, SystemExplanation]) -> str:
        parts = []
        said = self._modalities(file, found)
        for modality, probability in sorted(said.items(), key=lambda item: -np.nan_to_num(item[1])):
            if np.isnan(probability):
                parts.append(f"{MODALITIES[modality]}: no answer")
                continue
            text = f"{MODALITIES[modality]} {probability:.2f}"
            model = self._leading(self.answer, modality, found)
            over_time = found[model].over("time") if model else None
            where = over_time.mostly() if over_time is not None and probability >= 0.5 else None
            if where is not None:
                text += f", mostly {span(*where)}"
            parts.append(text)
        return "; ".join(parts)

    def _modalities(self, file: str, found: Mapping[str, SystemExplanation]) -> dict[str, float]:
        answer = self.answer
        if isinstance(answer, (Fused, Stack, Linear)):
            scores = [self.clip_score(one, file) for one in answer.input_systems]
            return fusions.modality_probabilities(answer, scores)
        return {answer.modality: found[answer.name].probability}

    def _leading(
        self, system: System, modality: str, found: Mapping[str, SystemExplanation]
    ) -> str | None:
        """The model of a modality behind a system whose probability is the highest."""
        while not isinstance(system, Trained):
            own = [one for one in system.input_systems if one.modality == modality]
            own = [one for one in own if not np.isnan(found[one.name].probability)]
            if not own:
                return None
            system = max(own, key=lambda one: found[one.name].probability)
        return system.name


def explain_model(answering: Answering, clip: Any) -> list[Contribution]:
    """The contributions to a model's score of a clip that its data class's reader returned, without
    the frame scores of a model of frames.
    """
    data, model, found = answering.data, answering.model, []
    if isinstance(data, MouthFeatures):
        return _gradients(answering, clip)
    map_ = occluded_squares(answering, clip)
    if map_ is not None:
        picture = {"frame_s": map_.frame_s, "image": map_.image}
        found.append(Contribution("picture", OCCLUSION, data.scale, map_.values, **picture))
    if isinstance(clip, VisualClip):  # its frames would all be held in memory
        return found
    axes = axes_of(data, model, clip)
    pools = isinstance(model, LipMIL)
    if pools:
        found.insert(0, _pooled_frames(answering, clip))
    by_parts = not (pools or has_telling_frames(answering))
    wanted = {"time": by_parts, "frequency": True, "modalities": True}
    # its best frames are sure of a fake in any few bands: without one of them nothing changes
    alone = {"frequency"} if isinstance(model, AudioFrameModel) else set()
    found += [
        occlusion(answering, axis, axis.over in alone)
        for axis in axes.values()
        if wanted.get(axis.over)
    ]
    return found


def has_telling_frames(answering: Answering) -> bool:
    """Whether frame scores say what the score of a clip rests on. Of sound models that learn from
    splices they do not always: hiding the highest did not beat random orders (RESULTS.md).
    """
    spliced = isinstance(answering.model, AudioFrameModel) and answering.data.splice
    return answering.of_frames and not spliced


def _gradients(answering: Answering, clip: Any) -> list[Contribution]:
    data = answering.data
    found = integrated_gradients(answering.model, data, clip, answering.aggregate)
    names = features_of(data)
    map_ = found.values.reshape(len(found.values), 2, len(names)).sum(axis=1)
    edges = np.arange(len(map_) + 1) * FRAME_S
    method = f"{GRADIENTS}, sum within {max(abs(found.error), 1e-4):.2g}"
    how = {"method": method, "unit": "log-odds", "rest": found.baseline}
    made = [
        Contribution("features", values=map_.sum(axis=0), names=names, **how),
        Contribution("features over time", values=map_, edges=edges, names=names, **how),
    ]
    if not answering.of_frames:
        made.insert(0, Contribution("time", values=map_.sum(axis=1), edges=edges, **how))
    return made


def _pooled_frames(answering: Answering, clip: LipsRow) -> Contribution:
    """The log-odds of the frames that the model pools to its score, the highest of the windows that
    have a frame; NaN where none does.
    """
    values = np.full(len(clip.valid), np.nan)
    for window in answering.data.cut(clip):
        batch = {name: x[None].to(answering.device) for name, x in window.inputs.items()}
        with torch.inference_mode():
            logit = answering.model(batch["crops"], batch["valid"]).logit[0]
        logit = logit.masked_fill(~batch["valid"][0], torch.nan).float().cpu().numpy()
        place = slice(round(window.start_s / FRAME_S), round(window.end_s / FRAME_S))
        values[place] = np.fmax(values[place], logit)
    edges = np.arange(len(values) + 1) * FRAME_S
    return Contribution("time", FRAME_SCORES, answering.data.scale, values, edges)


def occlusion(answering: Answering, axis: Axis, alone: bool = False) -> Contribution:
    """By how much the score falls without each part of a clip; with `alone`, also by how much it
    rises from nothing to that part alone. Without anything left to score, the score counts as 0.
    """
    each = np.eye(len(axis), dtype=bool)
    hidden = np.concatenate([np.zeros((1, len(axis)), bool), each])
    if alone:
        hidden = np.concatenate([hidden, ~hidden])
    scores = np.nan_to_num(answering.scores(axis.without(row) for row in hidden))
    falls = scores[0] - scores[1 : len(axis) + 1]
    unit = answering.data.scale
    if not alone:
        return Contribution(axis.over, OCCLUSION, unit, falls, axis.edges, axis.names)
    nothing, only = scores[len(axis) + 1], scores[len(axis) + 2 :]
    values = falls + only - nothing
    return Contribution(axis.over, f"{OCCLUSION}, and alone", unit, values, axis.edges, axis.names)
