"""Parts of pictures are those of the whole, at their size and halved."""

from __future__ import annotations

import av
import cv2
import numpy as np
import pytest
from videos import noise

from klassify.media.picture import Picture

FORMATS = ("yuv420p", "yuvj420p", "yuv444p", "yuv422p", "rgb24")


def picture(pixels: str, height: int, width: int, colorspace: int = 2) -> Picture:
    image = cv2.GaussianBlur(noise(1, height, width)[0], (0, 0), 3)
    frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixels)
    frame.colorspace = colorspace
    return Picture(frame, (height, width))


@pytest.mark.parametrize("pixels", FORMATS)
@pytest.mark.parametrize("height, width, colorspace", [(60, 80, 2), (60, 80, 1), (61, 83, 2)])
def test_a_part_is_what_the_whole_shows(pixels, height, width, colorspace):
    whole = picture(pixels, height, width, colorspace).rgb()
    one = picture(pixels, height, width, colorspace)
    for x0, y0, x1, y1 in ((0, 0, width, height), (7, 9, 41, 30), (width - 5, height - 3) * 2):
        box = x0, y0, max(x1, x0 + 3), max(y1, y0 + 3)
        part = one.part(box).astype(int)
        assert np.abs(part - whole[box[1] : box[3], box[0] : box[2]]).max() <= 1
    assert one.part((10, 10, 20, 20)).shape == (10, 10, 3)


@pytest.mark.parametrize("pixels", FORMATS)
@pytest.mark.parametrize("colorspace", [1, 2])
def test_gray_levels_are_those_of_the_colours(pixels, colorspace):
    whole = picture(pixels, 280, 320, colorspace).rgb()
    for box, most in (((20, 10, 300, 270), 2), ((20, 10, 90, 71), 0)):  # large, small
        gray = picture(pixels, 280, 320, colorspace).gray(box).astype(int)
        x0, y0, x1, y1 = box
        levels = cv2.cvtColor(whole[y0:y1, x0:x1], cv2.COLOR_RGB2GRAY)
        assert np.abs(gray - levels).max() <= max(most, colorspace == 1)


@pytest.mark.parametrize("pixels", FORMATS)
def test_a_halved_part_is_the_mean_of_its_pixels(pixels):
    whole = picture(pixels, 120, 160).rgb().astype(float)
    for least, n in ((61, 1), (30, 2), (15, 4), (16, 2)):
        part, made = picture(pixels, 120, 160).halved((20, 10, 91, 71), least)
        assert made == n
        rows, columns = (61 // (2 * n) * 2, 71 // (2 * n) * 2) if n > 1 else (61, 71)
        means = whole[10 : 10 + rows * n, 20 : 20 + columns * n]
        means = means.reshape(rows, n, columns, n, 3).mean(axis=(1, 3))
        gray = [0.299, 0.587, 0.114]
        assert part.shape == means.shape and np.abs((part - means) @ gray).max() <= 3
        assert np.abs(part - means).max() <= 24  # of colours that pixels share
