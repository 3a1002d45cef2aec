"""The generated corpus: schema, labels, reproducibility, and no leak of the label."""

from __future__ import annotations

import collections
import shutil

import av
import cv2
import numpy as np
import pandas as pd
import pytest

from klassify.augmentation import vocoder
from klassify.augmentation.faults import Fault, degrade
from klassify.augmentation.sound_edits import paste
from klassify.cli import main
from klassify.corpus import clips, motion, speech
from klassify.corpus.clips import make_versions, merged
from klassify.corpus.encode import write_clip
from klassify.corpus.face import mean_mesh, speaker_mesh
from klassify.corpus.look import draw_speaker
from klassify.corpus.metadata import read_entries
from klassify.corpus.plan import (
    DIFFICULTIES,
    HELD_BACK,
    SIZES,
    SPLITS,
    TRAIN_PROFILES,
    TRAIN_VOCODERS,
    VERSIONS,
    draw_fake,
    generator,
    originals,
)
from klassify.corpus.portrait import paint
from klassify.corpus.render import Renderer
from klassify.corpus.sheet import draw_sheet
from klassify.corpus.take import record
from klassify.corpus.text import draw_sentence
from klassify.errors import KlassifyError
from klassify.evaluation import leaks, shortcuts
from klassify.files import read_json, write_json
from klassify.media import decoder
from klassify.media.container import container_traits
from klassify.media.content import content_traits

FIELDS = [
    *("file", "original", "split", "modify_type", "audio_model", "video_model", "fake_segments"),
    *("audio_fake_segments", "visual_fake_segments", "video_frames", "audio_frames"),
]


@pytest.fixture(scope="module")
def tiny_corpus(tmp_path_factory):
    """The tiny corpus, made by two processes."""
    out = tmp_path_factory.mktemp("corpus") / "tiny"
    assert main(["corpus", "--out", str(out), "--size", "tiny", "--jobs", "2"]) == 0
    return out


def decoded(path):
    """(frames (T, H, W, 3) uint8, wave (n,) float32) of a clip."""
    with av.open(str(path)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    with av.open(str(path)) as container:
        wave = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    return frames, wave


def contents(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder): path.read_bytes() for path in files}


def test_the_corpus_has_the_challenge_s_layout_and_schema(tiny_corpus):
    files = {"corpus.json", *(f"{split}_metadata.json" for split in ("train", "val"))}
    lists = {f"{split}_files.txt" for split in ("testA", "testB")}
    assert {path.name for path in tiny_corpus.iterdir()} == {*SPLITS, "heldout"} | files | lists
    entries = read_entries(tiny_corpus)
    assert len(entries) == read_json(tiny_corpus / "corpus.json")["clips"] == 24
    on_disk = {str(path.relative_to(tiny_corpus)) for path in tiny_corpus.rglob("*.mp4")}
    assert on_disk == {f"{entry['split']}/{entry['file']}" for entry in entries}
    for entry in entries:
        assert list(entry)[: len(FIELDS)] == FIELDS
    for split in ("testA", "testB"):
        listed = (tiny_corpus / f"{split}_files.txt").read_text().splitlines()
        assert listed == [f"{number + 1:06d}.mp4" for number in range(len(listed))]
        assert listed == [entry["file"] for entry in read_entries(tiny_corpus, (split,))]


def test_types_agree_with_segments(tiny_corpus):
    for entry in read_entries(tiny_corpus):
        kind = entry["modify_type"]
        audio, visual = entry["audio_fake_segments"], entry["visual_fake_segments"]
        audio_is_fake = kind in ("audio_modified", "both_modified")
        visual_is_fake = kind in ("visual_modified", "both_modified")
        assert bool(audio) == bool(entry["audio_model"]) == audio_is_fake
        assert bool(visual) == bool(entry["video_model"]) == visual_is_fake
        assert entry["fake_segments"] == merged(audio + visual)
        for segments in (audio, visual, entry["fake_segments"]):
            assert len(segments) <= 5 and segments == merged(segments)
            assert all(0 < start < end < entry["video_frames"] / 25 for start, end in segments)
        for start, end in audio:  # the same words in both
            assert not visual or any(begin <= start and end <= stop for begin, stop in visual)
        frames = np.array(visual) * 25
        np.testing.assert_allclose(frames, np.round(frames), atol=1e-9)


def test_the_tiny_corpus_has_enough_for_every_stage(tiny_corpus):
    entries = pd.DataFrame(read_entries(tiny_corpus))
    assert set(entries["modify_type"]) == set(VERSIONS)
    val = entries[entries["split"] == "val"]
    assert val["original"].nunique() >= 5  # three for val_fit, two for val_report
    assert (val.groupby("original")["modify_type"].apply(lambda kinds: "real" in set(kinds))).all()


def test_decoded_lengths_match_the_metadata(tiny_corpus):
    for entry in read_entries(tiny_corpus):
        frames, wave = decoded(tiny_corpus / entry["split"] / entry["file"])
        assert frames.shape == (entry["video_frames"], 224, 224, 3)
        assert 0 <= len(wave) - entry["audio_frames"] < 1024
        assert entry["audio_frames"] == entry["video_frames"] * 640


def test_an_equal_picture_is_not_encoded_again(tmp_path):
    rng = np.random.default_rng(0)
    frames = list(rng.integers(0, 256, (12, 64, 64, 3), np.uint8))
    wave, other = rng.normal(0, 0.1, (2, 7680)).astype(np.float32)
    written = write_clip(tmp_path / "real.mp4", frames, wave, 20, 64_000)
    write_clip(tmp_path / "whole.mp4", frames, other, 20, 64_000)
    again = {"video": written["video"]}
    write_clip(tmp_path / "again.mp4", frames[:1], other, 20, 64_000, again)
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def test_versions_differ_only_in_the_fake_spans():
    """Before encoding, sample by sample and pixel by pixel (an echo follows a fake word)."""
    seed, normal = 0, DIFFICULTIES["normal"]
    take = record(originals(SIZES["default"], seed)[0], seed, normal)
    made = {}
    for fake in take.fakes:
        wave, audio = clips.sound(take, fake, normal, np.random.default_rng(1))
        frames, visual = clips.pictures(take, fake, normal, np.random.default_rng(2))
        made[fake.modify_type] = wave, np.stack(frames), audio, visual
    real_wave, real_frames, *_ = made.pop("real")
    for wave, frames, audio, visual in made.values():
        heard, seen = np.zeros(len(wave), bool), np.zeros(len(frames), bool)
        for start, end in audio:
            heard[round(start * 16000) : round(end * 16000)] = True
            assert (wave != real_wave)[round(start * 16000) : round(end * 16000)].mean() > 0.9
        echo = np.convolve(heard, np.ones(4000))[: len(heard)] > 0.5
        np.testing.assert_allclose(wave[~echo], real_wave[~echo], atol=1e-6)
        for start, end in visual:
            seen[round(start * 25) : round(end * 25)] = True
        np.testing.assert_array_equal(np.any(frames != real_frames, axis=(1, 2, 3)), seen)


def test_the_decoded_wave_has_no_encoder_delay(tiny_corpus):
    entry = read_entries(tiny_corpus, ("train",))[0]
    _, wave = decoded(tiny_corpus / "train" / entry["file"])
    assert np.abs(wave[: int(0.12 * 16000)]).max() < 0.3 * np.abs(wave).max()


@pytest.mark.parametrize("size", SIZES)
def test_speakers_are_disjoint_and_files_unique(size):
    planned = originals(SIZES[size], 0)
    splits_of = collections.defaultdict(set)
    for original in planned:
        splits_of[original.speaker].add(original.split)
    assert all(len(splits) == 1 for splits in splits_of.values())
    files = [(original.split, file) for original in planned for file in original.files.values()]
    clips = {"tiny": 24, "small": 120, "default": 504, "large": 728}
    assert len(set(files)) == len(files) == clips[size]


def test_names_of_test_files_do_not_follow_the_type():
    test_a = [original for original in originals(SIZES["large"], 0) if original.split == "testA"]
    order = np.array([[int(file[:6]) for file in one.files.values()] for one in test_a])
    assert sorted(order.ravel()) == list(range(1, order.size + 1))
    assert np.ptp(order.mean(axis=0)) < 25  # of 96


@pytest.fixture(scope="module")
def fakes():
    """(split, Fake) of every fake clip of the large corpus."""
    drawn = []
    for original in originals(SIZES["large"], 0):
        sentence = draw_sentence(generator(0, 99, original.index), original.short)
        for number, version in enumerate(original.files):
            rng = generator(0, 98, original.index, number)
            if version != "real":
                drawn.append((original.split, draw_fake(version, original, sentence, rng)))
    return drawn


def test_held_back_methods_are_only_in_their_split(fakes):
    for split in SPLITS:
        of_split = [fake for where, fake in fakes if where == split]
        vocoders = {fake.vocoder for fake in of_split} - {None}
        profiles = {fake.profile for fake in of_split} - {None}
        held = HELD_BACK.get(split)
        assert vocoders == {*TRAIN_VOCODERS, *(held[:1] if held else ())}
        assert profiles == {*TRAIN_PROFILES, *(held[1:] if held else ())}


def test_fake_words_are_other_words_of_the_slot(fakes):
    for _, fake in fakes[:100]:
        assert 1 <= len(fake.replaced) <= 5
        choices = dict(fake.sentence.choices)
        assert all(fake.sentence.words[number] in choices[number] for number in fake.replaced)


def test_slots_have_other_words_and_words_on_both_sides():
    rng = np.random.default_rng(0)
    for short in (True, False) * 50:
        sentence = draw_sentence(rng, short)
        for slot in range(len(sentence.choices)):
            number, word = sentence.other_word(slot, rng)
            assert 0 < number < len(sentence.words) - 1
            assert word != sentence.words[number] and word in dict(sentence.choices)[number]


def test_one_process_makes_the_same_bytes(tiny_corpus, tmp_path):
    planned = [original for original in originals(SIZES["tiny"], 0) if original.split != "train"]
    for original in planned[4:6]:  # the second original of a speaker, without the first
        make_versions(original, tmp_path, 0, DIFFICULTIES["normal"])
        for file in original.files.values():
            path = f"{original.split}/{file}"
            assert (tmp_path / path).read_bytes() == (tiny_corpus / path).read_bytes(), path


def test_an_interrupted_run_continues(tiny_corpus, tmp_path):
    """After kill -9: no metadata yet, one original half written, the others finished."""
    out = tmp_path / "killed"
    shutil.copytree(tiny_corpus, out)
    for name in ("train_metadata.json", "val_metadata.json", "testA_files.txt", "testB_files.txt"):
        (out / name).unlink()
    shutil.rmtree(out / "heldout")
    settings = read_json(out / "corpus.json")
    write_json(out / "corpus.json", {**settings, "complete": False})
    entries = {(entry["split"], entry["file"]): entry for entry in read_entries(tiny_corpus)}
    *finished, last = originals(SIZES["tiny"], 0)
    for original in finished:
        place = out / "progress" / f"{original.index:05d}.json"
        write_json(place, [entries[original.split, file] for file in original.files.values()])
    file = out / last.split / last.files["real"]
    file.rename(file.with_name(f"{file.stem}.partial-123-abc.mp4"))
    kept = [path for path in out.rglob("*.mp4") if path.parent.name != last.split]
    times = [path.stat().st_mtime_ns for path in kept]
    assert main(["corpus", "--out", str(out), "--size", "tiny"]) == 0
    assert contents(out) == contents(tiny_corpus)
    assert times == [path.stat().st_mtime_ns for path in kept]


def test_a_complete_corpus_is_kept_and_another_refused(tiny_corpus, capsys):
    before = {path: path.stat().st_mtime_ns for path in tiny_corpus.rglob("*")}
    assert main(["corpus", "--out", str(tiny_corpus), "--size", "tiny"]) == 0
    assert main(["corpus", "--out", str(tiny_corpus), "--size", "tiny", "--seed", "1"]) == 2
    assert "seed: 0 there, 1 now" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in tiny_corpus.rglob("*")}


def test_a_folder_of_other_files_is_refused(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert main(["corpus", "--out", str(tmp_path), "--size", "tiny", "--force"]) == 2
    assert "something other than" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").exists()


def test_missing_espeak_says_how_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["corpus", "--out", str(tmp_path / "new")]) == 2
    assert "pip install 'klassify[corpus]'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def traits(tiny_corpus) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Traits of the container and loudness of all clips, which are fake, and their originals."""
    rows, entries = [], read_entries(tiny_corpus)
    for entry in entries:
        path = tiny_corpus / entry["split"] / entry["file"]
        power = float(np.mean(decoder.read_audio(path) ** 2))
        rows.append({**container_traits(path), "loudness_db": 10 * np.log10(power + 1e-12)})
    is_fake = np.array([int(entry["modify_type"] != "real") for entry in entries])
    original = np.array([f"{entry['split']}/{entry['original']}" for entry in entries])
    return pd.DataFrame(rows), is_fake, original


def test_the_container_does_not_reveal_the_label(traits):
    assert 0.4 <= leaks.leak_auc(*traits) <= 0.6


def test_a_leak_would_be_found(traits):
    table, is_fake, original = traits
    assert leaks.leak_auc(table.assign(tags=is_fake), is_fake, original) > 0.9
    with pytest.raises(KlassifyError, match="two originals"):
        leaks.leak_auc(table[:2], is_fake[:2], original[:2])


def test_the_content_holds_no_shortcut(tiny_corpus, monkeypatch):
    monkeypatch.setattr(leaks, "REPEATS", 1)
    monkeypatch.setattr(shortcuts, "N_JOINT", 1)
    entries = read_entries(tiny_corpus)
    frame = pd.DataFrame({name: [one[name] for one in entries] for name in ("file", "modify_type")})
    frame["source"] = [f"{one['split']}/{one['original']}" for one in entries]
    traits = [content_traits(tiny_corpus / one["split"] / one["file"]) for one in entries]
    found = shortcuts.audit("corpus", frame, traits, n_bootstrap=20)
    assert not found.warnings and not found.failed
    assert (found.traits["trait"] == "noise_floor_db").any()


def test_clips_do_not_name_the_encoder(tiny_corpus):
    for path in tiny_corpus.rglob("*.mp4"):
        content = path.read_bytes().lower()
        assert not any(name in content for name in (b"x264", b"lavf", b"lavc", b"libav"))


def test_mediapipe_finds_the_faces(tiny_corpus):
    mediapipe = pytest.importorskip("mediapipe")
    seen = []
    entries = [
        entry for entry in read_entries(tiny_corpus) if entry["modify_type"] == "both_modified"
    ]
    for entry in entries[:4]:
        with mediapipe.solutions.face_mesh.FaceMesh(max_num_faces=1, refine_landmarks=True) as mesh:
            for frame in decoded(tiny_corpus / entry["split"] / entry["file"])[0]:
                seen.append(mesh.process(frame).multi_face_landmarks is not None)
    assert np.mean(seen) >= 0.99


def test_meshes_are_symmetric_and_differ():
    mirror = mean_mesh()[1]
    meshes = [speaker_mesh(draw_speaker(np.random.default_rng(seed))[0]) for seed in range(3)]
    for mesh in meshes:
        np.testing.assert_allclose(mesh[mirror] * (-1, 1, 1), mesh, atol=1e-4)
    assert np.abs(meshes[0] - meshes[1]).max() > 0.02


def test_the_mouth_opens_with_its_parameter():
    renderer = Renderer(paint(draw_speaker(np.random.default_rng(4))[0]))
    tracks = motion.draw_tracks(np.random.default_rng(0), np.zeros((40, 3)))
    shut, half, wide = (
        renderer.frame(tracks, 0, np.array([opened, 0, 0])).astype(int) for opened in (0, 0.5, 1)
    )
    changed = [np.abs(other - shut).max(axis=2) > 30 for other in (half, wide)]
    assert 0 < changed[0].sum() < changed[1].sum()
    rows = np.nonzero(changed[1].any(axis=1))[0]
    assert rows.min() > renderer.mouth_centre(tracks.pose[0])[1] - 20


def test_faults_blur_sharpen_and_tint():
    rng = np.random.default_rng(0)
    picture = cv2.GaussianBlur(rng.uniform(0, 255, (224, 224, 3)).astype(np.float32), (0, 0), 1)

    def sharpness(fault):
        return cv2.Laplacian(degrade(picture, fault), cv2.CV_32F).var()

    def lab(picture):
        return cv2.cvtColor(picture / np.float32(255), cv2.COLOR_RGB2LAB)

    plain = sharpness(Fault())
    np.testing.assert_allclose(degrade(picture, Fault()), picture, atol=1e-3)
    assert sharpness(Fault(blur=1)) < plain and sharpness(Fault(shrink=0.5)) < plain
    assert plain < sharpness(Fault(sharpen=1))
    grey = np.full((224, 224, 3), 128, np.float32)
    shift = lab(degrade(grey, Fault(tint=(2, 3, -1)))) - lab(grey)
    np.testing.assert_allclose(shift[0, 0], (2, 3, -1), atol=0.3)


def test_the_sheet_frames_fake_frames_in_red(tiny_corpus, tmp_path):
    draw_sheet(tiny_corpus, tmp_path / "sheet.png", speakers=2, moments=4)
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape[1] == 4 * 232 and sheet.shape[0] == 4 * 250
    red = (sheet[..., 2] > 200) & (sheet[..., 1] < 60)
    assert red.any()


def test_speech_gives_the_times_of_words():
    text = "the mayor of the city will reject it"
    spoken = speech.speak([speech.Utterance(text, "en-us+m3", 180, 50)] * 2, seed=1)[0]
    begin, end = spoken.span(text, 6)
    assert 0.15 < end - begin < 0.6 and end < spoken.duration
    with pytest.raises(KlassifyError, match="no time for word 3"):  # "of the" is one event
        spoken.span(text, 3)
    again = speech.speak([speech.Utterance(text, "en-us+m3", 180, 50)], seed=1)[0]
    np.testing.assert_array_equal(spoken.wave, again.wave)


def test_an_unknown_voice_is_refused():
    with pytest.raises(KlassifyError, match="no voice variant 'm99'"):
        speech.speak([speech.Utterance("hello", "en-us+m99", 180, 50)], seed=1)


@pytest.mark.parametrize("n_samples", [3000, 4800, 7000])
def test_fit_length_keeps_the_pitch(n_samples):
    tone = np.sin(2 * np.pi * 200 * np.arange(4800) / 16000).astype(np.float32)
    fitted = vocoder.fit_length(tone, n_samples)
    assert len(fitted) == n_samples
    spectrum = np.abs(np.fft.rfft(fitted * np.hanning(n_samples), 16000))
    assert abs(spectrum.argmax() - 200) <= 5


@pytest.mark.parametrize("name", vocoder.VOCODERS)
def test_vocoders_keep_length_and_timbre(name):
    """A vocoded vowel has its energy in the vowel's bands, yet is not the vowel."""
    utterance = speech.Utterance("father", "en-us+m3", 150, 50)
    spoken = speech.speak([utterance], seed=1)[0].wave[1600:6400]
    coded = vocoder.VOCODERS[name](spoken, np.random.default_rng(0))
    assert coded.shape == spoken.shape and np.isfinite(coded).all()
    spectra = [np.abs(np.fft.rfft(wave[:4608].reshape(9, 512))).mean(0) for wave in (spoken, coded)]
    bands = [vocoder.mel_filters(12) @ spectrum for spectrum in spectra]
    assert np.corrcoef(np.log(bands))[0, 1] > 0.8
    assert abs(np.corrcoef(spoken, coded)[0, 1]) < 0.98


def test_paste_keeps_loudness_and_edges():
    rng = np.random.default_rng(0)
    wave = 0.1 * rng.standard_normal(16000).astype(np.float32)
    edited = wave.copy()
    paste(edited, 4000, 8000, 0.3 * rng.standard_normal(3000).astype(np.float32), 0.0)
    np.testing.assert_array_equal(edited[:4001], wave[:4001])
    np.testing.assert_array_equal(edited[7999:], wave[7999:])
    assert 0.7 < edited[4000:8000].std() / wave[4000:8000].std() < 1.2


@pytest.mark.parametrize(
    ("segments", "joined"),
    [
        ([], []),
        ([[1.0, 2.0], [0.2, 0.4]], [[0.2, 0.4], [1.0, 2.0]]),
        ([[0.2, 0.5], [0.5, 0.7], [0.6, 0.65]], [[0.2, 0.7]]),
    ],
)
def test_touching_segments_are_merged(segments, joined):
    assert merged(segments) == joined
