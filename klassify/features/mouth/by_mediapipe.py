"""Face Mesh's networks as MediaPipe runs them, one image at a time."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


class Landmarks:
    """The landmark model; call it with an RGB image (size, size, 3) of a face."""

    GRAPH = """
        input_stream: "image"
        input_stream: "region"
        output_stream: "landmarks"
        input_side_packet: "refine"
        node {
            calculator: "FaceLandmarkCpu"
            input_stream: "IMAGE:image"
            input_stream: "ROI:region"
            input_side_packet: "WITH_ATTENTION:refine"
            output_stream: "LANDMARKS:landmarks"
        }
    """

    def __init__(self, refine: bool, size: int):
        # MediaPipe against the protobuf that it asks for
        warnings.filterwarnings("ignore", message=r"SymbolDatabase\.GetPrototype")
        with _quiet():
            import mediapipe
            from google.protobuf import text_format
            from mediapipe.framework.calculator_pb2 import CalculatorGraphConfig
            from mediapipe.framework.formats.rect_pb2 import NormalizedRect

            create = mediapipe.packet_creator
            whole = NormalizedRect(x_center=0.5, y_center=0.5, width=1, height=1)
            self._whole = create.create_proto(whole)
            self._to_packet = functools.partial(
                create.create_image_frame, image_format=mediapipe.ImageFormat.SRGB
            )
            self._from_packet = mediapipe.packet_getter.get_proto
            folder = Path(mediapipe.__file__).parents[1]  # that models are named from
            mediapipe.resource_util.set_resource_dir(str(folder))
            config = text_format.Parse(self.GRAPH, CalculatorGraphConfig())
            self._graph = mediapipe.CalculatorGraph(graph_config=config)
            self._graph.observe_output_stream("landmarks", self._take)
            self._graph.start_run({"refine": create.create_bool(refine)})
            self._time = 0
            self(np.zeros((size, size, 3), np.uint8))

    def __call__(self, image: np.ndarray) -> np.ndarray | None:
        """Landmarks (K, 2) float32 in units of the image; None where there is no face."""
        self._found = None
        self._time += 1
        packet = self._to_packet(data=image)
        self._graph.add_packet_to_input_stream("image", packet.at(self._time))
        self._graph.add_packet_to_input_stream("region", self._whole.at(self._time))
        self._graph.wait_until_idle()
        return None if self._found is None else _points(self._from_packet(self._found))

    def _take(self, _stream: str, packet: Any) -> None:
        self._found = packet


class Faces:
    """The full-range face detector; call it with an RGB image."""

    def __init__(self, least_score: float, size: int):
        with _quiet():
            from mediapipe.python.solutions import face_detection

            self._detector = face_detection.FaceDetection(least_score, model_selection=1)
            self._detector.process(np.zeros((size, size, 3), np.uint8))

    def __call__(self, image: np.ndarray) -> list[tuple[float, np.ndarray]]:
        """Score and box (x, y, width, height in units of the image) of each face."""
        found = []
        for detection in self._detector.process(image).detections or []:
            box = detection.location_data.relative_bounding_box
            place = np.array([box.xmin, box.ymin, box.width, box.height])
            found.append((detection.score[0], place))
        return found


def _points(face: Any) -> np.ndarray:
    """(K, 2) float32 of a NormalizedLandmarkList, in units of the image.

    Each landmark is 17 bytes on the wire (tag, length, then tag and float32 for x, y, z), which
    numpy reads ten times faster than attribute access does.
    """
    n, wire = len(face.landmark), face.SerializeToString()
    if len(wire) == 17 * n and wire[:3] == b"\x0a\x0f\x0d":
        rows = np.frombuffer(wire, np.uint8).reshape(n, 17)
        return np.ascontiguousarray(rows[:, [3, 4, 5, 6, 8, 9, 10, 11]]).view("<f4")
    return np.array([(point.x, point.y) for point in face.landmark], np.float32)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what MediaPipe's native parts write to the standard error stream while they start."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as sink:
            os.dup2(sink.fileno(), 2)
            yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
