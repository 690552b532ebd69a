"""The `remediator_web_*` families: what is known of the web configuration file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from serving.live import LiveConfig


class WebConfigCollector(Collector):
    """Looks at the files on every scrape; without a file all families are empty."""

    def __init__(self, live: LiveConfig | None) -> None:
        self._live = live

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not read anything."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every family."""
        state = None if self._live is None else self._live.state()
        for name, text, value in (
            (
                "remediator_web_config_last_reload_successful",
                "1 while what web.config_file says is in force, 0 while something older is.",
                None if state is None else float(state.is_current),
            ),
            (
                "remediator_web_config_last_reload_success_timestamp_seconds",
                "When what is in force of web.config_file was read.",
                None if state is None else state.since,
            ),
            (
                "remediator_web_certificate_expiry_timestamp_seconds",
                "When the first of the server's certificates ceases to be good.",
                None if state is None else state.certificate_expires,
            ),
        ):
            family = GaugeMetricFamily(name, text)
            if value is not None:
                family.add_metric([], value)
            yield family
