"""What is known of services beyond their probes: their logs, first requests, and lowered load."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from remediator.counters import Counters
from remediator.degraded import degraded_since
from remediator.engine.log_watch import LogWatch
from remediator.errors import StorageError
from remediator.first_requests import answer_seconds, read_first_requests, warm_up_seconds
from remediator.world import World


class ServiceCollector(Collector):
    """Fresh families on every scrape; a store that cannot be read leaves out what it holds."""

    def __init__(self, world: World, counters: Counters, logs: LogWatch) -> None:
        self._world = world
        self._counters = counters
        self._logs = logs

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not read anything."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every family."""
        errors = CounterMetricFamily(
            "llm_service_log_errors",
            "Failures that the server's own log tells of, by class.",
            labels=["llm_service", "kind"],
        )
        for labels, count in sorted(self._counters.get("log_errors").items()):
            errors.add_metric(list(labels), count)
        readable = GaugeMetricFamily(
            "llm_service_log_readable",
            "1 while the server's log can be read, 0 while it cannot; absent where there is none.",
            labels=["llm_service"],
        )
        for name, value in sorted(self._logs.readable.items()):
            readable.add_metric([name], float(value))
        yield from (errors, readable)
        yield from self._stored()

    def _stored(self) -> Iterator[Metric]:
        warm_up = GaugeMetricFamily(
            "llm_service_warmup_seconds",
            "How long the first request took after the newest load by us: a user is spared it.",
            labels=["llm_service"],
        )
        answer = GaugeMetricFamily(
            "llm_service_first_answer_seconds",
            "How long the first request after that took, which has to succeed.",
            labels=["llm_service"],
        )
        users = GaugeMetricFamily(
            "llm_service_first_request_seconds",
            "How long the first requests of users after a start waited for a token, on average.",
            labels=["llm_service"],
        )
        degraded = GaugeMetricFamily(
            "llm_service_degraded",
            "1 while it is to run with less load; absent where no such manager is configured.",
            labels=["llm_service"],
        )
        try:
            with self._world.store.reading() as tx:
                for name, service in self._world.services.items():
                    first = read_first_requests(tx, name)
                    for family, value in (
                        (warm_up, warm_up_seconds(tx, name)),
                        (answer, answer_seconds(tx, name)),
                        (users, None if first is None else first.seconds),
                    ):
                        if value is not None:
                            family.add_metric([name], value)
                    if service.config.degraded:
                        degraded.add_metric([name], float(degraded_since(tx, name) is not None))
        except StorageError:
            return
        yield from (warm_up, answer, users, degraded)
