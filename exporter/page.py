"""The metrics page: the snapshot that is there, rendered by prometheus-client."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from exporter.catalogue import METRICS, Kind, Metric
from exporter.host import HostReading
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
_END_OF_OPENMETRICS = b"# EOF\n"
# A client names the version that it wants: what is kept must not grow with what it invents.
_FORMATS_LIMIT = 4


class SnapshotSource(Protocol):
    """Where the page gets its picture: the store."""

    def snapshot(self) -> Snapshot:
        """Return the picture of this moment."""
        ...

    def count_error(self, collector: str, reason: str) -> None:
        """Count a failure."""
        ...


class SnapshotCollector(Collector):
    """Metric families of one rendering, made anew each time; nothing is kept between two."""

    def __init__(self, on_error: Callable[[str, str, Exception], None]) -> None:
        """Report what cannot be rendered to `on_error(collector, what, error)`."""
        self.failed = False
        self._on_error = on_error
        self._families: dict[str, Family] = {}

    def add(self, collector: str, rows: Iterable[Row], labels: tuple[str, ...] = ()) -> None:
        """Add all rows or none: half of a GPU's series would be read as the whole."""
        try:
            prepared = [_sample(row, labels) for row in rows]
        except Exception as error:  # noqa: BLE001  one bad GPU must not cost the whole page
            self.failed = True
            self._on_error(collector, labels[-1] if labels else collector, error)
            return
        for metric, named, value in prepared:
            family = self._families.get(metric.name)
            if family is None:
                family = self._families[metric.name] = _family(metric)
            family.add_sample(metric.name, named, value)

    def collect(self) -> Iterator[Family]:
        """Yield the families that have a series."""
        yield from self._families.values()


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
        self._process = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._process)
        PlatformCollector(registry=self._process)
        GCCollector(registry=self._process)
        self._more: dict[str, Callable[[], Iterable[Row]]] = {}
        self._steady: dict[str, _Rendered] = {}
        # A scrape every few seconds would say the same again and again.
        self._logged: set[tuple[str, str]] = set()

    def add(self, collector: str, read: Callable[[], Iterable[Row]]) -> None:
        """Render also what `read` yields at each rendering; none of it belongs to a GPU."""
        self._more[collector] = read

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return the page and its content type, as the Accept header wants it."""
        encode, content_type = _encoder(accept)
        snapshot = self._source.snapshot()
        steady = self._steady_part(snapshot, encode, content_type)
        now = SnapshotCollector(self._failed)
        for view in snapshot.gpus:
            now.add("render", gpu_rows(view), identity(view.info))
        if self._read_host is not None:
            read_host = self._read_host
            now.add("host", _read(lambda: host_rows(read_host())))
        for collector, read in self._more.items():
            now.add(collector, _read(read))
        now.add("render", exporter_rows(snapshot))
        return steady + encode(_Both(now, self._process)), content_type

    def _steady_part(
        self, snapshot: Snapshot, encode: Callable[[Collector], bytes], content_type: str
    ) -> bytes:
        key = steady_key(snapshot)
        known = self._steady.get(content_type)
        if known is not None and known.key == key:
            return known.body
        collector = SnapshotCollector(self._failed)
        for view in snapshot.gpus:
            collector.add("render", steady_rows(view, snapshot), identity(view.info))
        body = encode(collector).removesuffix(_END_OF_OPENMETRICS)
        if not collector.failed:
            if len(self._steady) >= _FORMATS_LIMIT:
                self._steady.clear()
            self._steady[content_type] = _Rendered(key, body)
        return body

    def _failed(self, collector: str, what: str, error: Exception) -> None:
        self._source.count_error(collector, type(error).__name__)
        if (what, type(error).__name__) not in self._logged:
            self._logged.add((what, type(error).__name__))
            _log.error("cannot render %s", what, exc_info=error)


class _Both(Collector):
    """Two collectors as one, without the lock and the checks of a registry."""

    def __init__(self, *collectors: Collector | CollectorRegistry) -> None:
        self._collectors = collectors

    def collect(self) -> Iterator[Family]:
        return chain.from_iterable(collector.collect() for collector in self._collectors)


def _encoder(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    try:
        return choose_encoder(accept)
    except (ValueError, TypeError):
        # A version that is no number: whoever sends that gets the format that all understand.
        return choose_encoder("")


def _read(read: Callable[[], Iterable[Row]]) -> Iterator[Row]:
    # Called only where a failure of it costs nothing else.
    yield from read()


def _family(metric: Metric) -> Family:
    suffix = {Kind.COUNTER: "_total", Kind.INFO: "_info", Kind.GAUGE: ""}[metric.kind]
    name = metric.name.removesuffix(suffix)
    return Family(name, metric.help, metric.kind.value, metric.unit)


def _sample(row: Row, labels: tuple[str, ...]) -> tuple[Metric, dict[str, str], float]:
    name, more, value = row
    if not math.isfinite(value):
        raise ValueError(f"{name}: {value} is not a reading")
    metric = METRICS[name]
    values = (*labels, *more) if metric.per_gpu else more
    return metric, dict(zip(metric.label_names, values, strict=True)), value
