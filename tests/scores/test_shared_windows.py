"""Overlapping windows share the work on their samples, and score as each alone."""

import platform
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from torch import nn

from klassify.data.audio import AudioClips, AudioFrames
from klassify.data.base import Sources
from klassify.data.mouth import MouthFeatures, MouthTags
from klassify.data.partialspoof import PartialSpoofFrames
from klassify.errors import KlassifyError
from klassify.lists import data_list
from klassify.models.bam import BAM
from klassify.models.devices import CPU_FRAMES, by_rows, by_time
from klassify.models.frontends.filterbank import FilterbankFrontEnd
from klassify.models.frontends.ssl import SSLFrontEnd
from klassify.models.frontends.torchaudio_import import ensure_importable
from klassify.models.partialspoof import PartialSpoof
from klassify.models.tcn import TCN, TaggingTCN
from klassify.models.w2v_aasist import W2VAASIST
from klassify.scores import inference
from klassify.scores.shared_windows import spans

RATE, WINDOW = 16_000, 64_600
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
TINY |= {"conv_dim": [16] * 7}
GROUP_NORM = {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False}
# of clips.tsv, short ones and ones with a tail among them
DURATIONS_S = (*(1.3, 4.0, 9.6131, 4.04, 5.5, 17.0042),)


def frontend(normalize_input=False, family="wav2vec2", library="transformers", **settings):
    torch.manual_seed(0)
    return SSLFrontEnd(
        normalize_input, {"family": family, **TINY, **settings}, library=library
    ).eval()


def aasist(front):
    torch.manual_seed(1)
    return W2VAASIST(front, bands=48, channels=(4, 4), graph_dims=(8, 4)).eval()


def bam(front):
    torch.manual_seed(2)
    return BAM(front, local_channels=2).eval()


def naive(model):
    """The same scores from windows on their own."""

    class Naive(nn.Module):  # without `heard`, so that nothing is shared
        def __init__(self):
            super().__init__()
            self.model = model

        def score(self, batch):
            return self.model.score(batch)

        def frame_scores(self, wave):
            return self.model.frame_scores(wave)

    return Naive()


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Sources:
    root, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(5)
    (root / "media/test").mkdir(parents=True)
    rows = []
    for index, duration in enumerate(DURATIONS_S):
        wave = rng.normal(0.02, 0.1, round(duration * RATE)) * np.hanning(round(duration * RATE))
        wave[len(wave) // 3 : len(wave) // 2] = 0  # digital silence is equal anywhere
        soundfile.write(root / f"media/test/{index}.wav", wave, RATE, subtype="FLOAT")
        rows.append(
            {
                "file": f"{index}.wav",
                "n_frames": int(duration * 25),
                "fps": 25.0,
                "n_samples": len(wave),
                "duration": duration,
                "modify_type": "",
                "source": "",
            }
        )
    data_list.write_list(root / "lists/test.tsv", pd.DataFrame(rows))
    return Sources(root / "lists", root / "media", root / "features")


class Counted:
    """How many frames the convolutional extractor gives."""

    def __init__(self, front):
        self.frames = 0
        self.hook = front.model.feature_extractor.register_forward_hook(self._add)

    def _add(self, module, inputs, output):  # (B, C, T)
        self.frames += output.shape[0] * output.shape[2]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.hook.remove()


def n_samples(duration):
    return round(duration * RATE)


LIBRARIES = ["transformers", pytest.param("torchaudio", marks=pytest.mark.slow)]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("stride", "batch_size"), [(16_000, 16), (16_000, 3), (32_000, 5), (6_400, 4)]
)
def test_detector_windows_share_frames_and_score_the_same(sources, stride, batch_size, library):
    if library == "torchaudio" and not ensure_importable():
        pytest.skip("torchaudio is not installed")
    model, data = aasist(frontend(library=library)), AudioClips(stride=stride)
    data.fills_batches = batch_size == 3  # as on a GPU
    wanted, _ = inference.score_clips(naive(model), data, sources, "test", progress=False)
    with Counted(model.frontend) as counted:
        found, reasons = inference.score_clips(
            model,
            data,
            sources,
            "test",
            batch_size=batch_size,
            progress=False,
            workers=batch_size % 2,
        )
    assert not reasons and found[["file", "start", "end"]].equals(wanted[["file", "start", "end"]])
    np.testing.assert_allclose(found["score"], wanted["score"], atol=1e-4, rtol=0)
    starts = [
        data.cut(np.zeros(n_samples(duration), np.float32))[-1].start_s for duration in DURATIONS_S
    ]
    once = sum(model.frontend.n_frames(round(start * RATE) + WINDOW) for start in starts)
    assert counted.frames == once < 0.7 * 201 * len(found)


def test_localiser_windows_share_frames_and_score_the_same(sources):
    """Zeros behind each window, which its last frame hears, are not part of the clip."""
    model, data = bam(frontend()), AudioFrames()
    wanted, _ = inference.score_frames(naive(model), data, sources, "test", progress=False)
    with Counted(model.frontend) as counted:
        found, reasons = inference.score_frames(
            model, data, sources, "test", batch_size=2, progress=False
        )
    assert not reasons and found[["file", "start", "end"]].equals(wanted[["file", "start", "end"]])
    np.testing.assert_allclose(found["score"], wanted["score"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(found["boundary"], wanted["boundary"], atol=1e-4, rtol=0)
    cuts = [data.cut(np.zeros(n_samples(duration), np.float32)) for duration in DURATIONS_S]
    once = sum(-(-n_samples(duration) // 640) * 2 for duration in DURATIONS_S)
    seams = sum(len(cut) - 1 for cut in cuts)
    # unless the clip goes on with silence
    assert once <= counted.frames <= once + seams < 200 * sum(map(len, cuts))


@pytest.mark.parametrize(
    ("settings", "stride"),
    [
        ({}, 10_001),  # off the grid of frames
        ({"normalize_input": True}, 16_000),
        (GROUP_NORM, 16_000),
        ({"family": "wavlm", "normalize_input": True}, 16_000),
    ],
)
def test_where_nothing_can_be_shared_windows_run_on_their_own(sources, settings, stride):
    model, data = aasist(frontend(**settings)), AudioClips(stride=stride)
    wanted, _ = inference.score_clips(naive(model), data, sources, "test", progress=False)
    with Counted(model.frontend) as counted:
        found, _ = inference.score_clips(model, data, sources, "test", batch_size=5, progress=False)
    np.testing.assert_allclose(found["score"], wanted["score"], atol=1e-4, rtol=0)
    assert counted.frames == 201 * len(found)


def test_only_equal_samples_are_shared(sources):
    """If a data class changes the samples of its windows, their frames are their own."""

    class Louder(AudioClips):
        def cut(self, clip):
            cut = super().cut(clip)
            for index, window in enumerate(cut):
                window.inputs["wave"] = window.inputs["wave"] * (1 + index)
            return cut

    model = aasist(frontend())
    wanted, _ = inference.score_clips(naive(model), Louder(), sources, "test", progress=False)
    found, _ = inference.score_clips(model, Louder(), sources, "test", progress=False)
    np.testing.assert_allclose(found["score"], wanted["score"], atol=1e-4, rtol=0)


def test_windows_are_not_shared_in_training():
    model, wave = aasist(frontend()).train(), torch.randn(3, WINDOW) * 0.1
    with Counted(model.frontend) as counted:
        model.loss({"wave": wave, "label": torch.tensor([0, 1, 0])}).backward()
    assert counted.frames == 3 * 201
    assert all(
        parameter.grad is not None
        for parameter in model.frontend.model.feature_extractor.parameters()
    )


def plain():
    torch.manual_seed(0)
    return FilterbankFrontEnd(dim=32).eval()


@pytest.mark.parametrize(("make", "data"), [(aasist, AudioClips()), (bam, AudioFrames())])
@pytest.mark.parametrize("made_by", [frontend, lambda: frontend(normalize_input=True), plain])
def test_approximate_scoring_runs_the_front_end_once_a_clip(sources, make, data, made_by):
    front = made_by()
    model = make(front)
    score = inference.score_frames if hasattr(data, "COLUMNS") else inference.score_clips
    heard = []
    hook = front.register_forward_pre_hook(lambda module, inputs: heard.append(inputs[0].shape))
    found, reasons = score(model, data, sources, "test", progress=False, approximate=True)
    hook.remove()
    assert [shape[0] for shape in heard] == [1] * len(DURATIONS_S) and not reasons
    exact, _ = score(model, data, sources, "test", progress=False)
    assert found[["file", "start", "end"]].equals(exact[["file", "start", "end"]])
    alone = found["file"].isin(["0.wav", "1.wav"])  # one window: nothing approximate about it
    np.testing.assert_allclose(found["score"][alone], exact["score"][alone], atol=1e-4, rtol=0)
    longer = found["file"] == "2.wav"
    assert np.abs(found["score"] - exact["score"])[longer].max() > 1e-6
    assert np.isfinite(found["score"]).all()


def test_approximate_scoring_is_exact_without_context(sources):
    """Each frame from its own samples: a window of the clip's frames is the window's own."""

    class Local(FilterbankFrontEnd):
        def forward(self, wave):
            return wave.unfold(-1, 400, 320)[..., :32]

    model = aasist(Local(dim=32))
    exact, _ = inference.score_clips(model, AudioClips(), sources, "test", progress=False)
    found, _ = inference.score_clips(
        model, AudioClips(), sources, "test", progress=False, approximate=True
    )
    np.testing.assert_allclose(found["score"], exact["score"], atol=1e-5, rtol=0)


def test_long_clips_are_approximated_in_spans_of_all_windows():
    cut = AudioClips().cut(np.zeros(100 * RATE, np.float32))
    runs = list(spans(cut))
    assert [window for run in runs for window in run] == cut
    assert all(run[-1].end_s - run[0].start_s <= 30 for run in runs) and len(runs) == 4
    assert [len(run) for run in spans(cut, 1.0)] == [1] * len(cut)
    assert list(spans([])) == []


def test_models_without_approximate_scoring_say_so(sources):
    model = PartialSpoof(FilterbankFrontEnd(), blocks=1, max_frames=128)
    for score, data in (
        (inference.score_clips, AudioClips()),
        (inference.score_frames, PartialSpoofFrames()),
    ):
        with pytest.raises(KlassifyError, match="PartialSpoof has no approximate scoring"):
            score(model, data, sources, "test", progress=False, approximate=True)


@pytest.mark.parametrize(
    "samples", [400, 64_600, 320 * CPU_FRAMES + 80, 320 * CPU_FRAMES + 400, 300_123]
)
def test_the_extractor_runs_a_few_seconds_at_a_time(samples):
    front, wave = frontend(), 0.1 * torch.randn(2, samples)
    wanted = front.local_features(wave).detach()  # with gradients: at once
    with Counted(front) as counted, torch.no_grad():
        sizes = []
        hook = front.model.feature_extractor.register_forward_hook(
            lambda m, i, out: sizes.append(out[:, 0].numel())
        )
        found = front.local_features(wave)
        hook.remove()
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert counted.frames == 2 * front.n_frames(samples) and max(sizes) <= 1.01 * CPU_FRAMES


def test_group_norm_runs_over_the_whole_wave():
    front, wave = frontend(**GROUP_NORM), 0.1 * torch.randn(1, 200_000)
    wanted = front(wave).detach()
    with torch.no_grad():
        torch.testing.assert_close(front(wave), wanted, atol=1e-5, rtol=1e-5)


def test_rows_and_pieces_are_put_together_in_order():
    x = torch.randn(7, 3)
    sizes = []
    with torch.no_grad():
        assert torch.equal(by_rows(lambda part: sizes.append(len(part)) or 2 * part, x, 3), 2 * x)
        assert sizes == [3, 3, 1]
        wave = torch.arange(50.0)[None]
        frames = by_time(lambda part: part.unfold(-1, 5, 4), wave, frames=3, hop=4, field=5)
    assert torch.equal(frames, wave.unfold(-1, 5, 4))
    assert (
        by_rows(lambda part: sizes.append(len(part)) or part, x.requires_grad_(), 3) is x
        and sizes[-1] == 7
    )


HOLES = """
import re
from pathlib import Path
import numpy as np
from klassify.models.devices import return_freed_blocks

def left_mb():
    status = Path("/proc/self/status")
    held = lambda: int(re.search(r"VmRSS:\\s*(\\d+)", status.read_text())[1]) / 1024
    before, blocks, kept = held(), [], []
    for _ in range(30):
        blocks.append(np.ones(4 << 20, np.uint8))
        kept.append(np.ones(100 << 10, np.uint8))
    del blocks
    return held() - before

np.ones(5 << 20, np.uint8)  # glibc keeps what is smaller than the largest block ever freed
usual = left_mb()
return_freed_blocks()
print(usual, left_mb())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_freed_blocks_go_back_to_the_system():
    done = subprocess.run(
        [sys.executable, "-c", HOLES], check=True, stdout=subprocess.PIPE, text=True
    )
    usual, returned = map(float, done.stdout.split())
    assert returned < 20 < 100 < usual


def tcn(data):
    torch.manual_seed(3)
    kind = TaggingTCN if hasattr(data, "COLUMNS") else TCN
    return kind(in_channels=len(data.channels)).eval()


@pytest.mark.parametrize(
    ("data", "make"),
    [
        (AudioClips(), lambda data: aasist(frontend())),
        (AudioClips(), lambda data: aasist(frontend(normalize_input=True))),
        (AudioFrames(), lambda data: bam(frontend())),
        (
            PartialSpoofFrames(),
            lambda data: PartialSpoof(FilterbankFrontEnd(), blocks=1, max_frames=128).eval(),
        ),
        (MouthFeatures(window=48, stride=24), tcn),
        (MouthTags(window=48, stride=24), tcn),
    ],
    ids=["aasist", "aasist, normalised", "bam", "partialspoof", "tcn", "tcn_tags"],
)
def test_a_clip_alone_has_its_scores_of_the_split(sources, small_data, data, make):
    given, split = sources, "test"
    if data.modality == "visual":
        given, split = Sources(small_data.lists, small_data.media, small_data.features), "testA"
    model = make(data)
    score = inference.score_frames if hasattr(data, "COLUMNS") else inference.score_clips
    how = {"progress": False, "batch_size": 4, "device": "cpu"}
    wanted, reasons = score(model, data, given, split, **how)
    files = given.table(split)["file"].tolist()
    alone = [score(model, data, given, split, files=[file], **how) for file in files]
    found = pd.concat([table for table, _ in alone if len(table)], ignore_index=True)
    pd.testing.assert_frame_equal(found, wanted, check_exact=True)
    assert reasons == {file: why for _, each in alone for file, why in each.items()}
