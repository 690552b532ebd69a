"""NVIDIA GPUs through the program nvidia-smi, for where its library cannot be loaded."""

from __future__ import annotations

import re
import shutil
import threading

from exporter.backends import _smi_device
from exporter.backends._in_turn import open_in_turn
from exporter.backends._smi_card import Queries, Rows, SmiCard
from exporter.backends._smi_cells import Cells
from exporter.backends._smi_command import SmiCommand
from exporter.backends._smi_device import SmiDevice
from exporter.backends._smi_query import Query, ask, check
from exporter.backends.base import BackendOptions, Enumeration
from exporter.clock import Clock, SystemClock
from exporter.environment import Environment
from exporter.errors import BackendError, DeviceFault
from exporter.frames import FailedDevice
from exporter.readings import BackendReason, FaultReason

# Without persistence mode it initialises every card anew each time.
_TIMEOUT_SECONDS = 20.0
# Sooner than the GPUs of a box count as silent because one of them holds up all.
_TOGETHER_SECONDS = 4.0
_FRESH_SECONDS = 0.5
_VERSION = re.compile(r"\d+\.\d+(?:\.\d+)?")
_LISTED = re.compile(r"^GPU (\d+): (.*) \(UUID: (\S+)\)$", re.MULTILINE)


def create(options: BackendOptions) -> NvidiaSmiBackend:  # noqa: ARG001  the contract's signature
    """Make the backend; nvidia-smi is looked for when it is opened."""
    return NvidiaSmiBackend(Environment(), SystemClock())


class NvidiaSmiBackend:
    """All GPUs that nvidia-smi lists.

    One run reads them all, until one of them makes such a run fail or hang: from then on each is
    read, and opened, by runs of its own in a thread of its own, so that it holds up itself only.
    """

    name = "nvidia-smi"

    def __init__(
        self,
        environment: Environment,
        clock: Clock,
        timeout: float = _TIMEOUT_SECONDS,
        together: float = _TOGETHER_SECONDS,
    ) -> None:
        """Prepare; `timeout` is for a run about one GPU, `together` for one about all (seconds)."""
        self._environment = environment
        self._clock = clock
        self._timeout = timeout
        self._together = together
        self._lock = threading.Lock()
        self._apart = False
        # Those that have to be read apart until they open, and how they are listed.
        self._ailing: set[str] = set()
        self._listed: tuple[tuple[int, str], ...] = ()
        self._all: SmiCommand | None = None
        # A GPU keeps its command when the backend is opened again, and with it a stuck process.
        self._commands: dict[str, SmiCommand] = {}
        self._sample_query = Query(_smi_device.SAMPLE, environment)
        self._rows: Rows = {}
        self._read_at = float("-inf")

    def open(self) -> Enumeration:
        """List the GPUs and open them, one after the other.

        Raises:
            BackendError: there is no nvidia-smi, or no GPU can be read.
        """
        return open_in_turn(self.begin())

    def begin(self) -> Enumeration:
        """List the GPUs and find out which fields this driver knows, by one run if that goes.

        Raises:
            BackendError: there is no nvidia-smi, or no GPU can be read.
        """
        program = shutil.which("nvidia-smi")
        if program is None:
            raise BackendError(
                BackendReason.LIBRARY_MISSING,
                "no nvidia-smi on PATH: install the NVIDIA driver and its tools",
            )
        if self._all is None:
            self._all = SmiCommand(program, self._together)
        if not self._apart:
            queries = Queries(self._environment)
            try:
                return self._opened(program, queries.probe(self._all), queries)
            except DeviceFault:
                self._apart = True
        return self._to_be_opened(program)

    def has_stuck(self) -> bool:
        """Tell whether an nvidia-smi did not end when it was asked to."""
        commands = filter(None, (self._all, *list(self._commands.values())))
        return any(command.is_stuck for command in commands)

    def fingerprint(self) -> object:
        """Return what the kernel lists."""
        return (self._environment.kernel_driver(), self._environment.driver_gpus())

    def close(self) -> None:
        """Nothing is held between two runs."""

    def _opened(self, program: str, static: Rows, queries: Queries) -> Enumeration:
        """Return what one run about all has told."""
        devices: list[SmiDevice] = []
        failed: list[FailedDevice] = []
        driver = ""
        self._sample_query = queries.sample
        for position, (uuid, cells) in enumerate(static.items()):
            if isinstance(cells, DeviceFault):
                failed.append(FailedDevice(position, cells.reason, str(cells)))
            else:
                devices.append(self._device(program, uuid, cells, queries))
                driver = driver or cells.text("driver_version") or ""
        self._listed = tuple(enumerate(static))
        return Enumeration(tuple(devices), tuple(failed), driver_version=driver)

    def _to_be_opened(self, program: str) -> Enumeration:
        """Return the cards, of which one may hang: each is to be opened by a thread of its own."""

        def make(uuid: str, cells: Cells, queries: Queries) -> SmiDevice:
            device = self._device(program, uuid, cells, queries)
            with self._lock:
                self._ailing.discard(uuid)
                if not self._ailing:
                    # All are well again: the next fault will show.
                    self._apart, self._sample_query = False, queries.sample
            return device

        listed = self._list(program)
        self._ailing = {uuid for _, uuid in listed}
        self._apart = bool(listed)
        cards = tuple(
            SmiCard(index, uuid, self._command(program, uuid), Queries(self._environment), make)
            for index, uuid in listed
        )
        found = _VERSION.search(self._environment.kernel_driver() or "")
        return Enumeration((), cards=cards, driver_version=found[0] if found else "")

    def _device(self, program: str, uuid: str, cells: Cells, queries: Queries) -> SmiDevice:
        def sample(own: SmiCommand) -> Cells:
            return self._cells(uuid, own, queries.sample)

        return SmiDevice(
            _smi_device.info_of(uuid, cells),
            self._command(program, uuid),
            sample,
            queries.health,
            self._environment,
        )

    def _command(self, program: str, uuid: str) -> SmiCommand:
        return self._commands.setdefault(uuid, SmiCommand(program, self._timeout))

    def _list(self, program: str) -> tuple[tuple[int, str], ...]:
        """List even the GPUs that cannot be read: index and uuid of each.

        Raises:
            BackendError: not even that goes, and it never did.
        """
        lister = self._command(program, "")
        try:
            answer = ask(lister, "--list-gpus")
            listed = tuple((int(one[1]), one[3]) for one in _LISTED.finditer(answer.output))
            if not listed:
                check(answer, self._environment)
            self._listed = listed
        except DeviceFault as fault:
            if fault.reason is FaultReason.LOST:
                return ()
            if not self._listed:
                raise BackendError(
                    BackendReason.UNKNOWN, f"nvidia-smi lists nothing: {fault}"
                ) from fault
        return self._listed

    def _cells(self, uuid: str, own: SmiCommand, query: Query) -> Cells:
        if not self._apart:
            with self._lock:
                if not self._apart:
                    self._read_all()
                rows = self._rows
            if uuid in rows:
                return _smi_device.row(rows, uuid)
        return _smi_device.row(query.read(own, uuid), uuid)

    def _read_all(self) -> None:
        now = self._clock.monotonic()
        if now - self._read_at < _FRESH_SECONDS or self._all is None:
            return
        try:
            self._rows = self._sample_query.read(self._all)
            self._read_at = self._clock.monotonic()
        except DeviceFault:
            self._apart = True
            self._rows = {}
