"""Audio augmentations keep length, alignment and level, and apply to training clips only."""

from __future__ import annotations

import collections
import random

import numpy as np
import pytest
import soundfile
import torch
from scipy.ndimage import uniform_filter1d
from scipy.signal import chirp, correlate, lfilter
from torch.utils.data import DataLoader

from klassify import cli
from klassify.augmentation import audio_effects, codecs, rawboost, sets
from klassify.augmentation.codecs import Codec
from klassify.augmentation.sets import EFFECTS, SETS, AudioAugment
from klassify.data import audio
from klassify.data.base import Examples, Sources
from klassify.errors import KlassifyError
from klassify.systems.experiment import load_experiment

RATE = 16_000


def generator(seed=0):
    return np.random.default_rng(seed)


def sweep(seconds=2.0, start=150.0, end=3300.0):
    """A signal whose correlation has one sharp peak, within the band of narrow-band codecs."""
    t = np.arange(round(seconds * RATE)) / RATE
    return (0.4 * chirp(t, start, seconds, end)).astype(np.float32)


def bursts(seconds=3.0):
    """Six vowel-like bursts in silence, for effects that change the wave but not its envelope."""
    t = np.arange(round(seconds * RATE)) / RATE
    tone = sum(np.sin(2 * np.pi * f * t + f) for f in (180, 360, 540, 1200, 2200)) / 5
    starts = np.array([0.3, 0.7, 1.2, 1.5, 2.1, 2.5])[:, None]
    return (0.5 * tone * ((t >= starts) & (t < starts + 0.12)).any(axis=0)).astype(np.float32)


def lag(before, after):
    """How many samples later `after` is, by the highest correlation."""
    likeness = np.abs(correlate(after.astype(float), before.astype(float)))
    return int(np.argmax(likeness)) - len(before) + 1


def envelope(wave):
    level = uniform_filter1d(np.abs(wave.astype(float)), 160)
    return level - level.mean()


@pytest.mark.parametrize("name", EFFECTS)
@pytest.mark.parametrize("n", [sets.SHORTEST, 7777])
def test_effects_keep_length_and_type_and_repeat(name, n):
    wave = generator(5).normal(0, 0.2, n).astype(np.float32)
    before = wave.copy()
    first, again = (EFFECTS[name](wave, generator(1)) for _ in range(2))
    assert first.shape == (n,) and first.dtype == np.float32 and np.isfinite(first).all()
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(wave, before)
    assert np.isfinite(EFFECTS[name](np.zeros(n, np.float32), generator())).all()


def global_states():
    numpy_state = np.random.get_state()[1].tolist()
    return random.getstate(), numpy_state, torch.get_rng_state().tolist()


def test_effects_do_not_touch_the_global_generators():
    wave = sweep(0.5)
    results = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        states = global_states()
        results.append([EFFECTS[name](wave, generator(3)) for name in EFFECTS])
        assert states == global_states()
    for one, two in zip(*results):
        np.testing.assert_array_equal(one, two)


def test_global_generators_are_restored_after_an_error():
    before = random.getstate()
    with pytest.raises(RuntimeError), audio_effects.global_seed(generator()):
        raise RuntimeError
    assert random.getstate() == before


@pytest.mark.parametrize(
    "name", [*codecs.FORMATS, "room", "noise", "rawboost3", "rawboost4", "rawboost5"]
)
def test_effects_do_not_delay_the_clip(name):
    wave = sweep()
    assert [lag(wave, EFFECTS[name](wave, generator(seed))) for seed in range(4)] == [0] * 4


@pytest.mark.parametrize("name", audio_effects.FILTERS)
def test_filters_delay_less_than_half_a_millisecond(name):
    wave = generator(2).normal(0, 0.1, RATE).astype(np.float32)
    for seed in range(6):
        assert abs(lag(wave, EFFECTS[name](wave, generator(seed)))) <= 8


def largest_move(name):
    """The largest shift of the envelope by an effect, in samples, over four seeds."""
    wave = bursts()
    changed = [EFFECTS[name](wave, generator(seed)) for seed in range(4)]
    return max(abs(lag(envelope(wave), envelope(one))) for one in changed)


def test_time_stretch_moves_sounds_and_pitch_shift_does_not():
    assert largest_move("pitch_shift") <= 16
    assert largest_move("time_stretch") > 640


def test_filters_stay_below_half_the_sample_rate():
    for name, (kind, arguments) in audio_effects.FILTERS.items():
        transform = audio_effects._transform(kind, **arguments)
        highest = getattr(transform, "max_cutoff_freq", None) or transform.max_center_freq
        assert highest * (1 + getattr(transform, "max_bandwidth_fraction", 0) / 2) < RATE / 2, name


def test_there_are_23_legal_codecs():
    names = [str(codec) for codec in codecs.legal()]
    assert len(names) == len(set(names)) == 23
    encodings = {codec.encoding for codec in codecs.legal()}
    assert encodings == {None, "PCM_S", "PCM_U", "PCM_F", "ULAW", "ALAW"}
    assert {codec.bits for codec in codecs.legal()} == {None, 8, 16, 32}


@pytest.mark.parametrize("name", [("htk", "PCM_S", 8), ("wav", "PCM_S", 8), ("mp3", "ULAW", 8)])
def test_unknown_codecs_are_refused(name):
    with pytest.raises(ValueError, match="unknown codec"):
        codecs.round_trip(sweep(0.2), Codec(*name), generator())


@pytest.mark.parametrize("codec", codecs.legal(), ids=str)
@pytest.mark.parametrize("n", [1600, 4801])
def test_codecs_keep_length_and_alignment(codec, n):
    wave = sweep(n / RATE)
    decoded = codecs.round_trip(wave, codec, generator())
    assert decoded.shape == (n,) and decoded.dtype == np.float32
    assert lag(wave, decoded) == 0


def mu_law(wave, mu=255):
    """Companding by the textbook formula, 8 bits."""
    small = np.sign(wave) * np.log1p(mu * np.abs(wave)) / np.log1p(mu)
    small = np.round(small * 127) / 127
    return np.sign(small) * np.expm1(np.abs(small) * np.log1p(mu)) / mu


def test_quantisation_error_fits_the_encoding():
    wave = sweep()

    def error(*codec):
        return np.abs(codecs.round_trip(wave, Codec(*codec), generator()) - wave).max()

    assert error("wav", "PCM_F", 32) == 0 and error("sph", "PCM_S", 32) < 1e-6
    assert 1e-6 < error("htk", "PCM_S", 16) <= 1 / 2**15
    assert 2e-3 < error("amb", "PCM_U", 8) <= 1 / 2**7
    assert 2e-3 < error("sph", "PCM_S", 8) <= 1 / 2**7
    coded = codecs.round_trip(wave, Codec("wav", "ULAW", 8), generator())
    assert np.abs(coded - mu_law(wave)).max() < 0.02 and 2e-3 < np.abs(coded - wave).max() < 0.02


@pytest.mark.parametrize("name", ["gsm", "amr-nb"])
def test_telephone_codecs_remove_sound_above_4_khz(name):
    wave = sweep(1.0, 5000, 7500)
    assert np.std(EFFECTS[name](wave, generator())) < 0.1 * np.std(wave)


def test_loud_clips_are_clipped_not_wrapped():
    wave = 3 * sweep()
    for codec in codecs.legal():
        decoded = codecs.round_trip(wave, codec, generator())
        assert np.corrcoef(decoded, np.clip(wave, -1, 1))[0, 1] > 0.8, codec


def published_notches(rng, low, high):
    """The filters as published, in the order of its draws."""
    from scipy.signal import firwin, freqz

    taps = 1
    for _ in range(5):
        centre, width, n = rng.uniform(20, 8000), rng.uniform(100, 1000), int(rng.uniform(10, 100))
        n += n % 2 == 0
        low_hz = centre - width / 2 if centre > width / 2 else 1 / 1000
        high_hz = centre + width / 2 if centre + width / 2 < 8000 else 8000 - 1 / 1000
        taps = np.convolve(firwin(n, [low_hz, high_hz], window="hamming", fs=RATE), taps)
    gain = rng.uniform(low, high)
    return 10 ** (gain / 20) * taps / np.abs(freqz(taps, 1, fs=RATE)[1]).max()


def published_filter(wave, taps):
    """Direct form, then the delay removed; the published cut, at N/2, is one sample late."""
    padding = len(taps) + 1
    delayed = lfilter(taps, 1, np.pad(wave, (0, padding)))
    return delayed[padding // 2 - 1 :][: len(wave)]


def test_convolutive_noise_matches_the_published_filters():
    wave = 0.5 * generator(1).normal(0, 0.3, 3000)
    rng, expected = generator(7), np.zeros(3000)
    for order in range(1, 6):
        low, high = (0, 0) if order == 1 else (-20, -5)
        taps = published_notches(rng, low, high)
        expected = expected + published_filter(np.power(wave, order), taps)
    expected -= expected.mean()
    expected /= max(np.abs(expected).max(), 1)
    np.testing.assert_allclose(rawboost.convolutive(wave, generator(7)), expected, atol=1e-12)


def test_impulsive_noise_hits_at_most_a_tenth_of_samples():
    wave = generator(1).uniform(-0.3, 0.3, 20_000)
    for seed in range(8):
        change = rawboost.impulsive(wave, generator(seed)) - wave
        assert np.mean(change != 0) <= 0.1 and np.all(np.abs(change) <= 2 * np.abs(wave) + 1e-12)


def test_stationary_noise_is_independent_at_10_to_40_db():
    wave = generator(1).normal(0, 0.2, 20_000)
    for seed in range(8):
        added = rawboost.stationary(wave, generator(10 + seed)) - wave
        ratio = 20 * np.log10(np.linalg.norm(wave) / np.linalg.norm(added))
        assert 10 <= ratio <= 40 and abs(np.corrcoef(added, wave)[0, 1]) < 0.05


def test_rawboost_has_algorithms_3_4_and_5():
    wave = sweep(0.5)
    three, four, five = (rawboost.rawboost(wave, generator(1), k) for k in (3, 4, 5))
    assert not np.allclose(four, five)
    np.testing.assert_allclose(three, rawboost.stationary(wave, generator(1)), atol=1e-6)
    with pytest.raises(ValueError, match="3, 4, 5"):
        rawboost.rawboost(wave, generator(), 1)


@pytest.fixture
def cheap(monkeypatch):
    """Effects that do nothing, to count which are drawn."""
    for name in EFFECTS:
        monkeypatch.setitem(EFFECTS, name, lambda wave, rng: wave)


def drawn(made, n=3000):
    wave, rng = np.zeros(sets.SHORTEST, np.float32), generator()
    return [made.apply(wave, rng)[1] for _ in range(n)]


@pytest.mark.parametrize("name", ["rtpg", "bp", "codecs", "all"])
def test_each_stage_applies_with_its_probability(cheap, name):
    hits = drawn(AudioAugment(name))
    counted = collections.Counter(effect for one in hits for effect in one)
    for _, names in SETS[name]:
        assert abs(sum(counted[effect] for effect in names) / len(hits) - 0.3) < 0.03
        shares = [counted[effect] / len(hits) for effect in names]
        assert max(shares) - min(shares) < 0.03
        assert max(sum(effect in names for effect in one) for one in hits) == 1
    assert set(counted) == {effect for _, names in SETS[name] for effect in names}


def test_p_and_without_override_the_set(cheap):
    assert all(len(one) == 4 for one in drawn(AudioAugment("rtpg", p=1), 20))
    assert not any(drawn(AudioAugment("all", p=0), 20))
    one_of_three = [effect for one in drawn(AudioAugment("rawboost")) for effect in one]
    assert len(one_of_three) == 3000
    assert set(one_of_three) == {"rawboost3", "rawboost4", "rawboost5"}
    assert drawn(AudioAugment("rawboost5"), 5) == [["rawboost5"]] * 5
    calm = AudioAugment("all", p=1, without=["time_stretch", "room"])
    assert not {"time_stretch", "room"} & {effect for one in drawn(calm, 50) for effect in one}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"set": "sox"}, "known: rtpg, bp"),
        ({"p": 1.5}, "probability"),
        ({"set": "bp", "without": ["room"]}, "bp has no room"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        AudioAugment(**arguments)


@pytest.mark.parametrize("name", SETS)
def test_sets_keep_length_and_range_and_repeat(name):
    wave = (0.9 * generator(4).uniform(-1, 1, 4000)).astype(np.float32)
    made = AudioAugment(name, p=1)
    first, again, other = (made(wave, generator(seed)) for seed in (1, 1, 2))
    assert first.shape == wave.shape and first.dtype == np.float32 and np.abs(first).max() <= 1
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_very_short_clips_stay_unchanged():
    for n in (0, 1, sets.SHORTEST - 1):
        wave = np.full(n, 0.5, np.float32)
        np.testing.assert_array_equal(AudioAugment("all", p=1)(wave, generator()), wave)


def test_localisation_refuses_sets_that_move_sounds():
    assert [name for name in SETS if not AudioAugment(name).aligned] == ["rtpg", "all"]
    with pytest.raises(ValueError, match="without"):
        audio.AudioFrames(augment=AudioAugment("rtpg"))
    aligned = AudioAugment("all", without=["time_stretch"])
    assert audio.AudioFrames(augment=aligned).augment.aligned


@pytest.mark.parametrize("kind", [audio.AudioClips, audio.AudioFrames])
def test_training_clips_are_augmented_and_scored_ones_not(kind):
    clip = np.tile(sweep(), 3)
    plain, noisy = kind(), kind(augment=AudioAugment("codecs", p=1))
    target = 1 if kind is audio.AudioClips else (np.array([[1.0, 2.0]]), 1)
    before, after = (data.example(clip, target, generator(1)) for data in (plain, noisy))
    assert before["wave"].shape == after["wave"].shape
    assert not torch.equal(before["wave"], after["wave"])
    for key in before.keys() - {"wave"}:
        assert torch.equal(before[key], after[key])
    for one, two in zip(plain.cut(clip), noisy.cut(clip), strict=True):
        assert torch.equal(one.inputs["wave"], two.inputs["wave"])


def test_examples_depend_on_the_epoch_and_not_on_workers(small_data):
    sources = Sources(small_data.lists, small_data.media, small_data.features)
    data = audio.AudioClips(train_split="train", augment=AudioAugment("all", p=0.8))
    keys = [(epoch, index) for epoch in (0, 1) for index in (0, 2, 4)]
    examples = Examples(data, sources, "train", seed=1)
    waves = [examples[key]["wave"] for key in keys]
    loader = DataLoader(
        examples, sampler=keys, batch_size=None, num_workers=2, multiprocessing_context="fork"
    )
    for one, two in zip(waves, loader, strict=True):
        assert torch.equal(one, two["wave"])
    assert not torch.equal(waves[0], waves[3])


CONFIG = """
model: {class_path: klassify.models.tcn.TCN}
data:
  class_path: klassify.data.audio.AudioClips
  init_args:
    augment: {class_path: klassify.augmentation.sets.AudioAugment, init_args: {set: %s}}
train: {epochs: 1, batch_size: 2, lr: 0.1, patience: 1}
"""


def test_a_config_names_the_set(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(CONFIG % "rtpg")
    experiment = load_experiment(path)
    assert [names for _, names in experiment.data.augment.stages][0] == ("room",)
    path.write_text(CONFIG % "sox")
    with pytest.raises(KlassifyError, match="sox"):
        load_experiment(path)


@pytest.mark.parametrize(("name", "files"), [("codecs", 27), ("bp", 11), ("rawboost", 7)])
def test_the_command_writes_one_file_per_effect_and_draw(tmp_path, name, files, capsys):
    clip = str(tmp_path / "ü clip.wav")
    soundfile.write(clip, sweep(0.5), RATE)
    command = ["augment", clip, "--set", name, "--out", str(tmp_path / "out")]
    assert cli.main(command) == 0
    written = sorted((tmp_path / "out").iterdir())
    assert len(written) == files and (tmp_path / "out/ü clip.original.wav") in written
    assert len(capsys.readouterr().out.splitlines()) == files
    contents = {path: path.read_bytes() for path in written}
    for path in written:
        heard, rate = soundfile.read(path)
        assert rate == RATE and len(heard) == RATE // 2
    assert cli.main(command) == 0
    assert all(path.read_bytes() == content for path, content in contents.items())


def test_the_command_refuses_clips_without_sound(tmp_path, capsys):
    soundfile.write(tmp_path / "short.wav", np.zeros(100), RATE)
    options = ["--set", "bp", "--out", str(tmp_path)]
    assert cli.main(["augment", str(tmp_path / "short.wav"), *options]) == 2
    assert "0.01 s of sound" in capsys.readouterr().err
    assert cli.main(["augment", str(tmp_path / "none.wav"), *options]) == 2
