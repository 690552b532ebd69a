"""Ray Serve (facts: a real Ray 2.60): its dashboard, a proxy, and the metrics of the node.

The dashboard is only ever read: `DELETE /api/serve/applications/` shuts all of Serve down, and a PUT
deletes each application that it leaves out. Ray replaces replicas that die by itself, so one that is
being replaced counts as loading.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from prometheus_client.samples import Sample

from remediator import http
from remediator.clock import SystemClock
from remediator.config import Timing
from remediator.errors import ServiceError, ServiceRefused, ServiceTimeout
from remediator.services._calls import Deadline, api_key, check_address, count
from remediator.services._canaries import OneAtATime
from remediator.services._openai import Canary, ask, models_in, wait_until_served
from remediator.services._prometheus import read_samples, total, whole
from remediator.services._ray_deaths import WorkerDeaths, query
from remediator.services._ray_details import Application, Details, parse
from remediator.services.base import Capabilities, Capability, ServiceProbe

_APPLICATIONS = "/api/serve/applications/"
_RUNNING = "ray_serve_replica_processing_queries"
_WAITING = "ray_serve_deployment_queued_queries"
# Of vLLM in Ray. Serve's own counters move only when a request has ended.
_PROGRESS = (
    "ray_vllm_generation_tokens_total",
    "ray_vllm_prompt_tokens_total",
    "ray_vllm_iteration_tokens_total_count",
)
_NAMES = frozenset((_RUNNING, _WAITING, *_PROGRESS))
_NO_PROXY = Capability("no", "options.proxy_url is not set")
_NO_METRICS = Capability("no", "options.metrics_url is not set")
_CAPABILITIES = Capabilities(
    models=Capability("yes", "GET /v1/models at the proxy"),
    demand=Capability("yes", "requests at the replicas and in the queues, up to 10 s old"),
    progress=Capability("partly", "the counters of a vLLM engine in Ray; of another one, none"),
    load=Capability("partly", "waits until its replicas run and serve it; no other model"),
    free_memory=Capability("no", "its replicas keep their memory until they end"),
    drain=Capability("yes", "waits until no request runs; new ones still come in"),
    canary=Capability("yes", "one token, or one embedding, through the proxy"),
)


@dataclass(frozen=True)
class Options:
    """The endpoint of the service is the dashboard.

    `application` is the one that the service is; empty: all there are. `token_file` holds Ray's own
    token. `proxy_url` is where the application's OpenAI API is, with its route; `api_key_file` what
    that asks for. `metrics_url` is the node's page of metrics.
    """

    application: str = ""
    token_file: Path | None = None
    proxy_url: str = ""
    api_key_file: Path | None = None
    metrics_url: str = ""
    canary: Canary = "completion"


def create(endpoint: str, options: Options, timing: Timing) -> RayServe:
    """The driver of the Ray Serve whose dashboard is at `endpoint`.

    Raises:
        ConfigError: a file or an address cannot be used.
    """
    check_address(options.proxy_url, "proxy_url")
    check_address(options.metrics_url, "metrics_url")
    return RayServe(endpoint, timing.probe_timeout, options)


class RayServe:
    """`ServiceDriver` for one application, or all, of Ray Serve on one machine."""

    kind = "ray_serve"
    can_unload = False

    def __init__(self, endpoint: str, probe_timeout: float, options: Options) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._probe_timeout = probe_timeout
        self._options = options
        self._proxy = options.proxy_url.rstrip("/")
        self._token = api_key(options.token_file)
        self._api_key = api_key(options.api_key_file)
        self._canaries = OneAtATime()
        self._deaths = WorkerDeaths()

    @property
    def capabilities(self) -> Capabilities:
        """What it can, by which addresses it was told."""
        found = _CAPABILITIES
        if not self._proxy:
            waits = Capability(
                "no", "which models it serves is not known without options.proxy_url"
            )
            found = replace(found, models=_NO_PROXY, canary=_NO_PROXY, load=waits)
        if not self._options.metrics_url:
            found = replace(found, demand=_NO_METRICS, progress=_NO_METRICS, drain=_NO_METRICS)
        return found

    def probe(self) -> ServiceProbe:
        """The dashboard, then metrics, models and dead workers; one deadline for them all."""
        left = Deadline(self._probe_timeout)
        probe = self._asked(left)
        return replace(probe, deaths=self._deaths.found)

    def _asked(self, left: Deadline) -> ServiceProbe:
        try:
            details = self._details(left)
        except ServiceRefused as error:
            return self._without_dashboard(str(error), left)
        except ServiceTimeout as error:
            return ServiceProbe("silent", f"the dashboard: {error}")
        except ServiceError as error:
            return ServiceProbe("error", str(error))
        probe = self._judged(details, left)
        self._look_for_deaths(details, left)
        return probe

    def _judged(self, details: Details, left: Deadline) -> ServiceProbe:
        state, said = details.judged(self._options.application)
        probe = ServiceProbe(state, said, gpus_asked=details.gpus_asked())
        if state != "ready":
            return probe
        probe = self._with_metrics(probe, details.only(self._options.application), left)
        return self._with_models(probe, left) if self._proxy else probe

    def load(self, model: str, timeout: float) -> None:
        """Wait until Ray has its replicas up and they serve `model`."""
        if not self._proxy:
            raise ServiceError(f"whether it serves {model} is not known: set options.proxy_url")
        wait_until_served(self.probe, model, "Ray Serve", timeout)

    def unload(self, model: str, timeout: float) -> None:  # noqa: ARG002 - the contract
        """There is no such thing: a replica keeps its memory until it ends."""
        raise ServiceError(f"Ray Serve cannot unload {model}; only stopping it frees memory")

    def canary(self, model: str, timeout: float) -> float:
        """One token, or one embedding, through the proxy; never two canaries at once."""
        if not self._proxy:
            raise ServiceError("it cannot be asked: options.proxy_url is not set")
        clock = SystemClock()
        started = clock.monotonic()
        what = self._options.canary
        with self._canaries.wait(timeout) as left:
            ask(self._proxy, model, what, "such an application", timeout=left, key=self._api_key)
        return clock.monotonic() - started

    def _look_for_deaths(self, details: Details, left: Deadline) -> None:
        """Ask why replicas that are gone have ended; a Ray that does not say is asked again."""
        mine = details.only(self._options.application)
        for worker in self._deaths.saw(mine, SystemClock().monotonic()):
            try:
                answer = self._dashboard(query(worker), left)
                if answer.status == 200:
                    self._deaths.told(answer.json(), SystemClock().now())
            except ServiceTimeout:
                return
            except ServiceError:
                continue

    def _dashboard(self, path: str, left: Deadline) -> http.Answer:
        return http.call("GET", self._endpoint + path, timeout=left.seconds(), token=self._token)

    def _details(self, left: Deadline) -> Details:
        """All that Serve has.

        Raises:
            ServiceError: the dashboard refused, or is none.
        """
        answer = self._dashboard(_APPLICATIONS, left)
        if answer.status in (401, 403):
            hint = "it asks for Ray's token: name its file in options.token_file"
            if self._token is not None:
                hint = "the token in options.token_file is not this cluster's"
            raise ServiceError(f"the dashboard answered HTTP {answer.status}; {hint}")
        if answer.status == 503:
            raise ServiceError("Serve's controller does not answer the dashboard (HTTP 503)")
        if answer.status != 200:
            raise ServiceError(f"GET {_APPLICATIONS} answered HTTP {answer.status}")
        return parse(answer.json())

    def _without_dashboard(self, why: str, left: Deadline) -> ServiceProbe:
        """A dashboard can be down, or elsewhere, while Serve works."""
        if self._proxy:
            parts = urlsplit(self._proxy)
            health = f"{parts.scheme}://{parts.netloc}/-/healthz"
            try:
                if http.call("GET", health, timeout=left.seconds()).status == 200:
                    return ServiceProbe("error", f"its proxy works, but for the dashboard {why}")
            except ServiceError:
                pass
        return ServiceProbe("refused", f"for the dashboard {why}")

    def _with_models(self, probe: ServiceProbe, left: Deadline) -> ServiceProbe:
        try:
            answer = http.call(
                "GET", self._proxy + "/v1/models", timeout=left.seconds(), token=self._api_key
            )
            models = models_in(answer, "such an application", self._api_key)
        except ServiceTimeout as error:
            return replace(probe, state="silent", detail=f"GET /v1/models: {error}")
        except ServiceError as error:
            return replace(probe, state="error", detail=f"the proxy: {error}")
        return replace(probe, models=models)

    def _with_metrics(
        self, probe: ServiceProbe, applications: tuple[Application, ...], left: Deadline
    ) -> ServiceProbe:
        """With demand and progress of these applications, where the node's page has them."""
        if not self._options.metrics_url:
            return probe
        try:
            answer = http.call("GET", self._options.metrics_url, timeout=left.seconds())
            samples = read_samples(answer.body, _NAMES) if answer.status == 200 else ()
        except ServiceError as error:
            return replace(probe, detail=f"{probe.detail}, but gives no metrics: {error}")
        names = {one.name for one in applications}
        ours = [one for one in samples if one.labels.get("application") in names]
        running, waiting = whole(ours, _RUNNING), whole(ours, _WAITING)
        engines = _of_living(samples, applications)
        known = [value for name in _PROGRESS if (value := total(engines, name)) is not None]
        return replace(
            probe,
            detail=f"{probe.detail}; {count(running)} running, {count(waiting)} waiting",
            requests_running=running,
            requests_waiting=waiting,
            progress=sum(known) if known else None,
        )


def _of_living(
    samples: Collection[Sample], applications: Collection[Application]
) -> tuple[Sample, ...]:
    """The samples of replicas that run.

    The counters of a replica that has died stay on the page for ever.
    """
    living = [
        one
        for application in applications
        for deployment in application.deployments
        for one in deployment.replicas
        if one.state == "RUNNING"
    ]
    workers = {one.worker_id for one in living if one.worker_id}
    replicas = {one.replica_id for one in living}
    return tuple(
        sample
        for sample in samples
        if sample.labels.get("WorkerId") in workers or sample.labels.get("ReplicaId") in replicas
    )
