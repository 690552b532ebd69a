"""`gpu-exporter capture`: ask the driver as the exporter does, and write the answers to a file."""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TextIO

import pynvml

from exporter import __version__
from exporter.backends.base import Device
from exporter.backends.nvml import NvmlBackend
from exporter.capture.file import OPEN, Answer, Call, Header, answer_line, header_line
from exporter.capture.recorder import Disguise, Recorder
from exporter.clock import Clock
from exporter.environment import Environment
from exporter.errors import BackendError, CaptureError, DeviceFault, ReadingError
from exporter.readings import BackendReason

# Opening a driver without persistence mode takes seconds; no call takes so long that works.
_HANG_SECONDS = 30.0
_LOOK_SECONDS = 0.1
_VERSION = re.compile(r"\d+\.\d+(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class CaptureOptions:
    """What is captured.

    Attributes:
        passes: how often each GPU is read.
        interval: seconds between two of them.
        anonymise: replace uuids and serial numbers.
    """

    passes: int = 3
    interval: float = 1.0
    anonymise: bool = True
    hang_after: float = _HANG_SECONDS


@dataclass(frozen=True, slots=True)
class Captured:
    """What is in the file now.

    Attributes:
        gpus: that opened.
        answers: 0 where nothing was written, because no driver was there to answer.
        problem: why there is no GPU in it, if there is none.
    """

    gpus: int
    answers: int
    problem: str = ""


class Session:
    """One capture. The driver is asked in a thread of its own, because a call may never end."""

    def __init__(
        self,
        out: TextIO,
        options: CaptureOptions,
        clock: Clock,
        nvml: Any = pynvml,
        environment: Environment | None = None,
    ) -> None:
        """Write to `out` as the answers come, so that what was asked before a hang is there.

        Nothing is written before a card is asked or the driver refuses: else what was captured of a
        machine without a GPU would look like one.
        """
        self._out = out
        self._options = options
        self._clock = clock
        self._environment = environment or Environment()
        self._recorder = Recorder(nvml, self._note, clock, Disguise(anonymise=options.anonymise))
        self._done = threading.Event()
        self._held: list[str] | None = [header_line(self._header())]
        self._gpus = 0
        self._answers = 0
        self._problem = ""
        self._failure: Exception | None = None

    def run(self) -> Captured:
        """Ask everything.

        Raises:
            CaptureError: a call has not come back; it is the last one in the file.
        """
        threading.Thread(target=self._guarded, name="capture", daemon=True).start()
        while not self._clock.wait(self._done, _LOOK_SECONDS):
            hung = self._recorder.stuck(self._options.hang_after)
            if hung is not None:
                self._note(hung, Answer(hung=True, seconds=self._options.hang_after))
                self._write_held()
                raise CaptureError(
                    f"{hung.function} has not come back for {self._options.hang_after:g} s; the "
                    "capture ends there: send it, and look at `dmesg` for NVRM and Xid lines"
                )
        if self._failure is not None:
            raise self._failure
        return Captured(self._gpus, 0 if self._held else self._answers, self._problem)

    def _header(self) -> Header:
        found = _VERSION.search(self._environment.kernel_driver() or "")
        return Header(
            driver=found[0] if found else "",
            exporter=__version__,
            nvml_py=importlib.metadata.version("nvidia-ml-py"),
            anonymised=self._options.anonymise,
        )

    def _note(self, call: Call, answer: Answer) -> None:
        self._answers += 1
        line = answer_line(call, answer)
        if call.function == OPEN:
            self._write_held()
        if self._held is not None:
            self._held.append(line)
            return
        self._out.write(line)
        self._out.flush()

    def _write_held(self) -> None:
        held, self._held = self._held, None
        self._out.writelines(held or ())
        self._out.flush()

    def _guarded(self) -> None:
        try:
            self._ask()
        except Exception as error:  # noqa: BLE001  it is raised again where somebody waits for it
            self._failure = error
        finally:
            self._done.set()

    def _ask(self) -> None:
        backend = NvmlBackend(self._recorder, self._environment, self._clock)
        try:
            found = backend.open()
        except BackendError as error:
            self._problem = str(error)
            if error.reason is not BackendReason.LIBRARY_MISSING:
                self._write_held()
            return
        self._gpus = len(found.devices)
        if not found.devices:
            why = "; ".join(one.message for one in found.failed)
            self._problem = f"no GPU opens: {why}" if why else "the driver lists no GPU"
        for number in range(self._options.passes if found.devices else 0):
            if number:
                self._clock.wait(threading.Event(), self._options.interval)
            for device in found.devices:
                _read(device)
        backend.close()


def _read(device: Device) -> None:
    reads: tuple[Callable[[], object], ...] = (device.sample, device.processes, device.health)
    for read in reads:
        # An error is an answer, too: it is in the file.
        with contextlib.suppress(DeviceFault, BackendError, ReadingError):
            read()
