"""A worker that opens the driver while another one still reads it, and what it has told meanwhile.

The driver sees cards that came back, or came under another index, only when it is opened anew, and any
call of that may hang. So it is opened by a second process; the first goes on until the second reads all
that the first one does.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator
from dataclasses import replace

from exporter.errors import FrameError
from exporter.frames import (
    BackendFrame,
    DevicesFrame,
    FaultFrame,
    Frame,
    HeartbeatFrame,
    LogFrame,
    SampleFrame,
    XidFrame,
)
from exporter.heard_worker import ENUMERATION, HeardWorker

_log = logging.getLogger(__name__)


class Successor:
    """What a second worker tells is held back until it takes over."""

    def __init__(self, heard: HeardWorker, predecessor: Counter[tuple[str, int]]) -> None:
        """Begin to listen; `predecessor` is what the first worker has told of Xids until now."""
        self.heard = heard
        self._told_before = Counter(predecessor)
        self._held: dict[Hashable, Frame] = {}
        self._xids: dict[tuple[str, int], XidFrame] = {}
        self._up = self._found = False
        self._said = ""

    def read(
        self, pass_on: Callable[[Frame], None], count_error: Callable[[str, str], None]
    ) -> None:
        """Take in what it has sent; lines for the log and failures to open something are told at once."""
        for frame in self.heard.read(0):
            match frame:
                case FrameError():
                    count_error("worker", "bad_frame")
                case LogFrame():
                    pass_on(frame)
                case HeartbeatFrame():
                    pass
                case XidFrame():
                    self._xids[frame.uuid, frame.xid] = frame
                case BackendFrame():
                    self._up = frame.up
                    if frame.up:
                        self._held[BackendFrame] = frame
                    else:
                        self._say(
                            f"worker {self.heard.pid} does not open the driver: {frame.message}"
                        )
                        count_error(ENUMERATION, str(frame.reason))
                case DevicesFrame():
                    self._found = not frame.opening
                    for word in frame.errors:
                        count_error(ENUMERATION, word)
                    self._held[DevicesFrame] = replace(frame, errors=())
                case SampleFrame():
                    # How it went since the last sample the first worker has told.
                    self._held[_about(frame)] = replace(frame, utilization=None)
                case _:
                    self._held[_about(frame)] = frame

    def is_ready(self, needed: Collection[str]) -> bool:
        """Tell whether it has found all cards, and reads all of `needed` (uuids)."""
        return self._up and self._found and self.heard.well.issuperset(needed)

    def take_over(self, predecessor: Counter[tuple[str, int]]) -> Iterator[Frame]:
        """Yield what it has found, as of now, in the order in which a worker tells it.

        `predecessor` is all that the first one has told of Xids: both hear of the same, so only what
        it did not tell any more is news.
        """
        yield from self._held.values()
        told = predecessor - self._told_before
        for key, count in (self.heard.xids - told).items():
            yield from [self._xids[key]] * count

    def _say(self, sentence: str) -> None:
        # It tries again and again.
        if sentence != self._said:
            self._said = sentence
            _log.warning("%s", sentence)


def _about(frame: Frame) -> Hashable:
    """What a frame replaces: the one before it about the same."""
    if isinstance(frame, FaultFrame):
        kind = SampleFrame if frame.collector == "sample" else (FaultFrame, frame.collector)
        return kind, frame.uuid
    return type(frame), getattr(frame, "uuid", "")
