"""A router of llama.cpp: models in processes of their own, which it loads and ends on demand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from remediator.clock import SystemClock
from remediator.errors import ServiceError, ServiceTimeout
from remediator.services._calls import Deadline
from remediator.services._llamacpp_server import Server
from remediator.waiting import wait_until

_POLL = 0.2


class Router:
    """What can be done with a router's models."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def states(self, left: Deadline) -> dict[str, str]:
        """Of each model: `loaded`, `unloaded`, `loading` or `sleeping`; empty where it says none."""
        return {str(one["id"]): _state_of(one) for one in self._server.listed("/models", left)}

    def load(self, model: str, left: Deadline, wake: Callable[[str, float], object]) -> None:
        """Load it and wait until it is there; `wake` asks a sleeping one.

        Raises:
            ServiceError: it has no such model, or could not load it in time.
        """
        if self._status(model, left).get("value") == "unloaded":
            self._server.order("/models/load", {"model": model}, left.seconds(), f"loading {model}")

        def is_there() -> bool:
            status = self._status(model, left)
            value = status.get("value")
            if value == "unloaded":
                code = status.get("exit_code")
                raise ServiceError(
                    f"{model} could not be loaded: its process ended (exit code {code})"
                )
            if value == "sleeping":
                wake(model, left.seconds())
            return value == "loaded"

        if not wait_until(SystemClock(), left.seconds(), is_there, poll=_POLL):
            raise ServiceTimeout(f"{model} is not loaded in time")

    def unload(self, model: str, left: Deadline) -> None:
        """Wait until no request uses it, and have its process ended.

        Requests that take longer than ten seconds more would be cut off. One that comes between our
        look and the order still has those.

        Raises:
            ServiceTimeout: it is still loaded; most likely it is in use.
            ServiceError: whether it is in use cannot be seen.
        """

        def unused() -> bool:
            status = self._status(model, left)
            value = status.get("value")
            # Asked for its requests, one that sleeps would be loaded again.
            return value in ("unloaded", "sleeping") or (
                value == "loaded" and not self._in_use(model, left)
            )

        if not wait_until(SystemClock(), left.seconds(), unused, poll=_POLL):
            raise ServiceTimeout(f"{model} is still loaded; it is in use")
        if self._status(model, left).get("value") != "unloaded":
            self._server.order("/models/unload", {"model": model}, left.seconds(), "the unload")

        def gone() -> bool:
            return self._status(model, left).get("value") == "unloaded"

        if not wait_until(SystemClock(), left.seconds(), gone, poll=_POLL):
            raise ServiceTimeout(f"{model} is still loaded; most likely it is in use")

    def _in_use(self, model: str, left: Deadline) -> bool:
        engine = self._server.engine(model, left)
        if engine.running is None:
            raise ServiceError(
                f"whether {model} is in use cannot be seen; start the router with --metrics"
            )
        return bool(engine.running or engine.waiting)

    def _status(self, model: str, left: Deadline) -> Mapping[str, Any]:
        """What the router says of one model.

        Raises:
            ServiceError: it has no such model.
        """
        listed = {str(one["id"]): one.get("status") for one in self._server.listed("/models", left)}
        if model not in listed:
            has = ", ".join(listed) or "none"
            raise ServiceError(f"the router has no model {model}; it has: {has}")
        status = listed[model]
        if not isinstance(status, dict):
            raise ServiceError("GET /models did not answer as a llama.cpp router does")
        return status


def _state_of(listed: Mapping[str, Any]) -> str:
    status = listed.get("status")
    return str(status.get("value")) if isinstance(status, dict) else ""
