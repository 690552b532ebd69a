"""The `remediator_reconcile_*` families: what is known of the Alertmanagers' own view."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from remediator.counters import Counters
from remediator.reconcile import Reconciler


class ReconcileCollector(Collector):
    """Fresh families on every scrape; without a configured Alertmanager all stay as they began."""

    def __init__(self, reconciler: Reconciler, counters: Counters) -> None:
        self._reconciler = reconciler
        self._counters = counters

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not read anything."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every family."""
        outlook = self._reconciler.outlook
        last = GaugeMetricFamily(
            "remediator_reconcile_last_success_timestamp_seconds",
            "When an Alertmanager was last asked what fires, and all of it was taken in.",
        )
        if outlook.succeeded_at is not None:
            last.add_metric([], outlook.succeeded_at)
        yield last
        up = GaugeMetricFamily(
            "remediator_reconcile_alertmanager_up",
            "1 while this Alertmanager answers when it is asked what fires, else 0.",
            labels=["alertmanager"],
        )
        for name, reachable in outlook.reachable.items():
            up.add_metric([name], float(reachable))
        yield up
        unlisted = GaugeMetricFamily(
            "remediator_reconcile_unlisted_episodes",
            "Open episodes that no Alertmanager lists any more; absent unless all answered.",
        )
        if outlook.unlisted is not None:
            unlisted.add_metric([], outlook.unlisted)
        yield unlisted
        for name, text, source in (
            (
                "remediator_reconcile_alerts_taken",
                "Firing alerts that no delivery brought and Alertmanager listed.",
                "reconciled",
            ),
            (
                "remediator_reconcile_failures",
                "Rounds in which no Alertmanager answered, or what they said could not be kept.",
                "reconcile_failures",
            ),
        ):
            family = CounterMetricFamily(name, text)
            family.add_metric([], self._counters.get(source).get((), 0))
            yield family
