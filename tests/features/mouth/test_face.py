"""Which face is followed, how gaps are bridged, and Face Mesh itself on a painted face."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from painted_face import painted
from shown import shown

from klassify.errors import KlassifyError
from klassify.features.mouth import by_mediapipe, channels, face

# MediaPipe against its own protobuf
pytestmark = pytest.mark.filterwarnings("ignore:SymbolDatabase")


def square(x: float, y: float, size: float) -> np.ndarray:
    """A "face" (478, 2) that fills a square around (x, y)."""
    points = np.array([x, y]) + size * (np.random.default_rng(0).random((478, 2)) - 0.5)
    points[face.EYE_CORNERS] = [x - size / 4, y], [x + size / 4, y]
    points[:2] = [x - size / 2, y - size / 2], [x + size / 2, y + size / 2]
    return points.astype(np.float32)


class Drawn:
    """A picture of faces: [(landmarks, score on the square around it)], on a gray level, or on a
    part of it.
    """

    def __init__(
        self, *faces, gray: float = 100.0, part: float = 1.0, size: tuple[int, int] = (640, 480)
    ):
        self.faces = [each if isinstance(each, tuple) else (each, 0.9) for each in faces]
        self.gray, self.part, (self.width, self.height) = gray, part, size

    def sketch(self) -> np.ndarray:
        levels = np.full((18, 32), 100, np.float32)
        levels[: round(18 * self.part)] = self.gray
        return levels


class FakeMesh:
    """Finds the face whose middle is in the middle half of the region."""

    def __init__(self):
        self.calls = 0

    def __call__(self, picture, region):
        self.calls += 1
        centre, side, _ = region
        near = [x for x, _ in picture.faces if abs(x.mean(axis=0) - centre).max() < side / 4]
        return near[0] if near else None


class FakeDetector:
    """Finds faces that are large enough in a view; their score holds for small views alone."""

    def __init__(self):
        self.views = []

    def __call__(self, picture, view):
        self.views.append(view)
        found = []
        for points, score in picture.faces:
            box = face.box_of(points)
            inside = (box[:2] >= view[:2]).all() and (box[2:] <= view[2:]).all()
            width, side = box[2] - box[0], max(view[2] - view[0], view[3] - view[1])
            if inside and width / side > 1 / 20:
                found.append((score if side < 5 * width else 0.9, box))
        return found


@pytest.fixture
def mesh():
    return face.FaceMesh(mesh=FakeMesh(), detector=FakeDetector())


def track(mesh, pictures, fps: float = 25) -> list[face.Seen]:
    shown = ((k / fps, (k + 1) / fps, picture) for k, picture in enumerate(pictures))
    return list(mesh.track("clip", shown))


def followed(mesh, pictures) -> list:
    """The centre x of the followed face in each picture, None where there is none."""
    return [
        None if seen.landmarks is None else round(float(face.box_of(seen.landmarks)[[0, 2]].mean()))
        for seen in track(mesh, pictures)
    ]


def test_a_followed_face_is_detected_once_and_warmed_up(mesh):
    assert followed(mesh, [Drawn(square(100, 100, 50))] * 20) == [100] * 20
    assert mesh._mesh.calls == 19 + face.WARM_UP
    assert len(mesh._detect.views) == 2  # the picture, and the square around the face


def test_the_largest_face_is_followed_whatever_comes_first(mesh):
    small, large = square(100, 100, 30), square(300, 100, 60)
    assert followed(mesh, [Drawn(small, large), Drawn(large, small)]) == [300] * 2


def test_the_followed_face_is_kept_when_another_grows(mesh):
    pictures = [Drawn(square(100, 100, 40 + 8 * t), square(300 + 3 * t, 100, 50)) for t in range(9)]
    assert followed(mesh, pictures) == [300 + 3 * t for t in range(9)]


def test_a_lost_face_is_looked_for_where_it_was(mesh):
    lost, other = Drawn(square(500, 400, 50)), square(100, 100, 90)
    there = Drawn(square(300, 100, 50))
    both = Drawn(other, square(380, 100, 50))
    assert followed(mesh, [there, both, both]) == [300, 380, 380]
    assert followed(mesh, [there, Drawn(), lost])[:2] == [300, None]


def test_a_face_that_appears_is_found_within_a_few_pictures(mesh):
    found = followed(mesh, [Drawn()] * 12 + [Drawn(square(300, 100, 50))] * 8)
    assert found[:12] == [None] * 12
    assert found.index(300) <= 12 + face.LOOK_EVERY and None not in found[found.index(300) :]
    assert len(mesh._detect.views) < 6  # not in each picture


def test_small_faces_are_found_in_tiles(mesh):
    size = (1920, 1080)
    there = Drawn(square(1700, 900, 60), size=size)
    assert followed(mesh, [there] * 3) == [1700] * 3
    found = followed(mesh, [Drawn(size=size)] * 3 + [there] * 30)
    assert found[-1] == 1700


@pytest.mark.parametrize("size", [(1920, 1080), (1080, 1920), (3840, 2160), (700, 650), (5000, 90)])
def test_tiles_cover_the_picture_and_overlap(size):
    squares = face.tiles(Drawn(size=size))
    covered = np.zeros(size, bool)
    for x0, y0, x1, y1 in squares:
        assert 0 <= x0 < x1 <= size[0] and 0 <= y0 < y1 <= size[1] and x1 - x0 == y1 - y0 <= 1080
        covered[x0:x1, y0:y1] = True
    assert covered.all()
    assert face.tiles(Drawn(size=(640, 480))) == []


def test_a_face_without_a_score_in_its_square_is_dropped(mesh):
    shirt = square(100, 100, 60), 0.0
    assert followed(mesh, [Drawn(shirt)] * 12) == [None] * 12
    assert followed(mesh, [Drawn(shirt, square(300, 300, 50))] * 3) == [300] * 3


def test_what_the_detector_no_longer_finds_is_given_up(mesh):
    turned = square(100, 100, 60)
    pictures = [Drawn(turned)] * 5 + [Drawn((turned, 0.0))] * 120
    assert followed(mesh, pictures)[-1] is None


def test_a_cut_needs_another_picture_and_a_jump(mesh):
    here, there = square(100, 100, 60), square(400, 300, 60)

    def cuts(*pictures) -> list[int]:
        return [k for k, seen in enumerate(track(mesh, pictures)) if seen.cut]

    assert cuts(Drawn(here), Drawn(here), Drawn(there, gray=160), Drawn(there, gray=160)) == [2]
    assert cuts(Drawn(here), Drawn(here, gray=160), Drawn(here)) == []  # a flash
    moves = [Drawn(square(100 + 5 * t, 100, 60)) for t in range(20)]
    assert cuts(*moves) == []
    fast = square(112, 100, 60)  # a head that moves by 0.4 eye distances, or another shot
    assert cuts(Drawn(here), Drawn(fast, gray=130, part=0.5)) == []
    assert cuts(Drawn(here), Drawn(fast, gray=115)) == [1]
    assert cuts(Drawn(here), Drawn(there, gray=130, part=0.5)) == [1]


def test_pictures_of_high_rates_are_left_out_evenly(mesh):
    for fps, kept in ((25, 25), (30, 30), (50, 25), (60, 30), (120, 30)):
        seen = track(mesh, [Drawn()] * fps, fps)
        assert len(seen) == kept and seen[-1].stop == pytest.approx(1)
        assert np.ptp(np.diff([each.start for each in seen])) < 1e-6


def test_every_clip_starts_from_nothing(mesh):
    for _ in range(2):
        assert followed(mesh, [Drawn(square(100, 100, 40), square(300, 100, 60))] * 2) == [300] * 2
    assert followed(mesh, [Drawn(square(100, 100, 40))]) == [100]


def filled(xs: list, cut: int | None = None) -> list:
    tracked = (
        face.Seen(t / 25, (t + 1) / 25, t, None if x is None else np.full((478, 2), x), t == cut)
        for t, x in enumerate(xs)
    )
    result = list(face.fill_gaps(tracked))
    assert [seen.picture for seen in result] == list(range(len(xs)))  # every one once, in order
    return [None if seen.landmarks is None else float(seen.landmarks[0, 0]) for seen in result]


def gap(n: int) -> list:
    return [None] * n


@pytest.mark.parametrize(
    "xs, wanted",
    [
        ([0, None, 2], [0, 1, 2]),
        ([0, *gap(5), 6, None, 8], [*range(9)]),
        ([0, *gap(6), 7], None),
        ([*gap(2), 1], None),
        ([1, *gap(2)], None),
        (gap(9), None),
        ([0, *gap(30), 1, 2], None),
    ],
)
def test_gaps_of_up_to_five_frames_are_interpolated(xs, wanted):
    assert filled(xs) == (xs if wanted is None else pytest.approx(wanted))


def test_gaps_that_hold_a_cut_stay_empty():
    for cut in (1, 2, 3):
        assert filled([0, None, None, 3], cut) == [0, None, None, 3]


def test_gaps_are_filled_with_little_memory():
    waiting = 0

    def tracked():
        nonlocal waiting
        for t in range(200):
            waiting += 1
            yield face.Seen(t / 25, 0, t, None if t % 50 else np.zeros((478, 2)))

    for _ in face.fill_gaps(tracked()):
        waiting -= 1
        assert waiting <= 6


def blank(n: int):
    return shown([np.zeros((8, 8, 3), np.uint8)] * n)


def test_precomputed_landmarks_are_read_and_nan_means_no_face(tmp_path):
    points = np.random.default_rng(0).normal(100, 20, (4, 468, 3)).astype(np.float32)
    points[2, 7] = np.nan
    (tmp_path / "id1").mkdir()
    np.savez(tmp_path / "id1" / "a.npz", landmarks=points)
    tracked = list(face.open_source(tmp_path).track("id1/a.mp4", blank(4)))
    assert [seen.landmarks is None for seen in tracked] == [False, False, True, False]
    np.testing.assert_array_equal(tracked[3].landmarks, points[3, :, :2])


@pytest.mark.parametrize("n_frames", [3, 5])
def test_landmarks_of_another_length_are_refused(tmp_path, n_frames):
    np.savez(tmp_path / "a.npz", landmarks=np.zeros((4, 478, 2), np.float32))
    with pytest.raises(KlassifyError, match=f"for 4 frames, the clip has {n_frames}"):
        list(face.PrecomputedLandmarks(tmp_path).track("a.mp4", blank(n_frames)))


def test_files_without_landmarks_are_refused_by_name(tmp_path):
    source = face.PrecomputedLandmarks(tmp_path)
    with pytest.raises(KlassifyError, match="no landmarks"):
        list(source.track("none.mp4", blank(4)))
    np.savez(tmp_path / "shape.npz", landmarks=np.zeros((4, 100, 2)))
    np.savez(tmp_path / "key.npz", points=np.zeros((4, 478, 2)))
    np.savez(tmp_path / "pickle.npz", landmarks=np.array([{}], object))
    (tmp_path / "text.npz").write_text("landmarks")
    (tmp_path / "empty.npz").write_text("")
    for name in ("shape", "key", "pickle", "text", "empty"):
        with pytest.raises(KlassifyError, match=f"{name}.npz"):
            list(source.track(f"{name}.mp4", blank(4)))


def test_what_features_depend_on():
    assert face.source_settings("somewhere") == {"landmarks": "precomputed"}
    assert face.source_settings(refine=True) != face.source_settings(refine=False)
    assert "0.10" in face.source_settings()["landmarks"]


@pytest.fixture(scope="module")
def face_mesh():
    return face.FaceMesh()


def landmarks_of(face_mesh, images) -> list:
    return [seen.landmarks for seen in face_mesh.track("a", shown(images))]


@pytest.mark.parametrize("scale, size", [(1, (224, 224)), (0.6, (1280, 720))])
def test_face_mesh_finds_a_painted_face_where_it_is(face_mesh, scale, size):
    image, pixels = painted()
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    corner = [(size[0] - image.shape[1]) * 3 // 4, (size[1] - image.shape[0]) // 2]
    large = np.full((size[1], size[0], 3), image[0, 0], np.uint8)
    large[corner[1] :, corner[0] :][: image.shape[0], : image.shape[1]] = image
    _, found = landmarks_of(face_mesh, [large, large])
    assert found.shape == (478, 2) and found.dtype == np.float32
    error = np.linalg.norm(found - (pixels * scale + corner), axis=1)[channels.LIPS]
    assert error.mean() < 5 * scale  # of an eye distance of 70 px


def test_a_still_has_no_start_transient(face_mesh):
    image, _ = painted()
    tracked = list(face_mesh.track("a", shown([image] * 6)))
    speed = channels.mouth_features(tracked)[0][:, 4]
    assert speed[1] < 0.01


def test_results_do_not_depend_on_the_clip_before(face_mesh):
    clip = [painted(0.06 + 0.05 * np.sin(t), 112 + 2 * t)[0] for t in range(5)]
    other = [painted(0.1, 80, 90, 50)[0]] * 3
    nothing = [np.zeros((224, 224, 3), np.uint8)] * 2
    runs = [landmarks_of(face_mesh, frames) for frames in (clip, other, clip, nothing, clip)]
    assert runs[3] == [None, None]
    for again in (runs[2], runs[4]):
        for a, b in zip(runs[0], again):
            np.testing.assert_array_equal(a, b)


def test_face_mesh_starts_quietly_and_follows_the_larger_of_two(face_mesh, capfd):
    canvas = np.full((224, 448, 3), (90, 120, 140), np.uint8)
    painted(0.1, 110, 100, 45, canvas)
    _, large = painted(0.1, 330, 95, 72, canvas)
    for found in landmarks_of(face_mesh, [canvas] * 3):
        assert found is not None
        np.testing.assert_allclose(found.mean(axis=0), large.mean(axis=0), atol=8)
    by_mediapipe.Landmarks(False, face.REGION_PX)
    assert capfd.readouterr().err == ""
