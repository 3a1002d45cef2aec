"""Wav2Vec-AASIST matches the published back end and loads files like the released ones."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fill import fill, load, make_input
from front_ends import Given
from learning import learn
from places import GOLDENS
from published import TINY, golden_state
from torch import nn

from klassify.errors import KlassifyError
from klassify.models.frontends.ssl import FrontEnd, SSLFrontEnd
from klassify.models.w2v_aasist import AASIST, W2VAASIST
from klassify.models.weights.load import import_weights, load_weights
from klassify.models.weights.safetensors_file import save_weights

GOLDEN, EXPECTED = load(GOLDENS / "aasist")
UNUSED = [f"encoder.{block}.0.bn1.{name}" for block in range(1, 6) for name in ("weight", "bias")]


def published_model(seed=7):
    """State dict of a whole published model with a tiny speech encoder: index 1 is bona fide."""
    state = golden_state("ssl_wav2vec2", prefix="ssl_model.model.") | golden_state("aasist")
    state["LL.weight"] = torch.from_numpy(fill("LL.weight", (128, 64), seed))
    return state


class Pooled(FrontEnd):
    """The smallest front end: the mean of 320 samples, times a learned vector."""

    dim = 8

    def __init__(self):
        super().__init__()
        self.scale = nn.Linear(1, 8)

    def forward(self, wave):
        return self.scale(F.avg_pool1d(wave.unsqueeze(1), 400, 320).transpose(1, 2))


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """The published back end, imported through the key map, in our polarity."""
    path = tmp_path_factory.mktemp("golden") / "LA_model.pth"
    torch.save(golden_state("aasist") | {"ssl_model.model.mask_emb": torch.zeros(4)}, path)
    model = W2VAASIST(Given())
    report = import_weights(model, path)
    assert (report.source, report.loaded, report.lacking) == ("ssl-anti-spoofing", 245, [])
    return model.eval()


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["id"])
def test_back_end_matches_the_published_one(imported, case):
    features, outputs = torch.from_numpy(make_input(case["inputs"][0])), {}

    def keep(name, layer):
        return layer.register_forward_hook(lambda *call: outputs.update({name: call[-1]}))

    backend = imported.backend
    hooks = [keep("gat_S", backend.GAT_layer_S), keep("pool_S", backend.pool_S)]
    with torch.no_grad():
        outputs["logits"] = imported(features)
    for hook in hooks:
        hook.remove()
    wanted = {name: EXPECTED[f"{case['id']}/{name}"] for name in ("logits", "gat_S", "pool_S")}
    wanted["logits"] = wanted["logits"][:, ::-1]  # published columns: spoof, bona fide
    tolerance = {"atol": GOLDEN["tolerance"]["abs"], "rtol": GOLDEN["tolerance"]["rel"]}
    for name, value in wanted.items():
        np.testing.assert_allclose(outputs[name].numpy(), value, **tolerance)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_released_file_gives_the_same_answers(tmp_path, prefix):
    published = published_model()
    path = tmp_path / "model.pth"
    torch.save({prefix + key: value for key, value in published.items()}, path)
    model = W2VAASIST(SSLFrontEnd(False, TINY)).eval()
    report = import_weights(model, path)
    assert report.lacking == [] and len(report.left_out) == 8  # quantizer and projections
    wave = torch.from_numpy(fill("input:wave", (2, 16000), 3))

    reference = AASIST(64).eval()  # their names and their polarity
    reference.load_state_dict({key: published[key] for key in reference.state_dict()})
    with torch.no_grad():
        spoof, bona_fide = reference(model.frontend(wave)).unbind(1)
        torch.testing.assert_close(model.score({"wave": wave}), spoof - bona_fide)


def test_older_files_load_and_incomplete_ones_do_not(tmp_path):
    path = tmp_path / "model.pth"
    published = published_model()
    lacking = re.compile(r"encoder\.3\.0\.bn1\.|.*num_batches_tracked")
    older = {key: value for key, value in published.items() if not lacking.match(key)}
    older |= {"encoder.0.0.bn1.weight": torch.ones(1), "encoder.0.0.bn1.bias": torch.ones(1)}
    torch.save(older, path)
    report = import_weights(W2VAASIST(SSLFrontEnd(False, TINY)), path)
    assert "encoder.0.0.bn1.weight" in report.left_out
    assert "backend.encoder.3.0.bn1.running_mean" in report.lacking

    del published["pos_S"]
    torch.save(published | {"extra": torch.ones(1)}, path)
    message = r"1 missing \(backend.pos_S\); .*unexpected .*backend.extra"
    with pytest.raises(KlassifyError, match=message):
        import_weights(W2VAASIST(SSLFrontEnd(False, TINY)), path)


@pytest.mark.parametrize("n_frames", [3, 4, 5, 6, 20, 199, 200, 301])
def test_windows_of_three_or_more_frames_are_scored(imported, n_frames):
    features = torch.from_numpy(fill("input:features", (2, n_frames, 1024), n_frames))
    with torch.no_grad():
        both = imported(features)
        assert both.shape == (2, 2) and both.isfinite().all()
        torch.testing.assert_close(imported(features[1:]), both[1:], atol=2e-5, rtol=1e-4)


def test_two_frames_are_too_few(imported):
    with pytest.raises(ValueError, match="at least 3 frames"):
        imported(torch.zeros(1, 2, 1024))


def test_all_but_the_unused_norms_get_gradients():
    torch.manual_seed(0)
    model = W2VAASIST(Pooled())
    batch = {"wave": torch.randn(6, 16_000), "label": torch.tensor([0, 1, 0, 1, 0, 1])}
    model.loss(batch).backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == [f"backend.{name}" for name in UNUSED]
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_loss_is_the_weighted_negative_log_likelihood(imported):
    wave = torch.from_numpy(fill("input:features", (3, 30, 1024), 9))
    label = torch.tensor([1, 0, 1])
    batch = {"wave": wave, "label": label}
    with torch.no_grad():
        probability = imported(wave).softmax(1)[torch.arange(3), label].double()
        wanted = -probability.log().mean()
        torch.testing.assert_close(imported.loss(batch).double(), wanted, rtol=1e-5, atol=0)
        weighted = W2VAASIST(Given(), class_weights=(0.9, 0.1)).eval()
        weighted.load_state_dict(imported.state_dict())
        weights = torch.tensor([0.1, 0.9, 0.1], dtype=torch.float64)
        wanted = -(weights * probability.log()).sum() / weights.sum()
        torch.testing.assert_close(weighted.loss(batch).double(), wanted, rtol=1e-5, atol=0)


def test_scores_are_log_odds_and_learn_planted_fakes():
    torch.manual_seed(1)
    model = W2VAASIST(Pooled(), bands=48, channels=(4, 4), graph_dims=(8, 4))
    label = torch.arange(16) % 2
    wave = torch.randn(16, 8_000) * 0.1 + label[:, None] * 0.5
    learn(model, {"wave": wave, "label": label}, steps=25, lr=1e-2)
    model.eval()
    with torch.no_grad():
        score = model.score({"wave": wave})
        torch.testing.assert_close(score.sigmoid(), model(wave).softmax(1)[:, 1])
    assert score[label == 1].min() > score[label == 0].max()


def test_dropout_is_a_factor_on_the_published_rates():
    def rates(model):
        return sorted(module.p for module in model.modules() if isinstance(module, nn.Dropout))

    published = [0.2] * 7 + [0.3] * 6 + [0.5]
    assert rates(AASIST(8)) == published
    assert rates(W2VAASIST(Pooled(), dropout=0.5)) == [rate / 2 for rate in published]
    model = W2VAASIST(Pooled(), dropout=0.0).train()
    model.eval()  # batch normalisation too must stand still for the comparison
    for dropout in (module for module in model.modules() if isinstance(module, nn.Dropout)):
        dropout.train()
    wave = torch.randn(1, 8_000)
    with torch.no_grad():
        assert torch.equal(model(wave), model(wave))
    with pytest.raises(ValueError, match="between 0 and 1"):
        AASIST(8, dropout=1.5)


def test_class_weights_are_not_saved_with_the_model(tmp_path):
    model = W2VAASIST(Pooled(), channels=(8, 16))
    other = W2VAASIST(Pooled(), channels=(8, 16), class_weights=(0.5, 0.5))
    save_weights(model, tmp_path / "model.safetensors")
    load_weights(other, tmp_path / "model.safetensors")
    wave = torch.randn(1, 8_000)
    with torch.no_grad():
        assert torch.equal(model.eval()(wave), other.eval()(wave))


def test_back_end_keeps_full_precision_under_autocast(imported):
    features = torch.from_numpy(fill("input:features", (1, 30, 1024), 13))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert imported(features).dtype == torch.float32
        inside = imported(features)
    with torch.no_grad():
        assert torch.equal(inside, imported(features))
