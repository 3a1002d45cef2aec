"""Does the container tell real from fake? Duration, sizes, bit rates, loudness and tags alone should not."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict

from klassify.corpus.metadata import read_entries
from klassify.errors import KlassifyError

REPEATS = 5


def container_traits(path: Path) -> dict[str, float]:
    """What can be known of a clip without looking at a frame or listening to more than its loudness."""
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        tags = sorted(f"{key}={value}" for part in (container, video, audio) for key, value in part.metadata.items())
        traits = {
            "bytes": path.stat().st_size,
            "duration_s": container.duration / av.time_base,
            "bit_rate": container.bit_rate,
            "video_bit_rate": video.bit_rate or 0,
            "audio_bit_rate": audio.bit_rate or 0,
            "video_frames": video.frames,
            "audio_packets": audio.frames,
            "tags": sum(map(ord, "".join(tags))),
        }
        wave = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio)])
    return {**traits, "loudness_db": float(10 * np.log10(np.mean(wave**2) + 1e-12))}


def leak_auc(traits: pd.DataFrame, is_fake: np.ndarray, original: np.ndarray) -> float:
    """AUC of a random forest on container traits, each original scored by trees that never saw it; the mean
    over several ways to fold the originals.

    About 0.5 when nothing leaks. traits: one row a clip; is_fake: (n,) 0 or 1; original: (n,) ids.
    Raises KlassifyError with fewer than two originals or one class.
    """
    n_originals = len(set(original))
    if n_originals < 2 or len(set(is_fake)) < 2:
        raise KlassifyError(f"A leak shows on at least two originals, real and fake; here are {n_originals}.")
    forest = RandomForestClassifier(100, min_samples_leaf=3, class_weight="balanced", random_state=0)
    folds, aucs = GroupKFold(min(5, n_originals)), []
    groups = np.unique(original, return_inverse=True)[1]
    for repeat in range(REPEATS):
        shuffled = np.random.default_rng(repeat).permutation(n_originals)[groups]
        scores = cross_val_predict(forest, traits, is_fake, groups=shuffled, cv=folds, method="predict_proba")
        aucs.append(roc_auc_score(is_fake, scores[:, 1]))
    return float(np.mean(aucs))


def corpus_leak_auc(corpus: Path) -> float:
    """`leak_auc` over all clips of a generated corpus."""
    entries = read_entries(corpus)
    traits = pd.DataFrame([container_traits(corpus / entry["split"] / entry["file"]) for entry in entries])
    is_fake = np.array([int(entry["modify_type"] != "real") for entry in entries])
    original = np.array([f"{entry['split']}/{entry['original']}" for entry in entries])
    return leak_auc(traits, is_fake, original)
