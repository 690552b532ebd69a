"""A GPU that nvidia-smi lists, until runs of its own have told what it is."""

from __future__ import annotations

from collections.abc import Callable

from exporter.backends import _smi_device
from exporter.backends._smi_cells import Cells
from exporter.backends._smi_command import SmiCommand
from exporter.backends._smi_device import SmiDevice
from exporter.backends._smi_query import Query
from exporter.backends.base import Opened
from exporter.environment import Environment
from exporter.errors import DeviceFault

Rows = dict[str, Cells | DeviceFault]


class Queries:
    """What is asked of a driver, once it was found out what it knows."""

    def __init__(self, environment: Environment) -> None:
        self._static = Query(_smi_device.STATIC, environment)
        self.sample = Query(_smi_device.SAMPLE, environment)
        self.health = Query(_smi_device.HEALTH, environment)

    def probe(self, command: SmiCommand, uuid: str = "") -> Rows:
        """Ask for everything once, of one GPU or of all; returns what does not change.

        Raises:
            DeviceFault: it does not answer, or fails because of a GPU.
            BackendError: no GPU can be read.
        """
        rows = self._static.probe(command, uuid)
        for query in (self.sample, self.health):
            query.probe(command, uuid)
        return rows


class SmiCard:
    """`Card` of the backend contract, asked by runs about itself alone: it holds up no other."""

    def __init__(
        self,
        index: int,
        uuid: str,
        command: SmiCommand,
        queries: Queries,
        make: Callable[[str, Cells, Queries], SmiDevice],
    ) -> None:
        """Prepare; `make` makes the device of what its row says, once it was asked."""
        self._index = index
        self._uuid = uuid
        self._command = command
        self._queries = queries
        self._make = make

    @property
    def index(self) -> int:
        """Its place in the list of nvidia-smi."""
        return self._index

    def open(self) -> Opened:
        """Ask what it is, and what can be asked of it.

        Raises:
            DeviceFault: it does not answer, or is down.
            BackendError: no GPU can be read.
        """
        rows = self._queries.probe(self._command, self._uuid)
        cells = _smi_device.row(rows, self._uuid)
        return Opened(self._make(self._uuid, cells, self._queries))
