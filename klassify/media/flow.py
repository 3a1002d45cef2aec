"""The decoded frames of one stream: damaged packets are concealed, as FFmpeg does it, and counted.

More than a share of them (DAMAGE_LIMIT, or $KLASSIFY_DAMAGE) is a MediaError.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterator

import av

from klassify.errors import KlassifyError
from klassify.media.container import MediaError, explained

DAMAGE_LIMIT = 0.1  # share of a stream's packets that may be damaged or missing
DAMAGE_VARIABLE = "KLASSIFY_DAMAGE"

log = logging.getLogger(__name__)


def damage_limit() -> float:
    """The share of a stream's packets that may be damaged, from $KLASSIFY_DAMAGE; 0 allows none."""
    text = os.environ.get(DAMAGE_VARIABLE) or str(DAMAGE_LIMIT)
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not 0 <= limit <= 1:
        raise KlassifyError(
            f"{DAMAGE_VARIABLE}={text!r} is not a share from 0 to 1.",
            fix=f"export {DAMAGE_VARIABLE}={DAMAGE_LIMIT}",
        )
    return limit


@contextlib.contextmanager
def refusing_damage(strict: bool = True) -> Iterator[None]:
    """Refuse any damage meanwhile, also in new processes; not `strict`: check the limit only."""
    before = os.environ.get(DAMAGE_VARIABLE)
    if strict:
        os.environ[DAMAGE_VARIABLE] = "0"
    damage_limit()
    try:
        yield
    finally:
        if strict:
            del os.environ[DAMAGE_VARIABLE]
            os.environ.update({} if before is None else {DAMAGE_VARIABLE: before})


class Flow:
    """The decoded frames of one stream. Damage is concealed and counted.

    end: seconds on the container's clock at which its last packet ends; None if none says.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        container: av.container.InputContainer,
        stream: av.VideoStream | av.AudioStream,
    ):
        self.path, self.container, self.stream = path, container, stream
        self.what = "picture" if stream.type == "video" else "sound"
        self.limit = damage_limit()
        self.n_packets, self.n_damaged, self.end = 0, 0, None
        self.counted: set[int] = set()  # time stamps of damaged packets
        self.error: Exception | None = None

    def frames(self) -> Iterator:
        """All frames to the stream's end; MediaError if more than the limit is damaged."""
        n_frames = 0
        with explained(self.path):
            if self.stream.codec_context is None:
                raise MediaError("The codec is unknown.", where=self.path)
            for packet in self._packets():
                frames = self._frames_of(packet)
                n_frames += len(frames)
                yield from frames
            missing = self._listed() - self.n_packets
            if missing > 0:
                self._damaged(missing)
                self.n_packets += missing
            if not n_frames and self.error is not None:
                raise self.error
        if self.n_damaged > self.limit * self.n_packets:
            raise MediaError(
                f"{self._share()} are damaged or missing; the limit is {100 * self.limit:g} %.",
                where=self.path,
            )
        for sentence in self.notes():
            log.warning("%s: %s", os.path.realpath(self.path), sentence)  # not predict's link to it

    def _listed(self) -> int:
        """Packets that the header lists. Of other formats FFmpeg makes the index while it reads,
        and in FLV it counts settings of the decoder too.
        """
        whole = "mp4" in self.container.format.name
        return len(self.stream.index_entries) if whole else 0

    def _packets(self) -> Iterator[av.Packet]:
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError as error:  # the rest cannot be found
                self._damaged(1, error)
                self.n_packets += 1
                return
            if packet is None:
                return
            if packet.size:
                self.n_packets += 1
                if packet.pts is not None and not packet.is_discard:
                    end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                    self.end = end if self.end is None else max(self.end, end)
            yield packet

    def _frames_of(self, packet: av.Packet) -> list:
        if packet.is_corrupt:
            self._damaged_at(packet.pts)
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            self._damaged_at(packet.pts, error)
            return []
        for frame in frames:
            if frame.is_corrupt:  # in part, which the decoder filled
                self._damaged_at(frame.pts)
        return frames

    def _damaged_at(self, pts: int | None, error: Exception | None = None) -> None:
        """Count the packet with a time stamp, once."""
        self._damaged(0 if pts in self.counted else 1, error)
        if pts is not None:
            self.counted.add(pts)

    def _damaged(self, n: int, error: Exception | None = None) -> None:
        self.n_damaged += n
        self.error = self.error or error
        if not self.limit:
            raise MediaError(
                f"The {self.what} is damaged or truncated in packet {self.n_packets}.",
                where=self.path,
            ) from error

    def _share(self) -> str:
        share = 100 * self.n_damaged / self.n_packets
        return f"{self.n_damaged} of {self.n_packets} packets of the {self.what} ({share:.1f} %)"

    def notes(self) -> list[str]:
        """A sentence on the damage, if there was any."""
        return [f"{self._share()} are damaged and were concealed."] if self.n_damaged else []
