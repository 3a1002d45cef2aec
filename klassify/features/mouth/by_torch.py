"""Face Mesh's networks in torch, for many images at a time, on any device.

They are read from the files of the installed MediaPipe; around them is what MediaPipe's graphs do
(modules/face_landmark, modules/face_detection). Clips advance together: each runs in a thread of
its own, and where all of them wait for a network, it runs once for all.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor

from klassify.errors import KlassifyError
from klassify.features.mouth import face
from klassify.models.devices import pick_device
from klassify.models.weights.tflite import LandmarksToMatrix, TFLiteNetwork, package_folder

MODELS = {  # in the folder of MediaPipe's modules
    "faces": "face_detection/face_detection_full_range_sparse.tflite",
    "landmarks": "face_landmark/face_landmark.tflite",
    "refined": "face_landmark/face_landmark_with_attention.tflite",
}
PRESENT = 0.5  # of the landmark model, that an image shows a face
# of a candidate of the detector: what MediaPipe's full-range graph keeps, whatever least score its
# Python class is given
LEAST_SCORE = 0.6
SAME_FACE = 0.3  # overlap (IoU) of boxes that are joined
MAX_LOGIT = 100.0
AT_ONCE = 16  # images of a pass on a CPU, whose caches more of them leave
T, R = TypeVar("T"), TypeVar("R")


class Networks:
    """The landmark model and the full-range detector.

    Args:
        refine: the attention mesh, 478 points in place of 468.
        device: of klassify.models.devices.pick_device.
    """

    def __init__(self, refine: bool = True, device: str | torch.device = "auto"):
        folder = package_folder("mediapipe")
        if folder is None:
            raise KlassifyError("MediaPipe is not installed.", fix="pip install mediapipe==0.10.14")
        self.device = pick_device(str(device))

        def read(name: str) -> TFLiteNetwork:
            network = TFLiteNetwork(folder / "modules" / MODELS[name])
            return network.eval().to(self.device)

        self._faces, self._landmarks = read("faces"), read("refined" if refine else "landmarks")
        # the points of the mesh that lips and eyes refine, in the order of the outputs
        self._refined = [op.subset for op in self._landmarks.custom(LandmarksToMatrix)]

    def track_each(
        self, function: Callable[[face.LandmarkSource, T], R], items: Sequence[T]
    ) -> list[R]:
        """function(source, item) of each item, with a source that tracks a clip. The clips advance
        together.
        """
        together = Together({"landmarks": self.landmarks, "faces": self.faces})

        def call(number: int) -> R:
            ask = functools.partial(together.ask, number)
            mesh = face.Mesh(functools.partial(ask, "landmarks"))
            detector = face.Detector(functools.partial(ask, "faces"))
            return function(face.FaceMesh(mesh=mesh, detector=detector), items[number])

        return together.each(call, len(items))

    def landmarks(self, images: Sequence[np.ndarray]) -> list[np.ndarray | None]:
        """Landmarks (K, 2) float32, in units of the image, of the face in each RGB image (S, S, 3);
        None where there is none.
        """
        outputs = self._run(self._landmarks, images, 1 / 255, 0.0)
        mesh, *parts, flag = (output.reshape(len(images), -1) for output in outputs)
        points = mesh.reshape(len(images), -1, 3)[..., :2].copy()
        parts = [part.reshape(len(images), -1, 2) for part in parts]
        for subset, part in zip(self._refined, parts):
            points[:, subset] = part
        points = np.concatenate([points, *parts[len(self._refined) :]], axis=1)  # irises
        points /= np.float32(images[0].shape[0])
        present = _sigmoid(flag[:, 0]) > PRESENT
        return [one if there else None for one, there in zip(points, present)]

    def faces(self, images: Sequence[np.ndarray]) -> list[list[tuple[float, np.ndarray]]]:
        """Score and box (x, y, width, height in units of the image) of each face in each RGB image,
        whose longer side is the network's.
        """
        side = max(images[0].shape)
        raw, logits = self._run(
            self._faces, [_letterboxed(image, side) for image in images], 2 / 255, -1.0
        )
        scores = _sigmoid(np.clip(logits[..., 0], -MAX_LOGIT, MAX_LOGIT))
        return [
            [
                (score, _out_of_letterbox(box, image.shape, side))
                for score, box in self._joined(boxes / np.float32(side), likely)
            ]
            for image, boxes, likely in zip(images, raw, scores)
        ]

    def _joined(self, boxes: np.ndarray, scores: np.ndarray) -> list[tuple[float, np.ndarray]]:
        """Candidates on a square grid as faces: those that overlap the best one are averaged by
        their scores. boxes: (N, 16) around the cells' middles, the first four x, y, width, height.
        """
        n = round(len(scores) ** 0.5)
        there = np.flatnonzero((scores >= LEAST_SCORE) & (boxes[:, 2:4] >= 0).all(axis=1))
        there = there[np.argsort(-scores[there], kind="stable")]
        middle = (np.column_stack([there % n, there // n]) + 0.5) / n + boxes[there, :2]
        half = boxes[there, 2:4] / 2
        ends, likely = np.column_stack([middle - half, middle + half]), scores[there]
        found = []
        while len(ends):
            same = _overlaps(ends, ends[0]) > SAME_FACE
            if not same.any():  # an empty box
                break
            box = np.average(ends[same], axis=0, weights=likely[same])
            found.append((float(likely[0]), np.concatenate([box[:2], box[2:] - box[:2]])))
            ends, likely = ends[~same], likely[~same]
        return found

    @torch.inference_mode()
    def _run(
        self, network: TFLiteNetwork, images: Sequence[np.ndarray], scale: float, offset: float
    ) -> list[np.ndarray]:
        """The outputs of a network for images, whose bytes are scaled and shifted."""
        at_once = AT_ONCE if self.device.type == "cpu" else len(images)
        batch = torch.from_numpy(np.stack(images))
        passes: list[list[Tensor]] = [
            network(part.to(self.device, torch.float32) * scale + offset)
            for part in batch.split(at_once)
        ]
        return [torch.cat(output).cpu().numpy() for output in zip(*passes)]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x.astype(float)))


def _letterboxed(image: np.ndarray, side: int) -> np.ndarray:
    """An image in the middle of a black square, as MediaPipe's warp puts it there."""
    height, width = image.shape[:2]
    if height == width == side:
        return image
    shift = np.array([[1, 0, (side - width) / 2], [0, 1, (side - height) / 2], [0, 0, 1]])
    return cv2.warpPerspective(image, shift, (side, side))


def _out_of_letterbox(box: np.ndarray, shape: Sequence[int], side: int) -> np.ndarray:
    """A box in units of the square as one in units of the image."""
    size = np.array(shape[1::-1])
    return np.concatenate([(box[:2] * side - (side - size) / 2) / size, box[2:] * side / size])


def _overlaps(boxes: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (N, 4) and another (4,)."""
    low, high = np.maximum(boxes[:, :2], other[:2]), np.minimum(boxes[:, 2:], other[2:])
    inter = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    union = areas + np.prod(other[2:] - other[:2]) - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


class Together:
    """Questions of several threads, answered at once as soon as all of them wait.

    answers: {kind of question: a function of a list of questions, which gives their answers}. The
    questions are in the order of the threads' numbers, so that a run can be repeated exactly.
    """

    def __init__(self, answers: Mapping[str, Callable[[list], list]]):
        self._of_kind = answers
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._asked: dict[int, tuple[str, Any]] = {}
        self._answers: dict[int, Any] = {}
        self._n_running = 0

    def each(self, function: Callable[[int], Any], n: int) -> list[Any]:
        """function(0), ..., function(n - 1), each in a thread that may `ask`.

        An exception of a function or of an answer is raised here.
        """

        def run(number: int) -> Any:
            try:
                return function(number)
            except BaseException as error:
                self._error = self._error or error
            finally:
                with self._changed:
                    self._n_running -= 1
                    self._answer_if_all_wait()

        self._n_running = n
        with ThreadPoolExecutor(n) as threads:
            results = list(threads.map(run, range(n)))
        if self._error is not None:
            raise self._error
        return results

    def ask(self, number: int, kind: str, question: Any) -> Any:
        """The answer to a question of a thread of this number."""
        with self._changed:
            self._asked[number] = kind, question
            self._answer_if_all_wait()
            while number not in self._answers:
                if self._error is not None:
                    raise self._error
                self._changed.wait()
            return self._answers.pop(number)

    def _answer_if_all_wait(self) -> None:
        if not self._asked or len(self._asked) < self._n_running:
            return
        asked, self._asked = sorted(self._asked.items()), {}
        try:
            for kind, function in self._of_kind.items():
                numbers = [number for number, (of_kind, _) in asked if of_kind == kind]
                if numbers:
                    answers = function([q for _, (of_kind, q) in asked if of_kind == kind])
                    self._answers.update(zip(numbers, answers))
        except BaseException as error:
            self._error = error
        self._changed.notify_all()
