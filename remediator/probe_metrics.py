"""What is known of services from their configuration and their probes, as families of metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from remediator.engine.watchers import ServiceView
from remediator.gpu_shares import overcommitted
from remediator.world import Service


def gauge(
    name: str, text: str, labels: list[str], samples: Iterable[tuple[list[str], float]]
) -> GaugeMetricFamily:
    """A family with its samples: the values of its labels, and its own."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def configured(services: Mapping[str, Service]) -> Iterator[Metric]:
    """What each service is."""
    yield gauge(
        "llm_service_info",
        "Configured LLM services.",
        ["llm_service", "driver"],
        [([name, s.config.driver], 1) for name, s in services.items()],
    )
    yield gauge(
        "llm_service_gpu_info",
        "Which GPU a service is configured to use.",
        ["llm_service", "uuid"],
        [
            ([name, uuid], 1)
            for name, s in services.items()
            if s.config.gpus != "all"
            for uuid in s.config.gpus
        ],
    )
    yield gauge(
        "llm_service_loading_limit_seconds",
        "For how long a service may come up before a person is told.",
        ["llm_service"],
        [([name], s.config.loading_limit) for name, s in services.items()],
    )


def probed(views: Mapping[str, ServiceView]) -> Iterator[Metric]:
    """What each was seen to be."""
    yield gauge(
        "llm_service_up",
        "1 when the service runs, 0 when it refuses connections or has exited.",
        ["llm_service"],
        [([name], float(view.up)) for name, view in views.items() if view.up is not None],
    )
    running = GaugeMetricFamily(
        "llm_service_requests_running", "Requests in work.", labels=["llm_service"]
    )
    waiting = GaugeMetricFamily(
        "llm_service_requests_waiting", "Requests that wait.", labels=["llm_service"]
    )
    progress = CounterMetricFamily(
        "llm_service_progress", "Tokens or engine steps.", labels=["llm_service"]
    )
    memory = GaugeMetricFamily(
        "llm_service_model_memory_bytes",
        "GPU memory of a loaded model, as the server says.",
        labels=["llm_service", "model"],
    )
    loading = GaugeMetricFamily(
        "llm_service_loading_seconds",
        "For how long the server has said that it comes up; 0 while it says anything else.",
        labels=["llm_service"],
    )
    for name, view in views.items():
        if view.loading_seconds is not None:
            loading.add_metric([name], view.loading_seconds)
        if view.probe.requests_running is not None:
            running.add_metric([name], view.probe.requests_running)
        if view.probe.requests_waiting is not None:
            waiting.add_metric([name], view.probe.requests_waiting)
        if view.probe.progress is not None:
            progress.add_metric([name], view.probe.progress)
        for model in view.probe.models:
            if model.memory_bytes is not None:
                memory.add_metric([name, model.name], model.memory_bytes)
    yield from (loading, running, waiting, progress, memory)


def shares(
    services: Mapping[str, Service],
    views: Mapping[str, ServiceView],
    cards: Mapping[str, int | None],
) -> Iterator[Metric]:
    """The shares of a GPU that servers deal out, and whether there is as much in their `cards`."""
    asked = GaugeMetricFamily(
        "llm_service_gpus_asked",
        "Sum of the shares of a GPU that its replicas are to have.",
        labels=["llm_service"],
    )
    too_much = GaugeMetricFamily(
        "llm_service_gpus_overcommitted",
        "1 where that is more than the cards of the service.",
        labels=["llm_service"],
    )
    for name, service in services.items():
        probe = views[name].probe if name in views else None
        if probe is None or probe.gpus_asked is None:
            continue
        asked.add_metric([name], probe.gpus_asked)
        if (there := cards.get(name)) is not None:
            over = overcommitted(service, probe, there)
            too_much.add_metric([name], float(over is not None))
    yield from (asked, too_much)
