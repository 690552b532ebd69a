"""What vLLM and SGLang tell alike on their pages of metrics: demand, progress, and first tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from prometheus_client.samples import Sample

from remediator import http
from remediator.errors import ServiceError
from remediator.services._calls import count
from remediator.services._canaries import OneAtATime
from remediator.services._prometheus import read_samples, summed, total, whole
from remediator.services.base import FirstTokens, OurRequests, ServiceProbe


@dataclass(frozen=True)
class EngineMetrics:
    """How a server calls them: two gauges, counters whose sum is its progress, and a histogram.

    `others` are read too.
    """

    running: str
    waiting: str
    progress: tuple[str, ...]
    first_tokens: str
    others: tuple[str, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """Of every sample that is wanted."""
        histogram = (f"{self.first_tokens}_count", f"{self.first_tokens}_sum")
        return frozenset((self.running, self.waiting, *self.progress, *histogram, *self.others))

    def ask(
        self, get: Callable[[], http.Answer], canaries: OneAtATime
    ) -> tuple[ServiceProbe, tuple[Sample, ...]]:
        """What the page says of a server that answers, and its samples; none where it has none."""
        before = canaries.so_far
        try:
            answer = get()
            samples = read_samples(answer.body, self.names) if answer.status == 200 else ()
        except ServiceError as error:
            return ServiceProbe("ready", f"it answers, but not with metrics: {error}"), ()
        if not samples:
            return ServiceProbe("ready", "it answers; it gives no metrics of its engine"), ()
        running, waiting = whole(samples, self.running), whole(samples, self.waiting)
        known = [value for name in self.progress if (value := total(samples, name)) is not None]
        probe = ServiceProbe(
            state="ready",
            detail=f"{count(running)} running, {count(waiting)} waiting",
            requests_running=running,
            requests_waiting=waiting,
            progress=sum(known) if known else None,
            first_tokens=FirstTokens(
                *summed(samples, self.first_tokens), _over(before, canaries.so_far)
            ),
        )
        return probe, samples


def with_ours(probe: ServiceProbe, canaries: OneAtATime) -> ServiceProbe:
    """Also where the server says nothing of first tokens now, how many canaries there were."""
    if probe.first_tokens is not None:
        return probe
    return replace(probe, first_tokens=FirstTokens(None, None, canaries.so_far))


def _over(before: OurRequests, after: OurRequests) -> OurRequests:
    """Of a reading that takes a while: one of ours that ran meanwhile may be in it or not."""
    quiet = before.quiet_seconds if before.begun == after.begun else 0.0
    return replace(after, quiet_seconds=min(quiet, after.quiet_seconds))
