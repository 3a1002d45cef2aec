"""Which face is followed, how gaps are bridged, and Face Mesh itself on a painted face."""

from __future__ import annotations

import numpy as np
import pytest
from painted_face import painted

from klassify.errors import KlassifyError
from klassify.features.mouth import channels, face

pytestmark = pytest.mark.filterwarnings(
    "ignore:SymbolDatabase"
)  # MediaPipe against its own protobuf


def square(x: float, y: float, size: float) -> np.ndarray:
    """A "face" (478, 2) that fills a square around (x, y)."""
    return np.array([x, y]) + size * (np.random.default_rng(0).random((478, 2)) - 0.5)


class FakeTracker:
    """Finds the faces that a frame lists, up to its number of faces; counts what it is asked."""

    def __init__(self, max_faces: int, refine: bool):
        self.max_faces, self.calls, self.forgotten = max_faces, 0, 0

    def __call__(self, frame):
        self.calls += 1
        return list(frame)[: self.max_faces]

    def forget(self):
        self.forgotten += 1


@pytest.fixture
def mesh():
    return face.FaceMesh(tracker=FakeTracker, counter=lambda: len)


def followed(mesh, frames) -> list:
    """The centre x of the followed face in each frame, None where there is none."""
    new = map(list, frames)  # the same object again would be the same picture again
    return [
        None if x is None else round(float(x[:, 0].mean()), -1) for _, x in mesh.track("clip", new)
    ]


def test_one_face_is_tracked_by_the_cheap_tracker(mesh):
    assert followed(mesh, [[square(100, 100, 50)]] * 20) == [100] * 20
    assert (mesh._one.max_faces, mesh._one.calls, mesh._several.calls) == (1, 20, 0)


def test_the_largest_face_is_followed_whatever_comes_first(mesh):
    small, large = square(100, 100, 30), square(300, 100, 60)
    assert followed(mesh, [[small, large], [large, small], [small, large]]) == [300] * 3


def test_the_followed_face_is_kept_when_another_grows(mesh):
    frames = [[square(100, 100, 30 + 8 * t), square(300 - 3 * t, 100, 60)] for t in range(20)]
    assert followed(mesh, frames) == pytest.approx([300 - 3 * t for t in range(20)], abs=8)


def test_without_overlap_the_closest_face_is_followed(mesh):
    frames = [
        [square(100, 100, 50), square(400, 100, 60)],
        [],
        [square(150, 0, 90), square(480, 100, 10)],
    ]
    assert followed(mesh, frames) == [400, None, 480]


def test_a_lost_face_is_looked_for_among_several(mesh):
    alone, other = [square(300, 100, 50)], square(100, 100, 90)
    assert followed(mesh, [alone, alone, [], [], [other, *alone], [other, *alone]]) == [
        300,
        300,
        None,
        None,
        300,
        300,
    ]
    assert (mesh._one.calls, mesh._several.calls) == (4, 2)


def test_a_repeated_picture_is_looked_at_once(mesh):
    face_there, nobody = [square(100, 100, 50)], []
    frames = [face_there] * 5 + [nobody] * 4 + [list(face_there)] * 3
    tracked = list(mesh.track("clip", frames))
    assert [frame for frame, _ in tracked] == frames
    assert [x is face_there[0] for _, x in tracked] == [True] * 5 + [False] * 4 + [True] * 3
    assert (mesh._one.calls, mesh._several.calls) == (3, 0)


def test_every_clip_starts_from_a_blank_state(mesh):
    for _ in range(2):
        assert followed(mesh, [[square(100, 100, 30), square(300, 100, 60)]] * 2) == [300] * 2
    assert followed(mesh, [[square(100, 100, 30)]]) == [100]
    assert all(tracker.forgotten == 3 for tracker in (mesh._one, mesh._several))


# ------------------------------------------------------------------------------ gaps


def filled(xs: list, max_gap: int = 5) -> list:
    tracked = ((t, None if x is None else np.full((478, 2), float(x))) for t, x in enumerate(xs))
    result = list(face.fill_gaps(tracked, max_gap))
    assert [t for t, _ in result] == list(range(len(xs)))  # every frame once, in order
    return [None if x is None else float(x[0, 0]) for _, x in result]


def test_gaps_of_up_to_five_frames_are_interpolated():
    assert filled([0, None, 2]) == [0, 1, 2]
    assert filled([0] + [None] * 5 + [6, None, 8]) == pytest.approx([0, 1, 2, 3, 4, 5, 6, 7, 8])


@pytest.mark.parametrize(
    "xs",
    [
        [0] + [None] * 6 + [7],
        [None, None, 1],
        [1, None, None],
        [None] * 9,
        [0] + [None] * 30 + [1, 2],
    ],
)
def test_longer_gaps_and_the_ends_stay_empty(xs):
    assert filled(xs) == xs


def test_gaps_are_filled_with_little_memory():
    waiting = 0

    def frames():
        nonlocal waiting
        for t in range(200):
            waiting += 1
            yield t, None if t % 50 else np.zeros((478, 2))

    for _ in face.fill_gaps(frames()):
        waiting -= 1
        assert waiting <= 6


# ------------------------------------------------------------------------------ precomputed
# landmarks


def test_precomputed_landmarks_are_read_and_nan_means_no_face(tmp_path):
    points = np.random.default_rng(0).normal(100, 20, (4, 468, 3)).astype(np.float32)
    points[2, 7] = np.nan
    (tmp_path / "id1").mkdir()
    np.savez(tmp_path / "id1" / "a.npz", landmarks=points)
    tracked = list(face.open_source(tmp_path).track("id1/a.mp4", range(4)))
    assert [x is None for _, x in tracked] == [False, False, True, False]
    np.testing.assert_array_equal(tracked[3][1], points[3, :, :2])


@pytest.mark.parametrize("n_frames", [3, 5])
def test_landmarks_of_another_length_are_refused(tmp_path, n_frames):
    np.savez(tmp_path / "a.npz", landmarks=np.zeros((4, 478, 2), np.float32))
    with pytest.raises(KlassifyError, match=f"for 4 frames, the clip has {n_frames}"):
        list(face.PrecomputedLandmarks(tmp_path).track("a.mp4", range(n_frames)))


def test_landmark_files_that_are_none_are_refused_by_name(tmp_path):
    source = face.PrecomputedLandmarks(tmp_path)
    with pytest.raises(KlassifyError, match="no landmarks"):
        list(source.track("none.mp4", []))
    np.savez(tmp_path / "shape.npz", landmarks=np.zeros((4, 100, 2)))
    np.savez(tmp_path / "key.npz", points=np.zeros((4, 478, 2)))
    np.savez(tmp_path / "pickle.npz", landmarks=np.array([{}], object))
    (tmp_path / "text.npz").write_text("landmarks")
    (tmp_path / "empty.npz").write_text("")
    for name in ("shape", "key", "pickle", "text", "empty"):
        with pytest.raises(KlassifyError, match=f"{name}.npz"):
            list(source.track(f"{name}.mp4", []))


def test_what_features_depend_on():
    assert face.source_settings("somewhere") == {"landmarks": "precomputed"}
    assert face.source_settings(refine=True) != face.source_settings(refine=False)
    assert "0.10" in face.source_settings()["landmarks"]


# ------------------------------------------------------------------------------ MediaPipe


@pytest.fixture(scope="module")
def face_mesh():
    return face.FaceMesh()


def test_face_mesh_finds_a_painted_face_where_it_is(face_mesh):
    image, pixels = painted()
    (_, found), *_ = face_mesh.track("a", [image, image])
    assert found.shape == (478, 2) and found.dtype == np.float32
    error = np.linalg.norm(found[channels.LIPS] - pixels[channels.LIPS], axis=1)
    assert error.mean() < 5  # of an eye distance of 70 px


def test_results_do_not_depend_on_the_clip_before(face_mesh):
    clip = [painted(0.06 + 0.05 * np.sin(t), 112 + 2 * t)[0] for t in range(5)]
    other = [painted(0.1, 80, 90, 50)[0]] * 3
    nothing = [np.zeros((224, 224, 3), np.uint8)] * 2
    runs = [
        [x for _, x in face_mesh.track("a", frames)]
        for frames in (clip, other, clip, nothing, clip)
    ]
    assert runs[3] == [None, None]
    for again in (runs[2], runs[4]):
        for a, b in zip(runs[0], again):
            np.testing.assert_array_equal(a, b)


def test_face_mesh_starts_quietly_and_follows_the_larger_of_two(face_mesh, capfd):
    canvas = np.full((224, 448, 3), (90, 120, 140), np.uint8)
    painted(0.1, 110, 100, 45, canvas)
    _, large = painted(0.1, 330, 95, 72, canvas)
    for _, found in face_mesh.track("two", [canvas] * 3):
        assert found is not None
        np.testing.assert_allclose(found.mean(axis=0), large.mean(axis=0), atol=8)
    face.FaceTracker(1, False)
    assert capfd.readouterr().err == ""
