"""Face Mesh's networks in torch against MediaPipe, and clips that advance together."""

from __future__ import annotations

import threading

import cv2
import numpy as np
import pytest
from painted_face import painted
from shown import shown

from klassify.errors import KlassifyError
from klassify.features.mouth import by_mediapipe, by_torch, face
from klassify.features.mouth.kind import ClipExtractor, face_extraction

# MediaPipe against its own protobuf
pytestmark = pytest.mark.filterwarnings("ignore:SymbolDatabase")

CLIP = [painted(0.06 + 0.05 * np.sin(t), 112 + 2 * t)[0] for t in range(5)]


@pytest.fixture(scope="module")
def networks():
    return by_torch.Networks(True, "cpu")


@pytest.mark.parametrize("refine, n_points", [(True, 478), (False, 468)])
def test_landmarks_of_an_image_are_those_of_mediapipe(networks, refine, n_points):
    if not refine:
        networks = by_torch.Networks(False, "cpu")
    images = [cv2.resize(image[10:180, 30:200], (192, 192)) for image in CLIP[:2]]
    found = networks.landmarks([*images, np.zeros((192, 192, 3), np.uint8)])
    assert found[2] is None
    mediapipe = by_mediapipe.Landmarks(refine, 192)
    for image, points in zip(images, found):
        assert points.shape == (n_points, 2)
        np.testing.assert_allclose(points, mediapipe(image), atol=1e-3 / 192)


def test_faces_of_an_image_are_those_of_mediapipe(networks):
    canvas = np.full((224, 448, 3), (90, 120, 140), np.uint8)
    painted(0.1, 110, 100, 45, canvas)
    painted(0.1, 330, 95, 72, canvas)
    image = cv2.resize(canvas, (192, 95), interpolation=cv2.INTER_AREA)  # half a pixel off
    found = networks.faces([image, np.zeros((95, 192, 3), np.uint8)])
    wanted = by_mediapipe.Faces(face.MIN_CANDIDATE, 192)(image)
    assert len(wanted) == len(found[0]) == 2 and found[1] == []
    for (score, box), (their_score, their_box) in zip(found[0], wanted):
        assert score == pytest.approx(their_score, abs=1e-5)
        np.testing.assert_allclose(box, their_box, atol=1e-5)


def landmarks(source: face.LandmarkSource, images) -> list:
    return [seen.landmarks for seen in source.track("a", shown(images))]


def test_clips_are_tracked_together_as_alone_and_by_mediapipe(networks):
    nothing = [np.zeros((224, 224, 3), np.uint8)] * 3
    both, shorter, none = networks.track_each(landmarks, [CLIP, CLIP[:2], nothing])
    assert none == [None] * 3
    (alone,) = networks.track_each(landmarks, [CLIP])
    mediapipe = landmarks(face.FaceMesh(), CLIP)
    for found in (both[:2], alone, mediapipe):
        wanted = shorter if len(found) == 2 else both
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b, atol=0.3)


def test_questions_are_answered_in_order_once_all_wait():
    asked = []

    def doubled(questions):
        asked.append(questions)
        return [2 * question for question in questions]

    together = by_torch.Together({"double": doubled})
    results = together.each(lambda i: [together.ask(i, "double", 10 * k + i) for k in range(i)], 4)
    assert results == [[], [2], [4, 24], [6, 26, 46]]
    assert asked == [[1, 2, 3], [12, 13], [23]]


def test_an_error_of_a_network_ends_the_run_not_a_clip():
    def fails(questions):
        raise RuntimeError("out of memory")

    together = by_torch.Together({"fail": fails})

    def patient(number):
        try:
            return together.ask(number, "fail", 0)
        except RuntimeError:  # as `attempt` does
            return None

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="out of memory"):
        together.each(patient, 3)
    assert threading.active_count() == before


def test_what_is_wrong_with_a_clip_is_said_in_its_row(tmp_path):
    (tmp_path / "text.mp4").write_text("no video\n" * 100)
    extractor = ClipExtractor(tmp_path, face.TORCH, device="cpu")
    rows = extractor.together(["text.mp4", "missing.mp4"])
    assert [(row.file, row.stage) for row in rows] == [
        ("text.mp4", "decode"),
        ("missing.mp4", "decode"),
    ]


def test_the_shards_say_which_landmarks_they_come_from():
    ours, theirs = face.source_settings(face.TORCH), face.source_settings()
    assert ours != theirs and face.is_by_torch(ours) and not face.is_by_torch(theirs)
    with pytest.raises(KlassifyError, match="--landmarks torch"):
        face_extraction("mouth", ClipExtractor, {}, device="cuda")
