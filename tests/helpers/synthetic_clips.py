"""Clips of noise as the data classes take them from their readers, without any file."""

from __future__ import annotations

import types
from pathlib import Path

import cv2
import numpy as np
import torch

from klassify.data.audio import AudioClips
from klassify.data.auvire import AuViReFrames
from klassify.data.av_embeddings import AVEmbeddings, Stream
from klassify.data.frame_images import FrameImages
from klassify.data.lips import LipCrops
from klassify.data.mouth import MouthFeatures
from klassify.data.sync import SyncEmbeddings
from klassify.data.visual import LMMFeatures, VisualClip, VisualWindows
from klassify.features.lips import LipsRow

SECONDS = 5
FAKE = np.array([[0.4, 1.2], [2.0, 2.5]])


def batch_of(experiment, size: int = 2) -> dict:
    """A batch of `size` training examples of noise for a parsed config."""
    data = experiment.data
    if isinstance(data, (AudioClips, LipCrops)):  # which augment outside of the model
        data.augment = None
    examples = [
        data.example(_clip(experiment, seed), _target(data), np.random.default_rng(seed))
        for seed in range(size)
    ]
    return data.collate(examples)


def _target(data):
    if isinstance(data, FrameImages):
        return None
    if isinstance(data, AVEmbeddings):
        return FAKE, (FAKE, FAKE[:1])
    return (FAKE, 1) if data.unit == "frame" else 1


def _clip(experiment, seed: int):
    data, rng = experiment.data, np.random.default_rng(seed)
    n_frames = 25 * SECONDS
    if isinstance(data, AudioClips):
        return rng.normal(0, 0.1, 16_000 * SECONDS).astype(np.float32)
    if isinstance(data, MouthFeatures):
        features = torch.randn(n_frames, len(data.channels))
        return {"features": features, "valid": torch.ones(n_frames, dtype=torch.bool)}
    if isinstance(data, LipCrops):
        jpeg = cv2.imencode(".jpg", rng.integers(0, 255, (96, 96), np.uint8))[1].tobytes()
        return LipsRow("a", 25.0, [jpeg] * n_frames, np.ones(n_frames, bool))
    if isinstance(data, AuViReFrames):
        return {name: torch.randn(n_frames, 768) for name in ("video", "audio")}
    arguments = experiment.resolved["model"]["init_args"]
    if isinstance(data, (AVEmbeddings, SyncEmbeddings)):
        return _embeddings(data, n_frames, arguments["audio_dim"], arguments["visual_dim"])
    images = rng.integers(0, 255, (n_frames, data.size, data.size, 3), np.uint8)
    if isinstance(data, VisualWindows):
        lmm = None
        if arguments["lmm_dims"]:
            visual, textual = arguments["lmm_dims"]
            shapes = np.zeros((1, visual), np.float16), np.zeros((1, 64, textual), np.float16)
            lmm = LMMFeatures(np.zeros(1, int), *shapes)
        # of two clips one has LMM features
        lmm = lmm if seed % 2 else None
        seen = np.ones(n_frames, bool)
        return VisualClip(Path(f"{seed}.mp4"), n_frames, data.size, seen, lmm=lmm, held=images)
    return types.SimpleNamespace(path=seed, n_frames=n_frames, pick=lambda which: images[which])


def _embeddings(data, n_frames: int, audio_dim: int, visual_dim: int):
    if isinstance(data, SyncEmbeddings):
        valid = torch.ones(n_frames, dtype=torch.bool)
        streams = {"audio": torch.randn(n_frames, audio_dim)}
        streams |= {"visual": torch.randn(n_frames, visual_dim)}
        return streams | {"audio_valid": valid, "visual_valid": valid}
    return {
        name: Stream(np.zeros((n, dim), np.float16), np.ones(n, bool))
        for name, n, dim in (("audio", 2 * n_frames, audio_dim), ("visual", n_frames, visual_dim))
    }
