"""The contract of a GPU backend.

A backend is one module in this package with a function `create(options) -> Backend`. It runs in
the worker process. A call may block for as long as the driver pleases: that is the parent's
business, not the backend's. It reads; it never writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from exporter.frames import FailedDevice
from exporter.readings import DeviceHealth, DeviceInfo, ProcessUse, Sample, Spans


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """What a backend may be told.

    Attributes:
        simulator_url: base URL, for the simulated backend.
        replay_file: absolute path of a capture, for the replay backend.
        pcie_throughput: read it, which takes a driver 40 ms each time.
        timeout_seconds: for calls that can be bounded (HTTP); a driver call cannot.
    """

    simulator_url: str = ""
    replay_file: str = ""
    timeout_seconds: float = 5.0
    pcie_throughput: bool = False


@dataclass(frozen=True, slots=True)
class SampleResult:
    """A sample, and one word for each reading that failed (not for those not supported).

    Attributes:
        xids: Xid errors since the last sample, where a backend learns of them with its samples.
        utilization: how utilisation went since the last sample, by the driver's own samples; None
            where it has none.
    """

    sample: Sample
    errors: tuple[str, ...] = ()
    xids: tuple[int, ...] = ()
    utilization: Spans | None = None


@dataclass(frozen=True, slots=True)
class HealthResult:
    """A look at the health, and one word for each reading that failed."""

    health: DeviceHealth
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProcessesResult:
    """Who uses a GPU, and one word for each reading of them that failed.

    Attributes:
        processes: pid, memory and utilisation of each; None where the GPU cannot tell.
    """

    processes: tuple[ProcessUse, ...] | None
    errors: tuple[str, ...] = ()


class Device(Protocol):
    """One GPU that was opened. Each of its methods is called by one thread at a time.

    Each may raise `DeviceFault` (this GPU is down), `BackendError` (all are, open again) or
    `ReadingError` (only this collection failed).
    """

    @property
    def info(self) -> DeviceInfo:
        """What was read when it was opened."""
        ...

    def sample(self) -> SampleResult:
        """Read what changes all the time; what is not supported stays None."""
        ...

    def processes(self) -> ProcessesResult:
        """Read who uses it; what cannot be told of a process stays None."""
        ...

    def health(self) -> HealthResult:
        """Read what changes seldom; what is not supported stays None."""
        ...


@dataclass(frozen=True, slots=True)
class XidEvent:
    """One Xid error of one GPU."""

    uuid: str
    xid: int


class EventSource(Protocol):
    """What a driver tells by itself. One thread opens it and waits for it, beside those that read."""

    def open(self) -> bool:
        """Begin to listen; false when the driver tells nothing. Called again, it begins anew.

        May raise `BackendError` (open again) or `ReadingError` (try again later).
        """
        ...

    def wait(self, seconds: float) -> Sequence[XidEvent]:
        """Wait at most so long; empty when nothing happened.

        May raise `BackendError` (open again) or `ReadingError` (only this wait failed).
        """
        ...

    def close(self) -> None:
        """Let go of it; never raises."""
        ...


@dataclass(frozen=True, slots=True)
class Opened:
    """A card that was opened.

    Attributes:
        watched: its Xid errors are told of by events.
        errors: one word for each reading that failed this time.
        complete: false while something that failed is worth another try.
    """

    device: Device
    watched: bool = False
    errors: tuple[str, ...] = ()
    complete: bool = True


class Card(Protocol):
    """A GPU that is counted, and not opened yet. One thread of its own calls it."""

    @property
    def index(self) -> int:
        """Its place among those that the driver counts."""
        ...

    def open(self) -> Opened:
        """Open it; called again, read what failed before, and leave the rest alone.

        Raises:
            DeviceFault: this GPU is down.
            BackendError: all are; open the backend again.
        """
        ...


@dataclass(frozen=True, slots=True)
class Versions:
    """What a driver calls itself, and one word for each of these that failed."""

    driver: str = ""
    cuda: str = ""
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Enumeration:
    """What a backend found when it opened.

    Attributes:
        events: None where the driver tells nothing by itself.
        watched: uuids of the GPUs whose Xid errors are told of, by events or with samples.
        cards: those that are still to be opened, each by a thread of its own.
        versions: asks for the versions where they are not told here; it may block.
    """

    devices: tuple[Device, ...]
    failed: tuple[FailedDevice, ...] = ()
    driver_version: str = ""
    cuda_version: str = ""
    events: EventSource | None = None
    watched: tuple[str, ...] = ()
    cards: tuple[Card, ...] = ()
    versions: Callable[[], Versions] | None = None


class Backend(Protocol):
    """One way to the GPUs of this machine."""

    @property
    def name(self) -> str:
        """As in `--backend`."""
        ...

    def open(self) -> Enumeration:
        """Open the driver and every GPU in it.

        Raises:
            BackendError: there is no way to any GPU; calling again later is fine.
        """
        ...

    def fingerprint(self) -> object:
        """Return a cheap value that changes when GPUs come or go, without opening anything."""
        ...

    def close(self) -> None:
        """Let go of the driver; never raises."""
        ...


@runtime_checkable
class OpensApart(Protocol):
    """A backend whose cards can be opened apart: one that hangs holds up no other."""

    def begin(self) -> Enumeration:
        """Open the driver and count its GPUs.

        Raises:
            BackendError: as `Backend.open`.
        """
        ...

    def has_stuck(self) -> bool:
        """Tell whether a process that it started is stuck in the driver, where one more would be, too."""
        ...
