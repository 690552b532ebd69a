"""What is asked of a llama.cpp server and of the models of a router: who is there, and at work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from remediator import http
from remediator.errors import ServiceError, ServiceTimeout
from remediator.services._calls import Deadline, key_hint, message
from remediator.services._prometheus import read_samples, total, whole

_RUNNING = "llamacpp:requests_processing"
_WAITING = "llamacpp:requests_deferred"
# It moves with each batch; the counters of tokens only when a prompt or a request ends.
_PROGRESS = "llamacpp:n_decode_total"
_NAMES = frozenset((_RUNNING, _WAITING, _PROGRESS))


@dataclass(frozen=True)
class Engine:
    """Requests and decoded batches of one model, or of several; None where that cannot be read."""

    running: int | None = None
    waiting: int | None = None
    progress: float | None = None


class Server:
    """The calls of one server, with its key."""

    def __init__(self, endpoint: str, key: str | None) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._key = key

    def get(self, path: str, left: Deadline) -> http.Answer:
        """Ask for `path`."""
        # Whether it is healthy needs no key, and whoever answers there may not be it.
        key = None if path == "/health" else self._key
        return http.call("GET", self._endpoint + path, timeout=left.seconds(), token=key)

    def send(self, path: str, body: Mapping[str, Any], timeout: float) -> http.Answer:
        """Send `body` to `path`."""
        url = self._endpoint + path
        return http.call("POST", url, timeout=timeout, body=body, token=self._key)

    def order(self, path: str, body: Mapping[str, Any], timeout: float, what: str) -> None:
        """Order `what`, in words for a person.

        Raises:
            ServiceError: it was refused.
        """
        answer = self.send(path, body, timeout)
        if answer.status != 200:
            raise self.failed(what, answer)

    def failed(self, what: str, answer: http.Answer) -> ServiceError:
        """What an answer means that is no 200."""
        hint = key_hint(self._key, answer.status)
        return ServiceError(f"{what} failed (HTTP {answer.status}): {message(answer)}{hint}")

    def props(self, left: Deadline) -> Mapping[str, Any]:
        """What it was started as, and whether it sleeps.

        Raises:
            ServiceError: it does not answer as llama.cpp does.
        """
        answer = self.get("/props", left)
        if answer.status != 200:
            raise self.failed("GET /props", answer)
        raw = answer.json()
        if not isinstance(raw, dict):
            raise ServiceError("GET /props did not answer as llama.cpp does")
        return raw

    def listed(self, path: str, left: Deadline) -> list[dict[str, Any]]:
        """Models, each with an `id`.

        Raises:
            ServiceError: it does not answer as llama.cpp does.
        """
        answer = self.get(path, left)
        if answer.status != 200:
            raise self.failed(f"GET {path}", answer)
        raw = answer.json()
        data = raw.get("data") if isinstance(raw, dict) else None
        if not isinstance(data, list) or not all(
            isinstance(one, dict) and isinstance(one.get("id"), str) for one in data
        ):
            raise ServiceError(f"GET {path} did not answer as llama.cpp does")
        return data

    def engine(self, model: str | None, left: Deadline) -> Engine:
        """What `/metrics` says; without them what runs, from `/slots`.

        Raises:
            ServiceTimeout: neither yes nor no in time: a sign of a hang.
        """
        query = "" if model is None else "?" + urlencode({"model": model, "autoload": "false"})
        try:
            answer = self.get("/metrics" + query, left)
            samples = read_samples(answer.body, _NAMES) if answer.status == 200 else ()
            if samples:
                running, waiting = whole(samples, _RUNNING), whole(samples, _WAITING)
                return Engine(running, waiting, total(samples, _PROGRESS))
            answer = self.get("/slots" + query, left)
            return Engine(_busy_slots(answer.json()) if answer.status == 200 else None)
        except ServiceTimeout:
            raise
        except ServiceError:
            return Engine()


def together(engines: Sequence[Engine]) -> Engine:
    """The sums of several; of none nothing is known."""
    running = _sum([one.running for one in engines])
    waiting = _sum([one.waiting for one in engines])
    return Engine(
        None if running is None else int(running),
        None if waiting is None else int(waiting),
        _sum([one.progress for one in engines]),
    )


def _busy_slots(raw: object) -> int | None:
    slots = raw if isinstance(raw, list) else [None]
    busy = [slot.get("is_processing") if isinstance(slot, dict) else None for slot in slots]
    return sum(one is True for one in busy) if all(isinstance(one, bool) for one in busy) else None


def _sum(values: Sequence[float | None]) -> float | None:
    """None where one is missing: a sum that it comes back to would look like progress."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None
