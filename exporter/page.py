"""The metrics page: the snapshot that is there, as Prometheus reads it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from exporter import catalogue, exposition, own_process
from exporter.exposition import Family, Series
from exporter.gpu_rows import PARTS, Part, identity
from exporter.host import HostReading
from exporter.own_process import OwnProcess
from exporter.rows import Row, exporter_rows, host_rows
from exporter.snapshot import GpuView, Snapshot

_log = logging.getLogger(__name__)
_SERIES = {
    name: Series(metric) for name, metric in (catalogue.METRICS | own_process.METRICS).items()
}


class SnapshotSource(Protocol):
    """Where the page gets its picture: the store."""

    def snapshot(self) -> Snapshot:
        """Return the picture of this moment."""
        ...

    def count_error(self, collector: str, reason: str) -> None:
        """Count a failure."""
        ...


class Families:
    """Metric families of one rendering, put together from pieces."""

    def __init__(self) -> None:
        self._families: dict[str, Family] = {}

    def add(self, pieces: Iterable[tuple[str, bytes]] | None) -> None:
        """Add pieces, each with the name of its metric; None where they could not be rendered."""
        for name, piece in pieces or ():
            family = self._families.get(name)
            if family is None:
                family = self._families[name] = (_SERIES[name], [])
            family[1].append(piece)

    def __iter__(self) -> Iterator[Family]:
        """Yield the families that have a series."""
        return iter(self._families.values())


@dataclass(frozen=True, slots=True)
class _Kept:
    """A part of a GPU's series as it was rendered, and what it was made from."""

    seen: tuple[object, ...]
    pieces: list[tuple[str, bytes]]


class Page:
    """Renders the page and never raises.

    Of each GPU only the parts that changed are rendered; the bytes of the others are served again.
    With many processes, which change seldom, they are most of the page.
    """

    def __init__(
        self, source: SnapshotSource, read_host: Callable[[], HostReading] | None = None
    ) -> None:
        """Render from `source`; without `read_host` there are no `host_*` series."""
        self._source = source
        self._read_host = read_host
        self._process = OwnProcess()
        self._more: dict[str, Callable[[], Iterable[Row]]] = {}
        self._kept: dict[tuple[str, int], _Kept] = {}
        # A scrape every few seconds would say the same again and again.
        self._logged: set[tuple[str, str]] = set()

    def add(self, collector: str, read: Callable[[], Iterable[Row]]) -> None:
        """Render also what `read` yields at each rendering; none of it belongs to a GPU."""
        self._more[collector] = read

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return the page and its content type, as the Accept header wants it."""
        form = exposition.choose(accept)
        snapshot = self._source.snapshot()
        families = Families()
        self._add_gpus(families, snapshot)
        if self._read_host is not None:
            families.add(self._pieces("host", self._host(self._read_host)))
        for collector, read in self._more.items():
            families.add(self._pieces(collector, _read(read)))
        families.add(self._pieces("render", exporter_rows(snapshot)))
        families.add(self._pieces("process", _read(self._process.rows)))
        return form.write(families), form.content_type

    def _host(self, read_host: Callable[[], HostReading]) -> Iterator[Row]:
        # Called only where a failure of it costs nothing else.
        reading = read_host()
        for error in reading.errors:
            self._source.count_error("host", error)
        yield from host_rows(reading)

    def _add_gpus(self, families: Families, snapshot: Snapshot) -> None:
        before, kept = self._kept, {}
        for view in snapshot.gpus:
            for number, part in enumerate(PARTS):
                place = (view.info.uuid, number)
                known = self._part(part, view, snapshot, before.get(place))
                if known is not None:
                    kept[place] = known
                    families.add(known.pieces)
        # As a whole: another request may be rendering beside, from a snapshot of its own.
        self._kept = kept

    def _part(
        self, part: Part, view: GpuView, snapshot: Snapshot, known: _Kept | None
    ) -> _Kept | None:
        labels, made_from = identity(view.info), part.seen(view, snapshot)
        seen = (labels, *made_from)
        if known is not None and known.seen == seen:
            return known
        pieces = self._pieces("render", part.rows(*made_from), labels)
        return None if pieces is None else _Kept(seen, pieces)

    def _pieces(
        self, collector: str, rows: Iterable[Row], labels: tuple[str, ...] = ()
    ) -> list[tuple[str, bytes]] | None:
        """Render all rows or none: half of a GPU's series would be read as the whole."""
        lines: dict[str, list[str]] = {}
        try:
            for name, more, value in rows:
                series = _SERIES[name]
                values = (*labels, *more) if series.metric.per_gpu else more
                written = lines.get(name)
                if written is None:
                    written = lines[name] = []
                written.append(series.line(values, value))
        except Exception as error:  # noqa: BLE001  one bad GPU must not cost the whole page
            self._failed(collector, labels[-1] if labels else collector, error)
            return None
        return [(name, exposition.block(found)) for name, found in lines.items()]

    def _failed(self, collector: str, what: str, error: Exception) -> None:
        self._source.count_error(collector, type(error).__name__)
        if (what, type(error).__name__) not in self._logged:
            self._logged.add((what, type(error).__name__))
            _log.error("cannot render %s", what, exc_info=error)


def _read(read: Callable[[], Iterable[Row]]) -> Iterator[Row]:
    # Called only where a failure of it costs nothing else.
    yield from read()
