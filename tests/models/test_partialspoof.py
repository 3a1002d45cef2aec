"""PartialSpoof matches the published back end; padding, length, labels and scores on every grid."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from fill import load, make_input
from front_ends import Framed
from places import GOLDENS
from published import TINY, golden_state
from together import command
from torch import nn

from klassify import cli
from klassify.data.base import Examples, Sources
from klassify.data.partialspoof import (
    PartialSpoofFrames,
    labels_by_resolution,
    on_frames,
    scale_labels,
)
from klassify.grid import frames
from klassify.grid.frames import IGNORE
from klassify.lists import data_list, subsets
from klassify.metrics.clips import roc_auc
from klassify.models import partialspoof
from klassify.models.frontends.ssl import SSLFrontEnd
from klassify.models.partialspoof import (
    CELL_SAMPLES,
    LOOKAHEAD,
    RESOLUTIONS_MS,
    SHIFTS,
    MultiResolution,
    PartialSpoof,
    p2sgrad_loss,
    top_mean,
)
from klassify.models.weights.load import import_state
from klassify.scores import score_file
from klassify.scores.inference import clip_frames
from klassify.training.validation import validate

GOLDEN, EXPECTED = load(GOLDENS / "partialspoof")
RATE = 16_000
NAMES = [f"ps{ms}" for ms in RESOLUTIONS_MS]


class Local(PartialSpoof):
    """A model without mixing over time, so that a score depends only on its own span."""

    def __init__(self, max_frames=160):
        torch.manual_seed(0)
        super().__init__(Framed(512), blocks=1, max_frames=max_frames)
        nn.init.zeros_(self.frontend.proj.bias)
        for name, parameter in self.named_parameters():
            if name.endswith("sgu.weight"):
                nn.init.zeros_(parameter)


def small(seed=0, dim=128, **settings):
    torch.manual_seed(seed)
    return PartialSpoof(Framed(dim), **{"blocks": 2, "max_frames": 320, **settings}).eval()


@pytest.fixture(scope="module")
def published():
    with torch.device("meta"):  # the weights are replaced
        model = PartialSpoof(Framed(1024))
    model.frontend = nn.Identity()
    model.to_empty(device="cpu")
    import_state(model, golden_state("partialspoof"), "partialspoof")
    return model.eval()


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["id"])
def test_back_end_scores_and_losses_match_the_published_ones(published, case):
    with torch.inference_mode():
        embeddings = published.embeddings(torch.from_numpy(make_input(case["inputs"][0])))
        scores = published.cosines(embeddings)
    losses = {}
    for name, ours in zip([*map(str, SHIFTS), "utt"], [*NAMES, "utterance"]):
        keys = [f"{case['id']}/{key}_{name}" for key in ("embedding", "score", "label")]
        embedding, score, label = (EXPECTED[key] for key in keys)
        np.testing.assert_allclose(embeddings[ours], embedding, atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(scores[ours], score[..., ::-1], atol=1e-5, rtol=0)
        label = 1 - torch.from_numpy(label).long()
        losses[name] = float(p2sgrad_loss(scores[ours], label))
    actual, published_losses = list(losses.values()), list(case["losses"].values())
    np.testing.assert_allclose(actual, published_losses, atol=1e-6, rtol=1e-5)
    np.testing.assert_allclose(sum(losses.values()), case["loss_sum"], rtol=1e-5)


@pytest.mark.parametrize(
    "entry", GOLDEN["label_scaling"], ids=lambda entry: str(len(entry["base_10ms"]))
)
def test_labels_of_coarser_scales_match_the_published_ones(entry):
    fake = np.array([digit == "0" for digit in entry["base_10ms"]], np.int64)
    ours = labels_by_resolution(fake)
    for shift, wanted in entry["scaled"].items():
        assert "".join(str(1 - label) for label in ours[f"label_{shift}0"]) == wanted


@pytest.mark.parametrize("n_frames", [16, 17, 31, 32, 63, 64, 95, 200])
def test_padding_after_a_clip_changes_nothing(n_frames):
    model, x = small(), torch.randn(1, n_frames, 128)
    padded = torch.cat([x, 5 * torch.randn(1, 250 - n_frames, 128)], dim=1)
    with torch.inference_mode():
        alone, wanted_utterance = model.backend(x)
        both = torch.cat([padded, padded.flip(1)])
        together, utterance = model.backend(both, torch.tensor([n_frames, 250]))
    for wanted, found in zip(alone, together):
        torch.testing.assert_close(found[:1, : wanted.shape[1]], wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(utterance[:1], wanted_utterance, atol=1e-5, rtol=1e-5)
    assert all(torch.isfinite(x).all() for x in together)


def test_the_back_end_takes_16_to_1983_frames():
    backend = MultiResolution(128, blocks=1).eval()
    for n_frames in (16, 17, 1982, 1983):
        embeddings, utterance = backend(torch.randn(1, n_frames, 128))
        wanted = [n_frames, *(n_frames // 2**k for k in range(1, 5)), n_frames // 16 // 2 + 1]
        assert [x.shape[1] for x in embeddings] == wanted and utterance.shape == (1, 2)
    for n_frames in (0, 15, 1984, 2001):
        with pytest.raises(ValueError, match="16 to 1983"):
            backend(torch.randn(1, n_frames, 128))


def samples(n_frames):
    return 320 * (n_frames - 1) + 400


@pytest.mark.parametrize(
    "n_samples", [1, 399, 400, samples(15), samples(16), samples(1983), samples(1984), 668 * RATE]
)
def test_waves_of_any_length_have_scores(n_samples):
    model = PartialSpoof(Framed(), blocks=1).eval()
    n_frames = max(model.frontend.n_frames(n_samples), 16)
    with torch.inference_mode():
        scores = model.frame_scores(0.1 * torch.randn(1, n_samples))
    assert list(scores) == NAMES
    assert [x.shape[1] for x in scores.values()] == partialspoof.output_lengths(n_frames)
    assert all(x.abs().max() <= 1 + 1e-6 for x in scores.values())


@pytest.mark.parametrize("n_frames", [159, 160, 161, 200, 255, 256, 257, 500])
def test_pieces_of_a_long_wave_match_one_pass(n_frames):
    """Without mixing over time, all spans that the clip fills are the same."""
    model, one = Local().eval(), Local(max_frames=1000).eval()
    gates = {key: value.round() for key, value in one.state_dict().items() if ".sgu." in key}
    one.load_state_dict(model.state_dict() | gates)
    wave = torch.randn(1, samples(n_frames))
    assert model.backend.limit == 159
    with torch.inference_mode():
        pieces, whole = model.frame_scores(wave), one.frame_scores(wave)
    assert [x.shape for x in pieces.values()] == [x.shape for x in whole.values()]
    for name, ms in zip(NAMES, RESOLUTIONS_MS):
        ours, wanted = (part[name][:, : n_frames * 20 // ms] for part in (pieces, whole))
        torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=0)


def test_the_640_ms_head_starts_half_a_cell_early():
    model, wave = Local().eval(), torch.zeros(1, 8 * CELL_SAMPLES + LOOKAHEAD)
    with torch.inference_mode():
        before = model.frame_scores(wave)
        for half_cell in range(16):
            loud = wave.clone()
            loud[:, half_cell * 5120 + 400 : half_cell * 5120 + 4700] = torch.randn(4300)
            after = model.frame_scores(loud)
            changed = {
                name: (after[name] != before[name]).any(2)[0].nonzero().flatten().tolist()
                for name in NAMES
            }
            assert changed["ps320"] == [half_cell] and changed["ps640"] == [(half_cell + 1) // 2]
            first = 16 * ((half_cell + 1) // 2)
            last = first == 16 * 8
            published = changed_640(before, after, "published")
            assert published == list(range(first, 200 if last else first + 16))
            corrected = changed_640(before, after, "corrected")
            assert corrected == list(range(max(first - 8, 0), 200 if last else first + 8))
            assert set(range(8 * half_cell, 8 * half_cell + 8)) <= set(corrected)


def changed_640(before, after, offset_640):
    """The 40 ms frames, of 200, whose 640 ms scores differ."""
    one, other = (
        on_frames({name: x[0].numpy()[:, None] for name, x in scores.items()}, 200, offset_640)
        for scores in (before, after)
    )
    return np.nonzero((one != other)[:, 0, 10:].any(axis=1))[0].tolist()


def test_embeddings_of_zeros_have_finite_gradients():
    vectors, x = partialspoof.ClassVectors(8), torch.zeros(3, 8, requires_grad=True)
    cosines = vectors(x)
    cosines.sum().backward()
    assert not cosines.any()
    assert torch.isfinite(x.grad).all() and torch.isfinite(vectors.weight.grad).all()


def test_p2sgrad_is_half_the_paper_s_formula():
    torch.manual_seed(0)
    cosines = torch.rand(2, 5, 2)
    label = torch.tensor([[0, 1, IGNORE, 1, 0], [IGNORE, 1, 0, IGNORE, IGNORE]])
    total = sum(
        float((cosines[b, t, k] - float(label[b, t] == k)) ** 2)
        for b in range(2)
        for t in range(5)
        for k in range(2)
        if label[b, t] != IGNORE
    )
    np.testing.assert_allclose(float(p2sgrad_loss(cosines, label)), total / 6 / 2, rtol=1e-6)
    assert p2sgrad_loss(cosines, torch.full((2, 5), IGNORE)) == 0


def test_top_mean_matches_a_loop():
    scores, lengths = torch.randn(4, 37), torch.tensor([1, 9, 11, 37])
    for share in (0.1, 0.5, 1.0):
        wanted = []
        for row, n in zip(scores.tolist(), lengths.tolist()):
            count = max(math.ceil(n * share - 1e-6), 1)
            wanted.append(sum(sorted(row[:n], reverse=True)[:count]) / count)
        torch.testing.assert_close(top_mean(scores, lengths, share), torch.tensor(wanted))


def batch_of(data, seed=0, lengths=(5.3, 2.0, 0.1, 4.48)):
    rng = np.random.default_rng(seed)
    items = []
    for index, length in enumerate(lengths):
        fake = np.array([[0.3, 0.7]]) if index % 2 == 0 else np.zeros((0, 2))
        wave = rng.normal(0, 0.1, round(length * RATE)).astype(np.float32)
        items.append(data.example(wave, (fake, 1 - index % 2), rng))
    return data.collate(items)


def test_losses_are_means_over_labelled_outputs():
    model, batch = small(), batch_of(PartialSpoofFrames(window=6 * CELL_SAMPLES))
    losses = model.losses(batch)
    assert list(losses) == ["utterance", *NAMES]
    torch.testing.assert_close(model.loss(batch), sum(losses.values()))
    errors = {name: [] for name in NAMES}
    for index, n_frames in enumerate(batch["n_frames"].tolist()):
        scores = model(batch["wave"][index : index + 1, : samples(n_frames)])
        for name in NAMES:
            label = batch[f"label_{name[2:]}"][index]
            label = label[label != IGNORE]
            error = scores[name][0, : len(label)] - nn.functional.one_hot(label, 2)
            errors[name].append(error.square())
    for name in NAMES:
        wanted = torch.cat(errors[name]).mean()
        torch.testing.assert_close(losses[name], wanted, atol=1e-5, rtol=1e-5)


def test_clip_supervision_learns_from_the_highest_tenth():
    model = small(clip_scale=3.0)
    batch = batch_of(PartialSpoofFrames(window=6 * CELL_SAMPLES, supervision="clip"))
    assert set(batch) == {"wave", "n_frames", "label"}
    losses, scores = model.losses(batch), model(batch["wave"], batch["n_frames"])
    for k, name in enumerate(NAMES):
        total, lengths = 0, partialspoof.output_lengths(batch["n_frames"])[k]
        for row, n, label in zip(scores[name], lengths, batch["label"]):
            gaps = (row[:n, 1] - row[:n, 0]).sort(descending=True).values
            gap = gaps[: math.ceil(0.1 * n)].mean()
            total += nn.functional.binary_cross_entropy(torch.sigmoid(3 * gap), label.float())
        torch.testing.assert_close(losses[name], total / 4, atol=1e-5, rtol=1e-5)
    model.loss(batch).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_trains_under_bfloat16_autocast():
    model, batch = small().train(), batch_of(PartialSpoofFrames(window=6 * CELL_SAMPLES))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.loss(batch)
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss)


ENCODER = {**TINY, "hidden_size": 128, "conv_dim": [16] * 7}


def test_layers_are_weighted_by_a_softmax_over_existing_ones():
    model = PartialSpoof(SSLFrontEnd(True, ENCODER, freeze="all"), blocks=1, max_frames=320)
    assert model.weight_hidd.shape == (30,)
    with torch.no_grad():
        model.weight_hidd[:3], model.weight_hidd[3:] = torch.tensor([1.0, 0.0, 2.0]), 9.0
    wave = torch.randn(2, 8_000)
    weights = np.exp([1, 0, 2]) / np.exp([1, 0, 2]).sum()
    wanted = sum(float(w) * layer for w, layer in zip(weights, model.frontend.hidden_states(wave)))
    torch.testing.assert_close(model.features(wave), wanted)
    batch = {"wave": wave, "n_frames": torch.tensor([24, 24]), "label": torch.tensor([0, 1])}
    model.loss(batch).backward()
    assert model.weight_hidd.grad[:3].any() and not model.weight_hidd.grad[3:].any()
    assert all(p.grad is None for p in model.frontend.parameters())


@pytest.mark.parametrize("dim, max_frames", [(64, 2001), (200, 2001), (128, 127)])
def test_sizes_that_cannot_be_halved_five_times_are_refused(dim, max_frames):
    with pytest.raises(ValueError, match="multiple of 128"):
        MultiResolution(dim, max_frames=max_frames)


def any_overlap(fake, first_s, end_s, n, span_s, early_s):
    """Labels by definition: is any part of [first + i span - early, + span) in the crop fake?"""
    edges = [first_s + i * span_s - early_s for i in range(n + 1)]
    spans = zip(edges, edges[1:])
    held = [(max(start, first_s) + 1e-9, min(stop, end_s) - 1e-9) for start, stop in spans]
    return [int(any(b > start and a < stop for a, b in fake)) for start, stop in held]


@pytest.mark.parametrize("offset_640", ["published", "corrected"])
def test_crops_have_the_labels_of_their_own_spans(offset_640):
    data = PartialSpoofFrames(window=4 * CELL_SAMPLES, offset_640=offset_640)
    fake = np.array([[0.4, 0.75], [2.02, 2.05], [4.6, 5.9]])
    wave = np.arange(round(7.33 * RATE), dtype=np.float32)  # each sample holds its own number
    for seed in range(12):
        item = data.example(wave, (fake, 1), np.random.default_rng(seed))
        first = int(item["wave"][0])
        assert first % CELL_SAMPLES == 0 and len(item["wave"]) <= 4 * CELL_SAMPLES + LOOKAHEAD
        heard = item["wave"][item["wave"] > 0].tolist()
        assert heard == list(range(max(first, 1), max(first, 1) + len(heard)))
        n_frames = int(item["n_frames"])
        assert n_frames == min(128, math.ceil((len(wave) - first) / 320))
        for ms in RESOLUTIONS_MS:
            label, first_s = item[f"label_{ms}"].tolist(), first / RATE
            early = 0.32 if ms == 640 and offset_640 == "corrected" else 0.0
            spans = (first_s, first_s + 2.56, len(label), ms / 1000, early)
            assert label == any_overlap(fake, *spans)
            assert len(label) == (n_frames // 32 + 1 if early else n_frames * 20 // ms)


def test_a_batch_is_padded_to_its_longest_clip():
    batch = batch_of(PartialSpoofFrames(window=6 * CELL_SAMPLES), lengths=(1.0, 3.01))
    assert batch["n_frames"].tolist() == [50, 151]
    assert batch["wave"].shape == (2, 76 * 640 + LOOKAHEAD)
    assert batch["label_160"].shape == (2, 18) and (batch["label_160"][0, 6:] == IGNORE).all()
    assert not batch["wave"][0, RATE:].any()


@pytest.mark.parametrize("n_samples", [1, 639, 640, 5_119, 30_720, 30_721, 71_234, 123_456])
@pytest.mark.parametrize("offset_640", ["published", "corrected"])
def test_clips_of_any_length_have_a_row_per_frame(n_samples, offset_640):
    data = PartialSpoofFrames(chunk=3 * CELL_SAMPLES, offset_640=offset_640)
    model = Local(max_frames=1000).eval()
    wave = np.random.default_rng(0).normal(0, 0.1, n_samples).astype(np.float32)
    cut = data.cut(wave)
    assert {len(window.inputs["wave"]) for window in cut} <= {len(cut[0].inputs["wave"])}
    assert all(round(window.start_s * RATE) % CELL_SAMPLES == 0 for window in cut)
    rows = clip_frames(model, data, cut, batch_size=3)
    n_frames = math.ceil(n_samples / 640)
    assert rows.shape == (n_frames, 3 + len(data.COLUMNS)) and np.isfinite(rows).all()
    np.testing.assert_allclose(rows[:, 0], 0.04 * np.arange(n_frames), atol=1e-9)
    assert rows[-1, 1] == pytest.approx(n_samples / RATE)
    column = {name: rows[:, 3 + index] for index, name in enumerate(data.COLUMNS)}
    np.testing.assert_allclose(rows[:, 2], column["ps160_fake"] - column["ps160_real"], atol=1e-6)
    if n_samples > data.stride:  # without mixing over time, pieces match one pass
        longer = PartialSpoofFrames(offset_640=offset_640)
        whole = clip_frames(model, longer, longer.cut(wave))
        # after the last whole cell the end is clamped in one pass, and padded in pieces
        n_equal = 16 * (n_samples // CELL_SAMPLES) - 8
        np.testing.assert_allclose(rows[:n_equal], whole[:n_equal], atol=1e-5)


def test_columns_are_their_resolution_on_the_40_ms_grid():
    data, model = PartialSpoofFrames(), small()
    wave = np.random.default_rng(0).normal(0, 0.1, 3 * RATE + 17).astype(np.float32)
    rows = clip_frames(model, data, data.cut(wave))[:, 3:]
    with torch.inference_mode():
        scores = model.frame_scores(data.cut(wave)[0].inputs["wave"][None])
    for index, name in enumerate(data.COLUMNS):
        ms, which = int(name[2:].split("_")[0]), int(name.endswith("fake"))
        values = scores[f"ps{ms}"][0, :, which].numpy()
        for frame in range(len(rows)):
            if ms == 20:
                wanted = values[2 * frame : 2 * frame + 2].mean()
            else:
                wanted = values[min(frame * 40 // ms, len(values) - 1)]
            assert rows[frame, index] == pytest.approx(float(wanted), abs=1e-6)


def test_labels_of_less_than_a_span_give_one_output():
    assert scale_labels(np.array([0, 1, 0]), 4).tolist() == [1]
    assert scale_labels(np.array([0, 0]), 4).tolist() == [0]


@pytest.mark.parametrize("wrong", [{"window": 64_000}, {"chunk": 20_480}])
def test_windows_off_the_640_ms_grid_are_refused(wrong):
    with pytest.raises(ValueError):
        PartialSpoofFrames(**wrong)


CONFIG = """
model:
  class_path: klassify.models.partialspoof.PartialSpoof
  init_args:
    frontend:
      class_path: klassify.models.frontends.filterbank.FilterbankFrontEnd
      init_args: {{dim: 128, bands: 20, width: 32}}
    blocks: 1
    max_frames: 128
data:
  class_path: klassify.data.partialspoof.PartialSpoofFrames
  init_args: {{window: 30720, chunk: 30720, keep_in_memory: true, supervision: {supervision}}}
train: {{epochs: {epochs}, batch_size: 4, lr: 0.005, monitor: loss, schedule: one_cycle}}
"""


@pytest.mark.parametrize("supervision, epochs", [("segment", 6), ("clip", 3)])
def test_planted_fakes_are_found_from_training_to_scores(tmp_path, small_data, supervision, epochs):
    config, out = tmp_path / "ps.yaml", tmp_path / "ps"
    config.write_text(CONFIG.format(supervision=supervision, epochs=epochs))
    assert cli.main(command(config, out, small_data)) == 0
    assert json.loads((out / "training.json").read_text())["val_auc"] > 0.9
    scoring = ["score", str(out), "--split", "val", *small_data.arguments, "--device", "cpu"]
    assert cli.main(scoring) == 0
    path = score_file.score_path(out, "val", "frames")
    header = score_file.read_header(path)
    assert (header.supervision, header.scale) == (supervision, "cosine")
    table = score_file.read_scores(path).table
    assert set(PartialSpoofFrames.COLUMNS) <= set(table)
    listed = data_list.read_list(small_data.lists / "val.tsv", segments=True).set_index("file")
    if supervision == "segment":  # clip labels do not tell which frames are fake
        spans = listed["audio_fake_segments"]
        clips = table.groupby("file", sort=False)
        fake = [frames.encode_labels(spans[file], len(rows)) for file, rows in clips]
        fake = np.concatenate(fake)
        assert roc_auc(fake, table["score"].to_numpy()) > 0.9


def test_clip_supervision_reads_no_segment_column(small_data, monkeypatch):
    sources = small_data.sources
    asked = []

    def table(self, split, *, segments=False):
        asked.append(segments)
        return subsets.load_split(self.lists, split, segments=segments)

    monkeypatch.setattr(Sources, "table", table)
    data = PartialSpoofFrames(
        window=4 * CELL_SAMPLES, supervision="clip", train_split="train", val_split="val"
    )
    examples = Examples(data, sources, "train", seed=0)
    model = small(dim=128)
    found = validate(model, data, sources, batch_size=8, workers=0, device=torch.device("cpu"))
    assert set(found) == {"val_loss", "val_auc"} and np.isfinite(list(found.values())).all()
    assert set(examples[0, 0]) == {"wave", "n_frames", "label"} and asked and not any(asked)


@pytest.mark.parametrize("n_samples", [639, 30_720, 71_234])
def test_rows_of_20_ms_hold_each_head_at_its_time(n_samples):
    coarse, fine = (
        PartialSpoofFrames(chunk=3 * CELL_SAMPLES, hop_s=hop_s, score_ms=20)
        for hop_s in (0.04, 0.02)
    )
    model = Local(max_frames=1000).eval()
    wave = np.random.default_rng(0).normal(0, 0.1, n_samples).astype(np.float32)
    rows = clip_frames(model, fine, fine.cut(wave), batch_size=3)
    np.testing.assert_allclose(rows[:, 0], 0.02 * np.arange(math.ceil(n_samples / 320)), atol=1e-9)
    np.testing.assert_allclose(rows[:, 2], rows[:, 4] - rows[:, 3], atol=1e-6)
    wanted = clip_frames(model, coarse, coarse.cut(wave), batch_size=3)
    whole = rows[: len(rows) // 2 * 2, 3:].reshape(len(rows) // 2, 2, -1).mean(axis=1)
    np.testing.assert_allclose(whole, wanted[: len(whole), 3:], atol=1e-6)
