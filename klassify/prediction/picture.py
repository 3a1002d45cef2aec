"""One clip along its time: thumbnails, waveform, the branches' frame scores, proposals, the truth
where known.

`draw` makes the figure (paper 2, figure 5), `mark` a copy of the video with the proposals drawn in.
"""

from __future__ import annotations

import os
import textwrap
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from klassify.explanation.picture import boxes_for_missing_glyphs
from klassify.files import whole_file
from klassify.media import decoder, isolated
from klassify.media.container import MediaError
from klassify.media.preview import envelope, sound_of, thumbnails
from klassify.prediction.answer import Prediction

# of Okabe and Ito, told apart by colour-blind readers; lines also differ in style
COLOURS = ("#009E73", "#CC79A7", "#000000", "#56B4E9", "#8A7A00", "#999999")
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
MODALITY_COLOURS = {"audio": "#E69F00", "visual": "#0072B2", "both": "#D55E00"}
TRUTH_COLOUR = "0.85"
MARK_RGB = (213, 94, 0)
SHOWN_PROPOSALS = 15
LINE_PIXELS = 16  # of the notice below a marked picture
SMALLEST = 16  # pixels of a side that marks are drawn in


@boxes_for_missing_glyphs()
def draw(
    video: str | os.PathLike,
    prediction: Prediction,
    path: str | os.PathLike,
    truth: np.ndarray | None = None,
) -> None:
    """The timeline of a clip as PNG; MediaError for a file that holds neither picture nor sound.

    truth: (n, 2) true fake segments in seconds, shaded, or None.
    A clip without picture or sound has no such row.
    """
    from matplotlib.figure import Figure

    images, times, end_s = thumbnails(video)
    wave = sound_of(video)
    if not len(images) and not len(wave):
        raise MediaError("There is neither picture nor sound.", where=video)
    end_s = max(
        end_s,
        len(wave) / decoder.SAMPLE_RATE,
        *(table["end"].max() for table in prediction.frames.values()),
        0.04,
    )
    rows = (
        [1.0] * (len(images) > 0)
        + [1.0] * (len(wave) > 0)
        + [2.0] * bool(prediction.frames)
        + [1.4]
    )
    figure = Figure(figsize=(11, 1.4 * sum(rows) + 0.6), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(len(rows), 1, sharex=True, height_ratios=rows)))
    verdict = prediction.verdict
    figure.suptitle(
        f"{Path(prediction.file).name}: probability of fake {prediction.probability:.3f}"
        + ("" if prediction.answered else " (prior, no evidence)")
        + (f"; {verdict.answer} at {verdict.at}" if verdict.answer else "")
        + (f"\n{prediction.evidence}" if prediction.evidence else ""),
        fontsize=11,
        parse_math=False,
    )
    panels = iter(axes)
    picture = next(panels) if len(images) else None
    if len(wave):
        _draw_wave(next(panels), wave)
    if prediction.frames:
        _draw_frames(next(panels), prediction)
    _draw_proposals(next(panels), prediction.segments)
    for panel in axes:
        panel.set_xlim(0, end_s)
        for start, stop in truth if truth is not None else ():
            panel.axvspan(start, stop, color=TRUTH_COLOUR, zorder=0)
    if prediction.notice:
        figure.supxlabel(prediction.notice, fontsize=8, parse_math=False)
    axes[-1].set_xlabel(
        "seconds" + (" (grey: true fake segments)" if truth is not None and len(truth) else "")
    )
    if picture is not None:
        picture.set_yticks([])
        picture.set_ylabel("picture")
        figure.draw_without_rendering()  # which settles the panel's size
        _draw_thumbnails(picture, images, times, end_s)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=110, format="png")


def _draw_thumbnails(
    panel: Any, frames: list[np.ndarray], times: list[float], end_s: float
) -> None:
    """Each frame in the middle of its piece of time, as large as fits, with its own aspect."""
    place = panel.get_window_extent()
    for frame, time in zip(frames, times):
        width = 2 * times[0] * 0.96
        height = width / end_s * place.width / place.height * frame.shape[0] / frame.shape[1]
        if height > 1:
            width, height = width / height, 1.0
        left, low = time - width / 2, (1 - height) / 2
        panel.imshow(frame, extent=(left, left + width, low, low + height), aspect="auto", zorder=2)
    panel.set_xlim(0, end_s)
    panel.set_ylim(0, 1)


def _draw_wave(panel: Any, wave: np.ndarray) -> None:
    seconds, low, high = envelope(wave)
    panel.fill_between(seconds, low, high, color="0.35", linewidth=0.5)
    limit = max(float(np.abs(wave).max()), 0.01) * 1.05
    panel.set_ylim(-limit, limit)
    panel.set_ylabel("waveform")


def _draw_frames(panel: Any, prediction: Prediction) -> None:
    for number, (name, table) in enumerate(prediction.frames.items()):
        modality = prediction.modalities.get(name)
        edges = np.append(table["start"].to_numpy(float), table["end"].iloc[-1])
        values = table["probability"].to_numpy()
        panel.stairs(
            values,
            edges,
            label=f"{name} ({modality})" if modality else name,
            baseline=None,
            color=COLOURS[number % len(COLOURS)],
            linestyle=STYLES[number % len(STYLES)],
            linewidth=1.4,
        )
    panel.set_ylim(-0.03, 1.03)
    panel.set_ylabel("probability\nof a frame")
    _add_legend(panel)


def _draw_proposals(panel: Any, segments: pd.DataFrame) -> None:
    shown = segments.head(SHOWN_PROPOSALS)
    for modality, rows in shown.groupby("modality"):
        panel.hlines(
            rows["score"],
            rows["start"],
            rows["end"],
            linewidth=5,
            label=modality,
            color=MODALITY_COLOURS.get(modality, "0.3"),
        )
    panel.set_ylim(0, 1.05)
    panel.set_ylabel("proposals\n(score)")
    if len(shown):
        _add_legend(panel)


def _add_legend(panel: Any) -> None:
    """Above the panel, where it covers nothing."""
    place = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0.1}
    panel.legend(fontsize=8, ncols=4, frameon=False, **place)


def mark(
    video: str | os.PathLike, prediction: Prediction, path: str | os.PathLike, min_score: float
) -> None:
    """A copy of the video (H.264, AAC) with a red border during likely fake segments and a time bar
    below.

    Proposals with a score of at least `min_score` are drawn, and a notice in a strip below the
    picture. MediaError for a video without
    picture, or with one that no encoder takes.
    """
    import av

    try:
        _encode(video, prediction, path, min_score)
    except av.error.FFmpegError as error:
        raise MediaError(f"Cannot encode: {error.strerror}.", where=video) from None


def _encode(
    video: str | os.PathLike, prediction: Prediction, path: str | os.PathLike, min_score: float
) -> None:
    import av

    likely = prediction.segments[prediction.segments["score"] >= min_score]
    n_frames = isolated.call(decoder.count_frames, video)
    wave = sound_of(video)
    with whole_file(path) as partial, av.open(str(partial), "w", format="mp4") as container:
        picture = container.add_stream("libx264", rate=decoder.GRID_FPS, options={"crf": "20"})
        picture.pix_fmt = "yuv420p"
        sound = (
            container.add_stream("aac", rate=decoder.SAMPLE_RATE, layout="mono")
            if len(wave)
            else None
        )
        for number, frame in enumerate(isolated.stream(decoder.iter_frames, video)):
            if min(frame.shape[:2]) < SMALLEST:
                raise MediaError("The picture is too small to draw in.", where=video)
            image = _marked(frame, number, n_frames, likely)
            if number == 0:
                strip = _strip(prediction.notice, image.shape[1])
            image = np.vstack([image, strip])
            if number == 0:
                picture.height, picture.width = image.shape[:2]
            container.mux(picture.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(picture.encode())
        if sound is not None:
            _encode_audio(container, sound, wave)


def _marked(frame: np.ndarray, number: int, n_frames: int, likely: pd.DataFrame) -> np.ndarray:
    height, width = (side // 2 * 2 for side in frame.shape[:2])
    image = np.ascontiguousarray(frame[:height, :width])
    image = image.copy() if image is frame or image.base is not None else image
    time = (number + 0.5) / decoder.GRID_FPS
    scale = width / (n_frames / decoder.GRID_FPS)
    bar = max(4, height // 40)
    image[-bar:] //= 3
    now = likely[(likely["start"] <= time) & (time < likely["end"])]
    for row in likely.itertuples():
        image[
            -bar:, int(row.start * scale) : max(int(row.end * scale), int(row.start * scale) + 1)
        ] = MARK_RGB
    image[-bar:, max(0, int(time * scale) - 1) : int(time * scale) + 1] = 255
    if len(now):
        cv2.rectangle(image, (0, 0), (width - 1, height - 1), MARK_RGB, max(2, height // 60))
        text = f"{'/'.join(sorted(set(now['modality'])))} {now['score'].max():.2f}"
        cv2.putText(
            image,
            text,
            (bar, 5 * bar),
            cv2.FONT_HERSHEY_SIMPLEX,
            height / 450,
            MARK_RGB,
            1 + height // 400,
        )
    return image


def _strip(text: str, width: int) -> np.ndarray:
    """White text on black, in lines as wide as the picture; no row without text."""
    times = max(1, round(width / 640))
    font, size, step = cv2.FONT_HERSHEY_SIMPLEX, 0.35 * times, LINE_PIXELS * times
    letter = cv2.getTextSize("n" * 20, font, size, 1)[0][0] / 20
    lines = textwrap.wrap(text, max(1, int(width / letter)))
    image = np.zeros((step * len(lines), width, 3), np.uint8)
    for number, line in enumerate(lines):
        place = (2, step * (number + 1) - step // 3)
        cv2.putText(image, line, place, font, size, (255, 255, 255), 1, cv2.LINE_AA)
    return image


def _encode_audio(container: Any, stream: Any, wave: np.ndarray) -> None:
    import av

    for start in range(0, len(wave), 1024):
        block = av.AudioFrame.from_ndarray(
            wave[None, start : start + 1024], format="fltp", layout="mono"
        )
        block.sample_rate, block.pts = decoder.SAMPLE_RATE, start
        block.time_base = Fraction(1, decoder.SAMPLE_RATE)
        container.mux(stream.encode(block))
    container.mux(stream.encode())
