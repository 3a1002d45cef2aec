"""Starts the spatio-temporal branch from the ImageNet-21k hybrid ViT.

timm's jx_vit_base_resnet50_224_in21k is a ResNet-V2 and a ViT for single images. It initialises two
ResNets with a frequency branch, and blocks with two attentions each, so most of its tensors are
used several times.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from klassify.errors import KlassifyError, first_few
from klassify.models.weights.checkpoint import read_checkpoint
from klassify.models.weights.load import ImportReport, misfits, unwrapped
from klassify.models.weights.published import KeyMap

UNUSED = re.compile(r"(head|pre_logits)\..+")  # the classifier over ImageNet-21k
KNOWN = re.compile(
    r"cls_token|pos_embed|norm\.\w+|patch_embed\.(proj|backbone)\..+"
    r"|blocks\.\d+\.(norm[12]|attn|mlp)\..+|" + UNUSED.pattern
)
NOT_IN_FILE = (
    r"time_embed|patch_embed\.(transition|\w+_backbone\.(freq_stage|stems_transition_conv_1x1))\..+"
)


def hybrid_vit_state(
    theirs: Mapping[str, Tensor], window: int, grid: int
) -> tuple[dict[str, Tensor], list[str]]:
    """The hybrid ViT's tensors under all names that they initialise, and the keys left out.

    window: frames of the model. grid: patches along a side of its image.

    Both stems get the file's convolutions, the frequency stem those of the stem; both attentions of
    a block get the block's; each FC token gets the class token, and its position the class token's.
    (The published code misspells the stems' names and omits the positions it uses, so these start
    at random there.)
    """
    ours, left_out = {}, []
    for key, value in theirs.items():
        if UNUSED.fullmatch(key):
            left_out.append(key)
        elif match := re.match(r"patch_embed\.backbone\.(.*)", key):
            for backbone in ("rgb_backbone", "recons_backbone"):
                ours[f"patch_embed.{backbone}.{match[1]}"] = value
                if match[1].startswith("stem."):
                    ours[f"patch_embed.{backbone}.freq_{match[1]}"] = value
        elif match := re.match(r"(blocks\.\d+\.)((norm|attn|mlp).*)", key):
            ours[key] = ours[f"{match[1]}temporal_{match[2]}"] = value
        elif key == "cls_token":
            ours |= {key: value, "fc_token": value[:, :1].expand(-1, window, -1)}
        elif key == "pos_embed":
            positions = resized_positions(value, grid)
            ours |= {
                key: positions,
                "window_pos_embed": positions,
                "temporal_pos_embed": value[:, :1].expand(-1, window, -1),
            }
        else:
            ours[key] = value
    return ours, left_out


def resized_positions(embed: Tensor, grid: int) -> Tensor:
    """Position embedding (1, 1 + g * g, D), interpolated to `grid` x `grid` patches."""
    side = math.isqrt(embed.shape[1] - 1)
    if side == grid or side**2 != embed.shape[1] - 1:  # strict loading refuses what is not square
        return embed
    patches = embed[:, 1:].float().transpose(1, 2).unflatten(2, (side, side))
    patches = F.interpolate(
        patches, (grid, grid), mode="bicubic", antialias=True, align_corners=False
    )
    return torch.cat([embed[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)


def load_hybrid_vit(model: nn.Module, path: str | Path, *, window: int, grid: int) -> ImportReport:
    """Load a timm-named hybrid ViT into a SpatioTemporal; nothing in the file is executed.

    KlassifyError for files with unknown, missing or misshapen tensors (another width, depth or
    stem). Positions of another image size are interpolated, and the report says so.
    """
    state = read_checkpoint(path)
    names = unwrapped(state, KeyMap(signature=r"patch_embed\.backbone\.", rules=()), where=path)
    theirs = {name: state[key] for name, key in names.items()}
    unknown = [key for key in theirs if not KNOWN.fullmatch(key)]
    if any(value.dim() != 3 for key, value in theirs.items() if key in ("cls_token", "pos_embed")):
        raise KlassifyError(
            "The class token or the positions of this file are not (1, tokens, dim).", where=path
        )
    ours, left_out = hybrid_vit_state(theirs, window, grid)
    left_out += [key for key in state if key not in set(names.values())]
    wanted = model.state_dict()
    if unknown:
        problem = f"{len(unknown)} unexpected ({first_few(unknown)})"
    else:
        problem = misfits(ours, wanted, NOT_IN_FILE)
    if problem:
        raise KlassifyError(
            f"This file is not a hybrid ViT that fits the model: {problem}.",
            where=path,
            fix="use jx_vit_base_resnet50_224_in21k with the model's default sizes, or train"
            " without `pretrained`",
        )
    model.load_state_dict(ours, strict=False)
    kind = "timm hybrid ViT"
    side = math.isqrt(theirs["pos_embed"].shape[1] - 1)
    if side != grid:
        kind += f" (positions interpolated from {side} x {side} to {grid} x {grid})"
    return ImportReport(kind, len(ours), left_out, [key for key in wanted if key not in ours])
