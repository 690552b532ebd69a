"""A worker that opens the driver while another one still reads it, and what it has told meanwhile.

The driver sees cards that came back, or came under another index, only when it is opened anew, and any
call of that may hang. So it is opened by a second process; the first goes on until the second reads all
that the first one does.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from typing import TypeAlias

from exporter.errors import FrameError
from exporter.frames import (
    ENUMERATION,
    BackendFrame,
    DevicesFrame,
    ErrorsFrame,
    FaultFrame,
    Frame,
    HealthFrame,
    HeartbeatFrame,
    LogFrame,
    ProcessesFrame,
    SampleFrame,
    XidFrame,
)
from exporter.heard_worker import HeardWorker

_log = logging.getLogger(__name__)
CardFrame: TypeAlias = SampleFrame | ProcessesFrame | ErrorsFrame | HealthFrame | FaultFrame


class Successor:
    """What a second worker tells is held back until it takes over."""

    def __init__(self, heard: HeardWorker, predecessor: Counter[tuple[str, int]]) -> None:
        """Begin to listen; `predecessor` is what the first worker has told of Xids until now."""
        self.heard = heard
        self._told_before = Counter(predecessor)
        self._backend: BackendFrame | None = None
        self._devices: DevicesFrame | None = None
        # Of the cards, in the order in which it was told last.
        self._held: dict[Hashable, CardFrame] = {}
        self._xids: dict[tuple[str, int], XidFrame] = {}
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
                    self._backend = frame
                    if not frame.up:
                        self._lost_driver(frame)
                        count_error(ENUMERATION, str(frame.reason))
                case DevicesFrame():
                    for word in frame.errors:
                        count_error(ENUMERATION, word)
                    self._found(replace(frame, errors=()))
                case SampleFrame():
                    # How it went since the last sample the first worker has told.
                    self._hold(replace(frame, utilization=None))
                case _:
                    self._hold(frame)

    def is_ready(self, predecessor: HeardWorker, patience: float) -> bool:
        """Tell whether it has found all cards, and reads all that the first one still reads.

        A call that has been going on for `patience` seconds reads nothing.
        """
        if self._backend is None or not self._backend.up:
            return False
        found = self._devices is not None and not self._devices.opening
        return found and self.heard.reads(patience) >= predecessor.reads(patience)

    def take_over(self, predecessor: Counter[tuple[str, int]]) -> Iterator[Frame]:
        """Yield what it has found, as of now, in the order in which a worker tells it.

        `predecessor` is all that the first one has told of Xids: both hear of the same, so only what
        it did not tell any more is news.
        """
        yield from filter(None, (self._backend, self._devices))
        yield from self._held.values()
        told = predecessor - self._told_before
        for key, count in (self.heard.xids - told).items():
            yield from [self._xids[key]] * count

    def _lost_driver(self, frame: BackendFrame) -> None:
        self._devices = None
        self._held.clear()
        # It tries again and again.
        if frame.message != self._said:
            self._said = frame.message
            _log.warning("worker %d does not open the driver: %s", self.heard.pid, frame.message)

    def _found(self, frame: DevicesFrame) -> None:
        self._devices = frame
        # What is told of no card is told of the driver.
        there = {"", *(info.uuid for info in frame.devices)}
        self._held = {key: one for key, one in self._held.items() if one.uuid in there}

    def _hold(self, frame: CardFrame) -> None:
        key = _about(frame)
        # One that fails after it went well is down, and not the other way round.
        self._held.pop(key, None)
        self._held[key] = frame


def _about(frame: CardFrame) -> Hashable:
    """What a frame replaces: the one before it about the same."""
    if isinstance(frame, FaultFrame):
        kind = SampleFrame if frame.collector == "sample" else (FaultFrame, frame.collector)
        return kind, frame.uuid
    return type(frame), frame.uuid
