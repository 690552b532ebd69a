"""What Ray's dashboard says of Serve (`GET /api/serve/applications/`, Ray 2.60), and what it means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from remediator.errors import ServiceError

State = Literal["ready", "loading", "sleeping", "dead", "error"]

_COMING = frozenset(("STARTING", "UPDATING", "RECOVERING", "PENDING_MIGRATION"))
_MAX_MESSAGE = 300


@dataclass(frozen=True)
class Replica:
    """One process of a deployment; Ray's own ids of it."""

    state: str
    replica_id: str
    worker_id: str
    node_id: str


@dataclass(frozen=True)
class Deployment:
    """`wanted` replicas, each with a share of `gpus` (1.0 is a whole one).

    `ended` are some that are gone, the newest of them; Ray before 2.60 does not list them.
    """

    name: str
    wanted: int
    gpus: float
    replicas: tuple[Replica, ...]
    ended: tuple[Replica, ...] = ()

    @property
    def runs(self) -> bool:
        """Whether it has what it is to have of replicas: one that runs, or none where none is wanted."""
        return self.wanted == 0 or any(one.state == "RUNNING" for one in self.replicas)

    @property
    def is_coming(self) -> bool:
        """Whether Ray is bringing a replica up."""
        return any(one.state in _COMING for one in self.replicas)


@dataclass(frozen=True)
class Application:
    """One application, in Ray's words."""

    name: str
    status: str
    message: str
    deployments: tuple[Deployment, ...]

    def judged(self) -> tuple[State, str]:
        """How it is, and why."""
        said = f"{self.name} is {self.status}" + (f": {self.message}" if self.message else "")
        if self.status == "RUNNING":
            # A deployment without a share of a GPU, like a router, does not sleep with the others.
            working = [one for one in self.deployments if one.gpus > 0] or list(self.deployments)
            if working and all(one.wanted == 0 for one in working):
                return "sleeping", f"{self.name} is scaled to zero; a request would start it"
            return "ready", said
        if self.status in ("NOT_STARTED", "DEPLOYING"):
            return "loading", said
        if self.status not in ("UNHEALTHY", "DEPLOY_FAILED"):
            return "error", said
        missing = [one for one in self.deployments if not one.runs]
        if self.deployments and not missing:
            return "error", said
        # Ray itself replaces a replica that has died.
        if missing and all(one.is_coming for one in missing):
            return "loading", said
        return "dead", said


@dataclass(frozen=True)
class Details:
    """All of Serve; `proxies` are the statuses of its HTTP proxies."""

    applications: tuple[Application, ...]
    proxies: tuple[str, ...]

    def only(self, name: str) -> tuple[Application, ...]:
        """The application of this name, or all of them where it is empty."""
        return tuple(one for one in self.applications if name in ("", one.name))

    def judged(self, name: str) -> tuple[State, str]:
        """How the application of this name is, or all of them together where it is empty."""
        found = [one.judged() for one in self.only(name)]
        if not found:
            what = f"has no application {name}" if name else "has no application"
            return "dead", f"Ray runs, but Serve {what}"
        states = {state for state, _ in found}
        for state in ("dead", "error", "loading"):
            said = "; ".join(why for one, why in found if one == state)
            if said:
                whole = state if state != "dead" or states == {"dead"} else "error"
                return whole, said  # type: ignore[return-value]
        if self.proxies and "HEALTHY" not in self.proxies:
            starts = set(self.proxies) == {"STARTING"}
            return "loading" if starts else "error", f"no proxy is healthy: {self.proxies[0]}"
        state, said = found[0]
        return ("ready", "it answers") if len(found) > 1 and "ready" in states else (state, said)

    def gpus_asked(self) -> float | None:
        """The sum of the shares of a GPU that all replicas are to have.

        None where the cluster has several nodes: whose cards those are is not said.
        """
        deployments = [one for app in self.applications for one in app.deployments]
        if len({one.node_id for each in deployments for one in each.replicas}) > 1:
            return None
        return sum(one.gpus * one.wanted for one in deployments)


def parse(raw: object) -> Details:
    """The answer of the dashboard.

    Raises:
        ServiceError: it is not one.
    """
    try:
        whole = _mapping(raw)
        applications = [_application(one) for one in _mapping(whole["applications"]).values()]
        proxies = [str(_mapping(one)["status"]) for one in _mapping(whole["proxies"]).values()]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise ServiceError("GET /api/serve/applications/ did not answer as Ray does") from None
    return Details(tuple(applications), tuple(proxies))


def _application(raw: object) -> Application:
    one = _mapping(raw)
    deployments = [_deployment(each) for each in _mapping(one["deployments"]).values()]
    # A failed deployment's message is a traceback of many lines.
    message = " ".join(str(one.get("message") or "").split())[:_MAX_MESSAGE]
    return Application(str(one["name"]), str(one["status"]), message, tuple(deployments))


def _deployment(raw: object) -> Deployment:
    one = _mapping(raw)
    return Deployment(
        name=str(one["name"]),
        wanted=int(one["target_num_replicas"]),
        gpus=_gpus(one.get("deployment_config")),
        replicas=_replicas(one["replicas"]),
        ended=_ended(one.get("recent_dead_replicas")),
    )


def _replicas(raw: Sequence[object]) -> tuple[Replica, ...]:
    return tuple(
        Replica(
            str(each["state"]),
            str(each.get("replica_id")),
            str(each.get("worker_id") or ""),
            str(each.get("node_id")),
        )
        for each in map(_mapping, raw)
    )


def _ended(raw: object) -> tuple[Replica, ...]:
    """None where that cannot be read: how the service is does not hang on it."""
    try:
        return _replicas(raw) if isinstance(raw, list) else ()
    except (KeyError, TypeError):
        return ()


def _gpus(config: object) -> float:
    """The share of each replica: its own and that of the group of workers that it brings along."""
    if not isinstance(config, Mapping):
        return 0.0
    bundles: Sequence[Any] = config.get("placement_group_bundles") or ()
    options = config.get("ray_actor_options") or {}
    # With a placement group the replica itself lives in its first bundle.
    if bundles:
        return float(sum(_mapping(one).get("GPU", 0) for one in bundles))
    return float(_mapping(options).get("num_gpus") or 0)


def _mapping(raw: object) -> Mapping[str, Any]:
    if not isinstance(raw, Mapping):
        raise TypeError("no mapping")
    return raw
