"""Square frames: equal to slow references, bounded decoding, odd sizes, broken files."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from videos import noise, sound, write_lossless, write_media, write_video

from klassify.media import decoder, picture, square_frames
from klassify.media.container import MediaError


def test_frames_of_the_right_size_pass_bit_by_bit(tmp_path):
    images = noise(7, 32, 32)
    path = write_lossless(tmp_path / "a.mkv", images)
    np.testing.assert_array_equal(square_frames.read_frames(path, size=32), images)
    np.testing.assert_array_equal(
        square_frames.read_frames(path, size=32, first=2, count=3), images[2:5]
    )


@pytest.mark.parametrize("height, width", [(64, 48), (48, 64), (16, 20)])
def test_other_sizes_are_cropped_on_the_long_side_then_scaled(tmp_path, height, width):
    images = noise(2, height, width)
    got = square_frames.read_frames(write_lossless(tmp_path / "a.mkv", images), size=24)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = images[:, top : top + side, left : left + side]
    how = cv2.INTER_AREA if side > 24 else cv2.INTER_LINEAR
    np.testing.assert_array_equal(
        got, [cv2.resize(image, (24, 24), interpolation=how) for image in square]
    )


def test_given_squares_are_cut_and_scaled(tmp_path):
    images = noise(5, 40, 64)
    path = write_lossless(tmp_path / "a.mkv", images)
    squares = [(0, 0, 24), (40, 16, 24), (60, -5, 24), (3, 7, 12)]
    parts = [images[0, :24, :24], images[1, 16:, 40:], images[2, :24, 40:]]
    parts += [cv2.resize(images[k, 7:19, 3:15], (24, 24)) for k in (3, 4)]
    got = square_frames.read_frames(path, size=24, squares=squares)
    np.testing.assert_array_equal(got, parts)
    blocks = list(square_frames.iter_frames(path, size=24, chunk=2, squares=squares))
    np.testing.assert_array_equal(np.concatenate(blocks), parts)
    later = square_frames.read_frames(path, size=24, first=1, squares=squares[1:])
    np.testing.assert_array_equal(later, parts[1:])


def test_a_square_larger_than_the_frame_is_its_largest():
    image = noise(1, 40, 64)[0]
    np.testing.assert_array_equal(square_frames.square(image, 40, (50, 0, 90)), image[:, 24:])


def test_shrinking_averages_areas(tmp_path):
    images = noise(1, 48, 48)
    got = square_frames.read_frames(write_lossless(tmp_path / "a.mkv", images), size=24)
    areas = images.reshape(1, 24, 2, 24, 2, 3).astype(float).mean(axis=(2, 4))
    assert np.abs(got - areas).max() <= 0.5


def test_a_range_beyond_the_end_is_cut_at_it(tmp_path):
    images = noise(3, 16, 16)
    path = write_lossless(tmp_path / "a.mkv", images)
    np.testing.assert_array_equal(
        square_frames.read_frames(path, size=16, first=1, count=100), images[1:]
    )
    assert square_frames.read_frames(path, size=16, first=3).shape == (0, 16, 16, 3)
    assert square_frames.read_frames(path, size=16, count=0).shape == (0, 16, 16, 3)


@pytest.mark.parametrize("chunk", [1, 4, 5, 100])
def test_blocks_hold_every_frame_once(tmp_path, chunk):
    images = noise(10, 16, 16)
    blocks = list(
        square_frames.iter_frames(write_lossless(tmp_path / "a.mkv", images), size=16, chunk=chunk)
    )
    assert {len(block) for block in blocks[:-1]} <= {chunk}
    np.testing.assert_array_equal(np.concatenate(blocks), images)


def test_picked_frames_are_those_of_the_whole_clip(tmp_path):
    images = noise(9, 20, 28)
    path = write_lossless(tmp_path / "a.mkv", images)
    whole = square_frames.read_frames(path, size=12)
    for indices in ([0], [8], [0, 1, 5, 8], []):
        np.testing.assert_array_equal(
            square_frames.pick_frames(path, indices, size=12), whole[indices]
        )
    with pytest.raises(MediaError, match="ends before frame 9"):
        square_frames.pick_frames(path, [3, 9], size=12)
    for indices in ([3, 3], [4, 1], [-1]):
        with pytest.raises(ValueError, match="ascend"):
            square_frames.pick_frames(path, indices)


def test_other_frame_rates_are_on_the_grid(tmp_path):
    images = noise(10, 16, 16)
    path = write_lossless(tmp_path / "a.mkv", images, rate=50)
    np.testing.assert_array_equal(
        square_frames.read_frames(path, size=16), np.array(list(decoder.iter_frames(path)))
    )
    assert square_frames.n_frames(path) == 5


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("period", [40, 20, 33.333, 41.708, 100])
def test_counts_without_decoding_what_decoding_yields(tmp_path, suffix, period):
    times = [round(period * i) for i in range(37)]
    path = write_video(tmp_path / f"a.{suffix}", times, rate=round(1000 / period))
    assert square_frames.n_frames(path) == sum(1 for _ in decoder.iter_frames(path))


def test_decoding_stops_after_the_last_frame(tmp_path, monkeypatch):
    path = write_lossless(tmp_path / "a.mkv", noise(50, 16, 16))
    decoded = []
    monkeypatch.setattr(
        picture, "_rgb", lambda frame, rgb=picture._rgb: decoded.append(1) or rgb(frame)
    )
    square_frames.read_frames(path, size=16, first=3, count=4)
    assert len(decoded) <= 8


@pytest.mark.parametrize("height, width", [(1, 1), (1, 300), (300, 1), (3, 2)])
def test_thin_frames_are_scaled_without_growing_the_long_side(tmp_path, height, width):
    images = noise(3, height, width)
    got = square_frames.read_frames(write_lossless(tmp_path / "a.mkv", images), size=32)
    assert got.shape == (3, 32, 32, 3)
    if min(height, width) == 1:
        assert (got == images[:, (height - 1) // 2, (width - 1) // 2][:, None, None]).all()


def test_broken_files_are_media_errors_that_name_them(tmp_path):
    times = [40 * i for i in range(100)]
    whole = write_video(tmp_path / "whole.mp4", times, options={"movflags": "faststart"})
    cut, text = tmp_path / "cut.mp4", tmp_path / "text.mp4"
    cut.write_bytes(whole.read_bytes()[: round(0.6 * whole.stat().st_size)])
    text.write_text("no media")

    def all_blocks(path):
        return list(square_frames.iter_frames(path, chunk=8))

    for path in (cut, text, tmp_path / "missing.mp4"):
        for read in (square_frames.read_frames, all_blocks):
            with pytest.raises(MediaError) as caught:
                read(path)
            assert caught.value.where == path
    # damage after the requested frames does not matter
    assert len(square_frames.read_frames(cut, size=16, count=5)) == 5


def test_files_without_video_are_refused(tmp_path):
    path = write_media(tmp_path / "a.wav", sound(np.zeros((1, 1600)), codec="pcm_s16le"))
    for read in (square_frames.read_frames, square_frames.n_frames):
        with pytest.raises(MediaError, match="no video"):
            read(path)


def test_senseless_requests_are_refused(tmp_path):
    path = write_lossless(tmp_path / "a.mkv", noise(2, 16, 16))
    for request in ({"size": 0}, {"first": -1}, {"count": -1}):
        with pytest.raises(ValueError):
            square_frames.read_frames(path, **request)
    with pytest.raises(ValueError):
        next(square_frames.iter_frames(path, chunk=0))
