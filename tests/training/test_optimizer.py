"""Learning rates by depth and over time."""

from __future__ import annotations

import pytest
import torch
from speech_models import NARROW

from klassify.errors import KlassifyError
from klassify.models.audio_encoder import AudioMIL
from klassify.models.frontends.ssl import SSLFrontEnd
from klassify.systems.experiment import TrainSettings
from klassify.training.trainer import optimizer_of, scheduler_of

TINY = {**NARROW, "num_hidden_layers": 3}


def test_earlier_layers_of_the_encoder_learn_more_slowly():
    model = AudioMIL(SSLFrontEnd(False, architecture=TINY, freeze="extractor"), dim=8)
    settings = TrainSettings(lr=1e-3, encoder_lr=1e-5, layer_decay=0.5)
    optimizer = optimizer_of(model, settings)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    trained = [p for p in model.parameters() if p.requires_grad]
    assert rates.keys() == {id(p) for p in trained}
    assert all(rates[id(p)] == 1e-3 for p in [*model.head.parameters(), *model.pool.parameters()])
    encoder = model.frontend.model.encoder
    assert rates[id(encoder.layer_norm.weight)] == 1e-5
    for layer, wanted in zip(encoder.layers, (1.25e-6, 2.5e-6, 5e-6)):
        assert all(rates[id(p)] == pytest.approx(wanted) for p in layer.parameters())
    first = model.frontend.model.feature_projection.projection.weight
    assert rates[id(first)] == pytest.approx(6.25e-7)


def test_a_model_without_an_encoder_is_refused():
    with pytest.raises(KlassifyError, match="Linear has no encoder"):
        optimizer_of(torch.nn.Linear(2, 2), TrainSettings(encoder_lr=1e-5))


def rates_over_time(**settings):
    settings = TrainSettings(lr=1.0, **settings)
    optimizer = optimizer_of(torch.nn.Linear(2, 2), settings)
    scheduler = scheduler_of(optimizer, settings, updates_per_epoch=10, epochs=4)
    rates = []
    for _ in range(40):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_warm_up_rises_evenly_and_the_cosine_follows():
    rates = rates_over_time(warmup=0.1)
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    half = 4 + 18
    assert rates[half] == pytest.approx(0.5)
    assert all(later < earlier for earlier, later in zip(rates[4:], rates[5:]))
    assert rates[-1] < 0.01


def test_without_warm_up_schedules_are_as_before():
    assert rates_over_time()[0] == 1.0
    assert rates_over_time(schedule="constant") == [1.0] * 40
    assert rates_over_time(schedule="step", step_epochs=1)[::10] == [1.0, 0.5, 0.25, 0.125]


def test_one_kernel_updates_all_parameters_of_a_gpu():
    model, gpu = torch.nn.Linear(2, 2), torch.device("cuda")
    for settings, device, fused in (
        (TrainSettings(), gpu, True),
        (TrainSettings(optimizer="adam", precision="bf16-mixed", clip_norm=1.0), gpu, True),
        (TrainSettings(precision="16-mixed", clip_norm=1.0), gpu, None),
        (TrainSettings(), torch.device("cpu"), None),
    ):
        assert optimizer_of(model, settings, device).param_groups[0]["fused"] == fused


def test_speech_models_attend_without_holding_all_scores():
    front_end = SSLFrontEnd(False, architecture=TINY)
    assert front_end.model.config._attn_implementation == "sdpa"
