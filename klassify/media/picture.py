"""Turns decoded frames into RGB: upright, with square pixels, whole or in parts."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import av
import cv2
import numpy as np
from av.sidedata.sidedata import SideDataContainer

from klassify.media.container import MAX_PIXELS

# formats of which parts are converted alone: pixels in a row that share a value of colour
PLANES = {"yuv420p": 2, "yuvj420p": 2, "yuv444p": 1, "yuvj444p": 1}
SKETCH = (32, 18)
LARGE_PX = 256  # shorter side of parts whose gray levels are the stored luma
# shapes of pixels that are squared: encoders round a size to 1216:1215, damaged headers claim any
PIXEL_SHAPES, ROUND_SHAPE = (0.1, 10.0), 0.005

# by FFmpeg's numbers; 2 and 0 mean that the file does not say
BT601_COLORSPACES = (2, 5, 6)
LIMITED_RANGES = (0, 1)
# red's and blue's part of the luma: BT.709, BT.601
LUMA = {1: (0.2126, 0.0722), 2: (0.299, 0.114), 5: (0.299, 0.114), 6: (0.299, 0.114)}


class Picture:
    """A decoded picture, upright and with square pixels; only what is asked for is converted."""

    def __init__(self, frame: av.VideoFrame, size: tuple[int, int]):
        self.height, self.width = size
        self._frame = frame
        self._whole: np.ndarray | None = None
        self._part: tuple[Sequence[int], np.ndarray] | None = None  # box, what it shows
        as_stored = (frame.height, frame.width) == size and _display_matrix(frame) is None
        self._in_parts = as_stored and _in_planes(frame)

    def rgb(self) -> np.ndarray:
        """RGB uint8 (H, W, 3), the same array each time."""
        if self._whole is None:
            self._whole = _upright(_rgb(self._frame), self._frame)
            n_stored, size = math.prod(self._whole.shape[:2]), (self.width, self.height)
            if self._whole.shape[1::-1] != size:
                how = cv2.INTER_AREA if math.prod(size) < n_stored else cv2.INTER_LINEAR
                self._whole = cv2.resize(self._whole, size, interpolation=how)
        return self._whole

    def part(self, box: Sequence[int]) -> np.ndarray:
        """RGB of the part x0, y0, x1, y1, half open; parts of the last one cost nothing."""
        x0, y0, x1, y1 = box
        if not self._in_parts or self._whole is not None:
            return self.rgb()[y0:y1, x0:x1]
        if self._part is None or not _holds(self._part[0], box):
            even = x0 - x0 % 2, y0 - y0 % 2, x1 + x1 % 2, y1 + y1 % 2
            self._part = even, _rgb(self._frame, even)
        (left, top, _, _), part = self._part
        return part[y0 - top : y1 - top, x0 - left : x1 - left]

    def gray(self, box: Sequence[int]) -> np.ndarray:
        """BT.601 gray levels (h, w) uint8 of a part. Those of a large one are the stored luma where
        the file has this one, which takes half as long and differs by a level of rounding.
        """
        x0, y0, x1, y1 = box
        is_luma = self._in_parts and self._frame.colorspace in BT601_COLORSPACES
        if not is_luma or min(x1 - x0, y1 - y0) < LARGE_PX:
            return cv2.cvtColor(self.part(box), cv2.COLOR_RGB2GRAY)
        luma, name = _plane(self._frame, 0)[y0:y1, x0:x1], self._frame.format.name
        if name.startswith("yuvj") or self._frame.color_range not in LIMITED_RANGES:
            return luma
        gray = cv2.subtract(luma, 16)
        return cv2.convertScaleAbs(gray, gray, 255 / 219)

    def halved(self, box: Sequence[int], least: int) -> tuple[np.ndarray, int]:
        """RGB of a part from an even x0 and y0 on, halved by area as long as its shorter side keeps
        `least` pixels; how many of the picture's pixels make one. What is left over at the right
        and below is cut.
        """
        x0, y0, x1, y1 = box
        n = 1 << max(0, int(math.log2(max(1, min(x1 - x0, y1 - y0) / least))))
        if n == 1:
            return self.part(box), 1
        whole = x0, y0, x1 - (x1 - x0) % (2 * n), y1 - (y1 - y0) % (2 * n)
        if self._in_parts and self._whole is None:
            return _rgb(self._frame, whole, n), n
        return _shrunk(self.part(whole), n), n

    def sketch(self) -> np.ndarray:
        """The stored picture's gray levels, (18, 32) float32, to tell how much changes."""
        if self._frame.format.name in PLANES:
            gray = _plane(self._frame, 0)
        else:
            gray = cv2.cvtColor(self.rgb(), cv2.COLOR_RGB2GRAY)
        step = max(1, min(gray.shape) // 100)
        return cv2.resize(gray[::step, ::step], SKETCH, interpolation=cv2.INTER_AREA).astype(
            np.float32
        )


def _holds(outer: Sequence[int], inner: Sequence[int]) -> bool:
    starts = outer[0] <= inner[0] and outer[1] <= inner[1]
    return starts and inner[2] <= outer[2] and inner[3] <= outer[3]


def square_size(stream: av.VideoStream, frame: av.VideoFrame) -> tuple[int, int]:
    """Height and width of a frame as it is shown, upright and with square pixels."""
    height, width = frame.height, frame.width
    shape = float(stream.sample_aspect_ratio or 1)
    if PIXEL_SHAPES[0] <= shape <= PIXEL_SHAPES[1] and abs(shape - 1) > ROUND_SHAPE:
        square = height * max(1.0, 1 / shape), width * max(1.0, shape)
        if square[0] * square[1] <= MAX_PIXELS:
            height, width = (round(side) for side in square)
    matrix = _display_matrix(frame)
    return (width, height) if matrix is not None and not matrix[0, 0] else (height, width)


def _display_matrix(frame: av.VideoFrame) -> np.ndarray | None:
    """How a player turns and mirrors a frame: (2, 2) of -1, 0 and 1, row vectors (x, y) times it;
    None for not at all and for other angles than right ones.
    """
    # frame.side_data would make a cycle, which keeps the picture until garbage is collected
    data = SideDataContainer(frame).get("DISPLAYMATRIX")
    if data is None:
        return None
    matrix = np.frombuffer(bytes(data), np.int32)[[0, 1, 3, 4]].reshape(2, 2) / 65536
    size = np.abs(matrix).max()
    if not size:
        return None
    turned = np.rint(matrix / size).astype(int)
    right = np.abs(turned).sum(axis=0).tolist() == np.abs(turned).sum(axis=1).tolist() == [1, 1]
    exact = np.abs(matrix / size - turned).max() < 0.01
    return turned if right and exact and (turned != np.eye(2)).any() else None


def _upright(image: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    matrix = _display_matrix(frame)
    if matrix is None:
        return image
    if not matrix[0, 0]:
        image = image.transpose(1, 0, 2)
    flip_x, flip_y = matrix.sum(axis=0) < 0
    return np.ascontiguousarray(image[:: -1 if flip_y else 1, :: -1 if flip_x else 1])


def _rgb(frame: av.VideoFrame, box: Sequence[int] | None = None, n: int = 1) -> np.ndarray:
    """RGB of a frame as it is stored, or of a part in a box of even numbers of one that _in_planes,
    n times smaller, a power of two.
    """
    name, limited = frame.format.name, frame.color_range in LIMITED_RANGES
    if name == "yuv444p" and frame.colorspace in LUMA:
        # five times as fast as swscale, and within one grey level of it
        yuv = cv2.merge(_planes(frame, box, n))
        return cv2.transform(yuv, _to_rgb(*LUMA[frame.colorspace], limited))
    if not _in_planes(frame):
        return frame.to_ndarray(format="rgb24")
    if name == "yuv420p" and limited and frame.colorspace in BT601_COLORSPACES:
        return cv2.cvtColor(_packed(_planes(frame, box, n)), cv2.COLOR_YUV2RGB_I420)
    if box is None:
        return frame.to_ndarray(format="rgb24")
    part = av.VideoFrame.from_ndarray(_packed(_planes(frame, box, n)), format=name)
    part.colorspace, part.color_range = frame.colorspace, frame.color_range
    return part.to_ndarray(format="rgb24")


def _in_planes(frame: av.VideoFrame) -> bool:
    """Whether parts of the frame can be converted alone."""
    return frame.format.name in PLANES and frame.height % 2 == frame.width % 2 == 0


def _planes(frame: av.VideoFrame, box: Sequence[int] | None, n: int) -> list[np.ndarray]:
    """The three planes of a frame whose format is in PLANES, in a box, n times smaller."""
    x0, y0, x1, y1 = box or (0, 0, frame.width, frame.height)
    ratio = PLANES[frame.format.name]
    parts = [
        _plane(frame, i)[y0 // r : y1 // r, x0 // r : x1 // r]
        for i, r in enumerate((1, ratio, ratio))
    ]
    return [_shrunk(part, n) for part in parts]


def _shrunk(image: np.ndarray, n: int) -> np.ndarray:
    """An image n times smaller, a power of two; halving is the fast way by area."""
    while n > 1:
        height, width = image.shape[:2]
        image = cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        n //= 2
    return image


def _packed(planes: list[np.ndarray]) -> np.ndarray:
    """Planes in one array, as PyAV and OpenCV want them."""
    height, width = planes[0].shape
    if planes[1].shape == planes[0].shape:
        return np.stack(planes)
    packed = np.empty((3 * height // 2, width), np.uint8)
    packed[:height] = planes[0]
    packed[height:].reshape(2, height // 2, width // 2)[:] = planes[1:]
    return packed


def _plane(frame: av.VideoFrame, i: int) -> np.ndarray:
    plane = frame.planes[i]
    lines = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    return lines[: plane.height, : plane.width]


@functools.cache
def _to_rgb(red: float, blue: float, limited: bool) -> np.ndarray:
    """(3, 4) that makes RGB of (Y, U, V, 1); red, blue: their parts of the luma."""
    green = 1 - red - blue
    luma, chroma, black = (255 / 219, 255 / 224, 16) if limited else (1.0, 1.0, 0)
    u, v = 2 * chroma * (1 - blue), 2 * chroma * (1 - red)
    matrix = np.array([[luma, 0, v], [luma, -u * blue / green, -v * red / green], [luma, u, 0]])
    return np.column_stack([matrix, matrix @ [-black, -128, -128]]).astype(np.float32)
