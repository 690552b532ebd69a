"""The metrics page: the snapshot that is there, as Prometheus reads it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from exporter import catalogue, exposition, own_process
from exporter.exposition import Family, Format
from exporter.host import HostReading
from exporter.own_process import OwnProcess
from exporter.rows import (
    Row,
    exporter_rows,
    gpu_rows,
    host_rows,
    identity,
    steady_key,
    steady_rows,
)
from exporter.snapshot import Snapshot

_log = logging.getLogger(__name__)
_METRICS = {**catalogue.METRICS, **own_process.METRICS}


class SnapshotSource(Protocol):
    """Where the page gets its picture: the store."""

    def snapshot(self) -> Snapshot:
        """Return the picture of this moment."""
        ...

    def count_error(self, collector: str, reason: str) -> None:
        """Count a failure."""
        ...


class Families:
    """Metric families of one rendering, made anew each time; nothing is kept between two."""

    def __init__(self, on_error: Callable[[str, str, Exception], None]) -> None:
        """Report what cannot be rendered to `on_error(collector, what, error)`."""
        self.failed = False
        self._on_error = on_error
        self._families: dict[str, Family] = {}

    def add(self, collector: str, rows: Iterable[Row], labels: tuple[str, ...] = ()) -> None:
        """Add all rows or none: half of a GPU's series would be read as the whole."""
        try:
            prepared = [(_METRICS[row[0]], _line(row, labels)) for row in rows]
        except Exception as error:  # noqa: BLE001  one bad GPU must not cost the whole page
            self.failed = True
            self._on_error(collector, labels[-1] if labels else collector, error)
            return
        for metric, line in prepared:
            family = self._families.get(metric.name)
            if family is None:
                family = self._families[metric.name] = (metric, [])
            family[1].append(line)

    def __iter__(self) -> Iterator[Family]:
        """Yield the families that have a series."""
        return iter(self._families.values())


@dataclass(frozen=True, slots=True)
class _Rendered:
    """The steady part of a page, and what it was made from."""

    key: object
    body: bytes


class Page:
    """Renders the page and never raises.

    What changes seldom is more than half of a page with many processes; it is rendered once and
    its bytes are served until it changes.
    """

    def __init__(
        self, source: SnapshotSource, read_host: Callable[[], HostReading] | None = None
    ) -> None:
        """Render from `source`; without `read_host` there are no `host_*` series."""
        self._source = source
        self._read_host = read_host
        self._process = OwnProcess()
        self._more: dict[str, Callable[[], Iterable[Row]]] = {}
        self._steady: dict[str, _Rendered] = {}
        # A scrape every few seconds would say the same again and again.
        self._logged: set[tuple[str, str]] = set()

    def add(self, collector: str, read: Callable[[], Iterable[Row]]) -> None:
        """Render also what `read` yields at each rendering; none of it belongs to a GPU."""
        self._more[collector] = read

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return the page and its content type, as the Accept header wants it."""
        form = exposition.choose(accept)
        snapshot = self._source.snapshot()
        steady = self._steady_part(snapshot, form)
        now = Families(self._failed)
        for view in snapshot.gpus:
            now.add("render", gpu_rows(view), identity(view.info))
        if self._read_host is not None:
            read_host = self._read_host
            now.add("host", _read(lambda: host_rows(read_host())))
        for collector, read in self._more.items():
            now.add(collector, _read(read))
        now.add("render", exporter_rows(snapshot))
        now.add("process", _read(self._process.rows))
        return steady + form.write(now), form.content_type

    def _steady_part(self, snapshot: Snapshot, form: Format) -> bytes:
        key = steady_key(snapshot)
        known = self._steady.get(form.content_type)
        if known is not None and known.key == key:
            return known.body
        collector = Families(self._failed)
        for view in snapshot.gpus:
            collector.add("render", steady_rows(view, snapshot), identity(view.info))
        body = form.write(collector, last=False)
        if not collector.failed:
            self._steady[form.content_type] = _Rendered(key, body)
        return body

    def _failed(self, collector: str, what: str, error: Exception) -> None:
        self._source.count_error(collector, type(error).__name__)
        if (what, type(error).__name__) not in self._logged:
            self._logged.add((what, type(error).__name__))
            _log.error("cannot render %s", what, exc_info=error)


def _read(read: Callable[[], Iterable[Row]]) -> Iterator[Row]:
    # Called only where a failure of it costs nothing else.
    yield from read()


def _line(row: Row, labels: tuple[str, ...]) -> str:
    name, more, value = row
    if not math.isfinite(value):
        raise ValueError(f"{name}: {value} is not a reading")
    metric = _METRICS[name]
    return exposition.line(metric, (*labels, *more) if metric.per_gpu else more, value)
