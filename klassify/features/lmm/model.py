"""Features of single frames from a large multi-modal model (paper 2, section 2.1, after MM-Det).

LLaVA-1.5 gets every 200th frame with a fixed forensic instruction and writes 64 tokens about it.
The features are

- visual (n, 1024): CLIP's pooled vector, which is the class token after the last layer norm;
- textual (n, 64, 4096): the last layer's states, after the final norm, at the last 64 positions.
  Position 0 is the prompt's last token, position i the i-th written token; the model never reads
  the 64th token, which therefore has no state;
- the written text.

The input size is 336 x 336 pixels: for LLaVA the frame is padded to a square with the mean colour,
for CLIP the centre square is cropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

VERSION = 1  # of the features, recorded in the settings of shards
NEW_TOKENS = 64

SYSTEM = (
    "Assistant: A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
INSTRUCTION = (
    "As an expert in image forensics, you are to briefly describe the image, including lighting and"
    " reflection, texture, color saturation, shape consistency, sense of depth, compression trace,"
    " artifacts. Give a reason to justify whether it is a real or a fake image."
)
IMAGE = "<image>"
# as published; not LLaVA's usual USER: ... ASSISTANT:
PROMPT = f"{SYSTEM}###Human: {IMAGE}\n{INSTRUCTION}###Assistant:"

# CLIP's mean and standard deviation of RGB in [0, 1]
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class LMM:
    """LLaVA and CLIP as an extractor of features, `lmm(frames) -> (visual, textual, texts)`.

    Args:
        llava: a LlavaForConditionalGeneration in eval mode.
        tokenizer: its tokenizer.
        clip: a CLIPVisionModel; None uses the vision tower of `llava`.
        new_tokens: number of written tokens and of states.
    """

    def __init__(
        self,
        llava: nn.Module,
        tokenizer: Any,
        clip: nn.Module | None = None,
        new_tokens: int = NEW_TOKENS,
    ):
        self.llava, self.tokenizer, self.new_tokens = llava, tokenizer, new_tokens
        self.tower, self.projector = llava.model.vision_tower, llava.model.multi_modal_projector
        self.language, self.head = llava.model.language_model, llava.lm_head
        self.clip = self.tower if clip is None else clip
        self.before, self.after = prompt_tokens(tokenizer)

    @torch.inference_mode()
    def __call__(self, frames: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """(n, 1024) and (n, 64, 4096), both float16, and n texts of n frames (H, W, 3) uint8."""
        squares = [centre_square(frame, self.clip.config.image_size) for frame in frames]
        visual = self.pooled(squares)
        padded = [padded_square(frame, self.tower.config.image_size) for frame in frames]
        textual, tokens = self.write(self.prompt(self.patches(padded)))
        texts = self.tokenizer.batch_decode(tokens.tolist(), skip_special_tokens=True)
        return _half(visual), _half(textual), [readable(text) for text in texts]

    def pooled(self, images: Sequence[np.ndarray]) -> Tensor:
        """CLIP's pooled vectors (n, 1024) of square images of its size."""
        return self.clip(_pixels(images, self.clip)).pooler_output

    def patches(self, images: Sequence[np.ndarray]) -> Tensor:
        """The image tokens (n, 576, 4096): the tower's patches before its last layer, projected."""
        states = self.tower(_pixels(images, self.tower), output_hidden_states=True).hidden_states
        return self.projector(states[self.llava.config.vision_feature_layer][:, 1:])

    def prompt(self, patches: Tensor) -> Tensor:
        """The embedded prompt (n, P, 4096), with image tokens (n, 576, 4096) for <image>."""
        n = len(patches)
        before, after = (
            self.embed(torch.tensor([ids])).expand(n, -1, -1) for ids in (self.before, self.after)
        )
        return torch.cat([before, patches.to(before.dtype), after], dim=1)

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings (B, L, 4096) of tokens (B, L)."""
        table = self.llava.get_input_embeddings()
        return table(tokens.to(table.weight.device))

    def write(self, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """Greedy decoding of exactly `new_tokens` tokens after an embedded prompt (B, P, 4096).

        Returns the states (B, new_tokens, 4096) from which the tokens were chosen, and the tokens
        (B, new_tokens). The end token is never chosen, so that no answer is shorter.
        """
        states, tokens, inputs, cache = [], [], prompt, None
        for _ in range(self.new_tokens):
            read = self.language(inputs_embeds=inputs, past_key_values=cache, use_cache=True)
            cache = read.past_key_values
            states.append(read.last_hidden_state[:, -1])
            tokens.append(self.choose(states[-1]))
            inputs = self.embed(tokens[-1][:, None])
        return torch.stack(states, dim=1), torch.stack(tokens, dim=1)

    def choose(self, state: Tensor) -> Tensor:
        """The most probable token (B,) after a state (B, 4096), never the end token."""
        logits = self.head(state).float()
        end = self.llava.config.text_config.eos_token_id
        logits[:, [end] if isinstance(end, int) else end] = -torch.inf
        return logits.argmax(dim=-1)


def prompt_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The prompt's tokens before and after the image, tokenised separately, as in LLaVA."""
    before, after = (
        tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in PROMPT.split(IMAGE)
    )
    return [tokenizer.bos_token_id, *before], after


def readable(text: str) -> str:
    """A text on one line, without control characters."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def padded_square(frame: np.ndarray, size: int) -> np.ndarray:
    """A frame (H, W, 3) uint8, padded to a square with the mean colour and scaled to `size`."""
    height, width = frame.shape[:2]
    side = max(height, width)
    square = np.empty((side, side, 3), np.uint8)
    square[:] = [int(value * 255) for value in MEAN]
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = frame
    return centre_square(square, size)


def centre_square(frame: np.ndarray, size: int) -> np.ndarray:
    """CLIP's preprocessing: the shorter side scaled to `size` (Pillow, bicubic), then cropped."""
    height, width = frame.shape[:2]
    shorter = min(height, width)
    height, width = (
        size if side == shorter else int(size * side / shorter) for side in (height, width)
    )
    image = np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
    top, left = (height - size) // 2, (width - size) // 2
    return image[top : top + size, left : left + size]


def _pixels(images: Sequence[np.ndarray], model: nn.Module) -> Tensor:
    """Normalised pixels (n, 3, H, W) on the model's device and in its precision."""
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    pixels = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    parameter = next(model.parameters())
    return pixels.to(parameter.device, parameter.dtype)


def _half(states: Tensor) -> np.ndarray:
    return states.to(torch.float16).cpu().numpy()
