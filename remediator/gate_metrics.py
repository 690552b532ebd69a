"""What keeps actions back, and how the last reload of the configuration went, as metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from remediator.engine.gathering import killed
from remediator.policy.windows import open_now
from remediator.reload import ReloadState
from remediator.world import World


class GateCollector(Collector):
    """Fresh families on every scrape; they need no store."""

    def __init__(self, world: World, reloads: ReloadState) -> None:
        self._world = world
        self._reloads = reloads

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not read anything."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every family."""
        config = self._world.config
        open_names = {one.name for one in open_now(config.windows, self._world.clock.now())}
        yield _gauge(
            "remediator_kill_switch",
            "1 while the kill switch file stops every new action.",
            float(killed(config) is not None),
        )
        window = GaugeMetricFamily(
            "remediator_maintenance_window_open",
            "1 while the maintenance window is open, else 0.",
            labels=["window"],
        )
        for one in config.windows:
            window.add_metric([one.name], float(one.name in open_names))
        yield window
        yield _gauge(
            "remediator_config_last_reload_successful",
            "1 while the configuration in force is the one that was last read, else 0.",
            float(self._reloads.successful),
        )
        yield _gauge(
            "remediator_config_last_reload_success_timestamp_seconds",
            "When the configuration was last read and taken in.",
            self._reloads.succeeded_at,
        )


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)
