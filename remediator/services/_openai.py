"""The part of OpenAI's API that many servers have: their models, and one small request."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

from remediator import http
from remediator.clock import SystemClock
from remediator.errors import ServiceError, ServiceTimeout
from remediator.services._calls import key_hint, message
from remediator.services.base import LoadedModel, ServiceProbe
from remediator.waiting import wait_until

Canary = Literal["completion", "chat", "embedding"]
"""What a canary asks for: a server of embeddings completes nothing."""

_POLL = 0.5
_ASKED: dict[Canary, tuple[str, dict[str, Any], str]] = {
    "completion": ("/v1/completions", {"prompt": "ping", "max_tokens": 1}, "choices"),
    "chat": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "ping"}], "max_tokens": 1},
        "choices",
    ),
    "embedding": ("/v1/embeddings", {"input": "ping"}, "data"),
}


def models_in(answer: http.Answer, server: str, key: str | None) -> tuple[LoadedModel, ...]:
    """The models in an answer of `GET /v1/models`, without adapters.

    Raises:
        ServiceError: it refused, or answered as no such server does.
    """
    if answer.status != 200:
        why = f"GET /v1/models answered HTTP {answer.status}"
        raise ServiceError(why + key_hint(key, answer.status))
    raw = answer.json()
    data = raw.get("data") if isinstance(raw, dict) else None
    if not isinstance(data, list) or not all(isinstance(one, dict) for one in data):
        raise ServiceError(f"GET /v1/models did not answer as {server} does")
    # An adapter has a parent, and comes and goes with requests of others.
    names = [one.get("id") for one in data if one.get("parent") is None]
    return tuple(LoadedModel(name, None) for name in names if isinstance(name, str) and name)


def ask(
    endpoint: str, model: str, what: Canary, server: str, *, timeout: float, key: str | None
) -> None:
    """One token, or one embedding, of `model`; `timeout` in seconds.

    Raises:
        ServiceTimeout: no answer in time.
        ServiceError: a failure, or no answer of such a server.
    """
    path, body, held = _ASKED[what]
    answer = http.call(
        "POST", endpoint + path, timeout=timeout, body={"model": model, **body}, token=key
    )
    if answer.status != 200:
        why = f"the canary failed (HTTP {answer.status}): {message(answer)}"
        raise ServiceError(why + key_hint(key, answer.status))
    raw = answer.json()
    if not isinstance(raw, dict) or not raw.get(held):
        raise ServiceError(f"the canary was not answered as {server} does")


def wait_until_served(
    probe: Callable[[], ServiceProbe], model: str, server: str, timeout: float
) -> None:
    """Wait until a server that loads its models at its start serves `model`.

    Raises:
        ServiceTimeout: it was not ready within `timeout` seconds.
        ServiceError: it serves others.
    """
    probes = [probe()]

    def answers() -> bool:
        probes[0] = probe()
        return probes[0].state == "ready"

    if not wait_until(SystemClock(), timeout, answers, poll=_POLL):
        raise ServiceTimeout(f"the server is not ready to serve {model}: {probes[0].detail}")
    served = [loaded.name for loaded in probes[0].models]
    if model not in served:
        raise ServiceError(
            f"it serves {_names(served)}, not {model}; {server} loads only what it is started with"
        )


def _names(served: Iterable[str]) -> str:
    return ", ".join(served) or "no model"
