"""The LMM features: prompt, positions and preprocessing match slow loops on the tiny LLaVA."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from klassify.features.lmm import load, model
from klassify.features.lmm import tiny as lmm_tiny
from klassify.features.lmm.kind import LMMExtractor, Shown
from klassify.features.lmm.load import LMMSource

NEW = 64


@pytest.fixture(scope="module")
def tiny() -> model.LMM:
    return model.LMM(*load.load(LMMSource("tiny"), "cpu"))


@pytest.fixture(scope="module")
def exact() -> model.LMM:
    """The tiny model in float64."""
    llava, tokenizer, _ = load.load(LMMSource("tiny"), "cpu")
    return model.LMM(llava.double(), tokenizer)


def pictures(n: int, seed: int = 0, shape: tuple[int, int] = (60, 60)) -> list[np.ndarray]:
    height, width = shape
    size = (n, math.ceil(height / 12), math.ceil(width / 12), 3)
    small = np.random.default_rng(seed).integers(0, 256, size).astype(np.uint8)
    return [image.repeat(12, 0).repeat(12, 1)[:height, :width] for image in small]


def test_the_prompt_is_the_published_one():
    assert (
        model.PROMPT
        == "Assistant: A chat between a curious human and an artificial intelligence assistant. The"
        " assistant gives helpful, detailed, and polite answers to the human's"
        " questions.###Human: <image>\nAs an expert in image forensics, you are to briefly"
        " describe the image, including lighting and reflection, texture, color saturation,"
        " shape consistency, sense of depth, compression trace, artifacts. Give a reason to"
        " justify whether it is a real or a fake image.###Assistant:"
    )


def test_image_tokens_are_between_the_parts_of_the_prompt(tiny):
    table = tiny.llava.get_input_embeddings().weight
    patches = torch.randn(2, 16, 64, generator=torch.Generator().manual_seed(0))
    prompt = tiny.prompt(patches)
    head, tail = model.PROMPT.split("<image>")
    # the tiny tokenizer has one token per byte
    assert prompt.shape == (2, 1 + len(head) + 16 + len(tail), 64)
    before, image, after = prompt.split([1 + len(head), 16, len(tail)], dim=1)
    assert torch.equal(image, patches)
    for piece, text, start in ((before, head, [1]), (after, tail, [])):
        ids = [int((table - row).abs().sum(dim=1).argmin()) for row in piece[1]]
        assert ids[: len(start)] == start and 1 not in ids[len(start) :]
        assert tiny.tokenizer.decode(ids, skip_special_tokens=True) == text


def test_states_match_a_loop_without_cache(exact):
    """Every step reads the whole sequence again; position 0 of 64 is the prompt's last token."""
    with torch.inference_mode():
        squares = [model.padded_square(frame, 56) for frame in pictures(2)]
        prompt = exact.prompt(exact.patches(squares))
        states, tokens = exact.write(prompt)
        assert states.shape == (2, NEW, 64) and tokens.shape == (2, NEW)
        sequence = prompt
        for step in range(NEW):
            read = exact.language(inputs_embeds=sequence, use_cache=False)
            last = read.last_hidden_state[:, -1]
            torch.testing.assert_close(states[:, step], last, rtol=0, atol=1e-9)
            logits = last @ exact.llava.lm_head.weight.T
            logits[:, 2] = -math.inf  # </s>
            assert torch.equal(tokens[:, step], logits.argmax(dim=1))
            written = exact.llava.get_input_embeddings()(tokens[:, step : step + 1])
            sequence = torch.cat([sequence, written], dim=1)
        # the model never reads the 64th token, with which the sequence now ends
        whole = exact.language(inputs_embeds=sequence[:, :-1], use_cache=False).last_hidden_state
        torch.testing.assert_close(states, whole[:, -NEW:], rtol=0, atol=1e-9)


def test_states_are_after_the_final_norm(exact):
    raw = []
    hook = exact.language.norm.register_forward_pre_hook(
        lambda _, arguments: raw.append(arguments[0][:, -1])
    )
    with torch.inference_mode():
        states, _ = exact.write(exact.prompt(torch.ones(1, 16, 64, dtype=torch.float64)))
    hook.remove()
    raw = torch.stack(raw, dim=1)
    scale = raw.square().mean(dim=-1, keepdim=True).add(exact.language.config.rms_norm_eps).rsqrt()
    torch.testing.assert_close(states, raw * scale * exact.language.norm.weight, rtol=0, atol=1e-6)
    assert (states - raw).abs().max() > 0.1


def test_decoding_matches_transformers_generate(tiny):
    """The published system calls generate with 64 new tokens and keeps hidden_states."""
    with torch.inference_mode():
        squares = [model.padded_square(frame, 56) for frame in pictures(1, seed=3)]
        prompt = tiny.prompt(tiny.patches(squares))
        states, tokens = tiny.write(prompt)
        output = tiny.llava.generate(
            inputs_embeds=prompt,
            do_sample=False,
            min_new_tokens=NEW,
            max_new_tokens=NEW,
            use_cache=True,
            output_hidden_states=True,
            return_dict_in_generate=True,
            pad_token_id=0,
            attention_mask=torch.ones(prompt.shape[:2], dtype=torch.long),
        )
    assert torch.equal(output.sequences, tokens)
    kept = torch.cat([step[-1] for step in output.hidden_states], dim=1)[:, -NEW:]
    torch.testing.assert_close(states, kept, rtol=0, atol=1e-5)


def test_the_end_token_is_never_chosen(tiny, monkeypatch):
    head = torch.nn.Linear(64, 260, bias=True)
    torch.nn.init.zeros_(head.weight)
    head.bias.data = torch.zeros(260)
    head.bias.data[[2, 70]] = torch.tensor([5.0, 1.0])
    monkeypatch.setattr(tiny, "head", head)
    with torch.inference_mode():
        _, tokens = tiny.write(tiny.prompt(torch.zeros(1, 16, 64)))
    assert tokens.tolist() == [[70] * NEW]


def test_image_tokens_match_the_model_s_own_forward(exact):
    """transformers' route: 16 <image> tokens in the ids, pixels beside them."""
    images = [model.padded_square(frame, 56) for frame in pictures(2, seed=1)]
    ids = torch.tensor([exact.before + [3] * 16 + exact.after] * 2)
    pixels = model._pixels(images, exact.tower)
    with torch.inference_mode():
        inputs = {"input_ids": ids, "pixel_values": pixels, "attention_mask": torch.ones_like(ids)}
        theirs = exact.llava(**inputs).logits[:, -1]
        read = exact.language(inputs_embeds=exact.prompt(exact.patches(images)))
        ours = exact.head(read.last_hidden_state[:, -1])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def test_the_pooled_vector_is_the_normed_class_token(exact):
    images = [model.centre_square(frame, 56) for frame in pictures(2, seed=2)]
    with torch.inference_mode():
        pooled = exact.pooled(images)
        last = exact.tower(model._pixels(images, exact.tower)).last_hidden_state[:, 0]
        norm = getattr(exact.tower, "vision_model", exact.tower).post_layernorm
        torch.testing.assert_close(pooled, norm(last), rtol=0, atol=1e-9)
    assert (pooled - last).abs().max() > 0.01 and pooled.shape == (2, 32)


@pytest.mark.parametrize(
    "shape", [(224, 224), (336, 336), (100, 61), (57, 133), (500, 340), (30, 31)]
)
def test_the_centre_square_matches_clip_s_preprocessing(shape):
    try:
        from transformers.models.clip.image_processing_pil_clip import (
            CLIPImageProcessorPil as Processor,
        )
    except ImportError:  # before version 5
        from transformers import CLIPImageProcessor as Processor
    frame = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    processor = Processor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    theirs = processor(images=[frame], return_tensors="np")["pixel_values"][0]
    ours = (model.centre_square(frame, 336).astype(np.float64).transpose(2, 0, 1) / 255).T
    ours = ((ours - model.MEAN) / model.STD).T
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_other_shapes_are_padded_with_the_mean_colour():
    frame = np.full((60, 20, 3), 9, np.uint8)
    square = model.padded_square(frame, 60)
    assert square.shape == (60, 60, 3) and (square[:, 20:40] == 9).all()
    assert (square[:, :20] == [122, 116, 104]).all() and (square[:, 40:] == [122, 116, 104]).all()
    assert (model.padded_square(frame.transpose(1, 0, 2), 60) == square.transpose(1, 0, 2)).all()
    whole = pictures(1)[0]
    assert np.array_equal(model.padded_square(whole, 60), whole)


def test_features_depend_on_the_image_and_not_the_batch(tiny):
    frames = [*pictures(2), *pictures(1, seed=5, shape=(90, 40))]
    visual, textual, texts = tiny(frames)
    assert visual.shape == (3, 32) and textual.shape == (3, NEW, 64) and len(texts) == 3
    assert visual.dtype == textual.dtype == np.float16 and len(set(texts)) == 3
    for i, frame in enumerate(frames):
        one_visual, one_textual, (text,) = tiny([frame])
        np.testing.assert_allclose(one_visual[0], visual[i], atol=2e-3)
        np.testing.assert_allclose(one_textual[0], textual[i], atol=2e-2)
        assert text == texts[i] and text.isprintable()
    assert np.abs(textual[0].astype(float) - textual[1]).mean() > 0.1
    assert np.abs(visual[0].astype(float) - visual[1]).mean() > 0.02


def test_features_of_a_clip_alone_are_those_of_its_list(tiny, tmp_path):
    extractor = LMMExtractor(tmp_path, tiny, batch_size=4)
    clips = [
        Shown(str(i), 25.0, 1, np.array([0]), [picture]) for i, picture in enumerate(pictures(3))
    ]
    for clip, of_list in zip(clips, list(extractor.extract(clips))):
        (alone,) = extractor.extract([clip])
        np.testing.assert_array_equal(alone.visual, of_list.visual)
        np.testing.assert_array_equal(alone.textual, of_list.textual)


def test_the_tiny_model_is_reproducible_and_says_untrained():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, other = lmm_tiny.llava(), lmm_tiny.llava()
    assert torch.equal(before, torch.random.get_rng_state())
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    settings = LMMSource("tiny").settings()
    assert settings["untrained"] and settings["lmm"] == "tiny" and "NOT trained" in lmm_tiny.__doc__
    assert (settings["visual_dim"], settings["textual_dim"]) == (32, 64)
    assert LMMSource("tiny", "tiny").settings()["clip"] == "tiny"


class Recorder:
    """A fake LMM: visual is the frame's first pixel; frames of the colour 13 fail."""

    def __init__(self):
        self.batches: list[int] = []

    def __call__(self, frames):
        self.batches.append(len(frames))
        first = np.array([frame[0, 0] for frame in frames], np.float16)
        if (first == 13).any():
            raise RuntimeError("13 is not looked at")
        first[first == 66] = np.nan
        texts = [f"colour {pixel[0]:.0f}" for pixel in first]
        return first, np.zeros((len(frames), NEW, 4), np.float16), texts


def shown(file: str, *colours: int) -> Shown:
    frames = [np.full((8, 8, 3), colour, np.uint8) for colour in colours]
    return Shown(file, 25.0, 200 * len(colours), np.arange(len(colours)) * 200, frames)


def test_a_bad_clip_does_not_fail_its_batch(monkeypatch, tmp_path):
    colours = {"a": (1, 2, 3), "b": (4,), "bad": (5, 13), "c": (6,), "nan": (66,)}
    colours["d"] = range(20, 31)
    clips = {file: shown(file, *of_clip) for file, of_clip in colours.items()}
    models = Recorder()
    extractor = LMMExtractor(tmp_path, models, batch_size=4)
    monkeypatch.setattr(extractor, "look", lambda file, path: clips[file])
    rows = {row.file: row for row in extractor.rows([*clips, "../out"])}
    assert rows.keys() == {*clips, "../out"} and max(models.batches) == 4
    assert models.batches[0] == 4  # a and b together
    for file, clip in clips.items():
        row = rows[file]
        if file in ("bad", "nan"):
            assert row.stage == "features" and row.reason and len(row.frames) == 0
            continue
        assert row.visual[:, 0].tolist() == [frame[0, 0, 0] for frame in clip.frames]
        assert row.texts == [f"colour {frame[0, 0, 0]}" for frame in clip.frames] and not row.reason
        assert row.frames.tolist() == clip.indices.tolist() and row.n_frames == clip.n_frames
    assert "13 is not" in rows["bad"].reason and "float16" in rows["nan"].reason
    assert rows["../out"].stage == "path"
