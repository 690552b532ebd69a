"""What the helper is asked and what it answers: one JSON object, one line, each way.

    helper: {"helper": 1}                      or {"error": "…"} and the end: nothing was taken in
    client: {"verb": "set_power_limit", "uuid": "GPU-…", "milliwatts": 320000}
    helper: {"outcome": "done", "value": {…}}  or {"outcome": "refused" or "unknown", "said": "…"}

A client that has not seen the first line has asked for nothing. An answer about a card may carry
`earlier`: what became of a write whose own client did not hear it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from remediator.errors import RemediatorError

VERSION = 1
MAX_REQUEST = 512
"""Bytes of a request with the end of its line."""
MAX_REPLY = 32 * 1024
"""Bytes of an answer."""
TURN = 5.0
"""Seconds that a request waits for another one about the same card."""

Permission = Literal["power_limit", "reset", "jetson"]
Outcome = Literal["done", "refused", "unknown"]

UUID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{2,63}")
_MAX_SENTENCE = 400
_MAX_ITEMS = 64


class RequestError(RemediatorError):
    """What came in is no request; the message says why."""


@dataclass(frozen=True)
class Verb:
    """One thing that can be asked for.

    `permission` is the word that `allow` in helper.yml must have; `number` names the verb's number, which
    lies between `least` and `most`. `writes`: it changes something, so its outcome may be unknown.
    """

    permission: Permission | None
    writes: bool = False
    number: str | None = None
    least: int = 0
    most: int = 0

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of a request: all of them, and no other."""
        uuid = ("uuid",) if self.permission else ()
        return ("verb", *uuid, *((self.number,) if self.number else ()))


VERBS: Mapping[str, Verb] = {
    "about": Verb(None),
    "power_limit": Verb("power_limit"),
    "set_power_limit": Verb("power_limit", True, "milliwatts", 1, 10_000_000),
    "reset_checks": Verb("reset"),
    "reset_clients": Verb("reset"),
    "reset": Verb("reset", True),
    "clock": Verb("jetson"),
    "set_clock": Verb("jetson", True, "hertz", 1, 100_000_000_000),
    "fan": Verb("jetson"),
    "set_fan": Verb("jetson", True, "duty", 0, 255),
}


@dataclass(frozen=True)
class Request:
    """A request that is one: a known verb with exactly its keys. `uuid` is not looked up yet."""

    verb: str
    uuid: str = ""
    number: int = 0


@dataclass(frozen=True)
class Reply:
    """What is answered."""

    outcome: Outcome
    said: str = ""
    value: Mapping[str, Any] = field(default_factory=dict)
    earlier: Mapping[str, Any] | None = None


def parse_request(line: bytes) -> Request:
    """The request in `line`, without its end.

    Raises:
        RequestError: it is none.
    """
    if len(line) >= MAX_REQUEST:
        raise RequestError(f"a request has at most {MAX_REQUEST - 1} bytes")
    raw = _object(line)
    name = raw.get("verb")
    if not isinstance(name, str) or name not in VERBS:
        raise RequestError(f"verb must be one of {', '.join(VERBS)}")
    verb = VERBS[name]
    if set(raw) != set(verb.keys):
        raise RequestError(
            f"{name} takes the keys {', '.join(verb.keys)}, all of them and no other"
        )
    uuid, number = raw.get("uuid", ""), raw.get(verb.number or "", 0)
    if verb.permission and not (isinstance(uuid, str) and UUID.fullmatch(uuid)):
        raise RequestError("uuid is not a GPU uuid")
    if verb.number and not (type(number) is int and verb.least <= number <= verb.most):
        raise RequestError(f"{verb.number} must be a whole number, {verb.least} to {verb.most}")
    return Request(name, uuid, number)


def _object(line: bytes) -> dict[str, Any]:
    try:
        # ASCII: what is none has no business in a verb, a uuid or a number.
        raw = json.loads(
            line.decode("ascii"),
            object_pairs_hook=_pairs,
            parse_float=_no_number,
            parse_constant=_no_number,
        )
    except (ValueError, RecursionError):
        raise RequestError("a request is one JSON object on one line, in ASCII") from None
    if not isinstance(raw, dict):
        raise RequestError("a request is a JSON object")
    return raw


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no whole number")


def greeting(error: str = "") -> bytes:
    """The first line."""
    return _line({"error": error[:_MAX_SENTENCE]} if error else {"helper": VERSION})


def encode_request(verb: str, fields: Mapping[str, str | int]) -> bytes:
    """The line of a request."""
    return _line({"verb": verb, **fields})


def encode_reply(reply: Reply) -> bytes:
    """The line of an answer; what is too long is cut, or left out, so that it always fits."""
    raw: dict[str, Any] = {"outcome": reply.outcome, "said": reply.said[:_MAX_SENTENCE]}
    if reply.earlier is not None:
        raw["earlier"] = {key: _cut(one) for key, one in reply.earlier.items()}
    whole = _line(raw | {"value": {key: _cut(one) for key, one in reply.value.items()}})
    return whole if len(whole) <= MAX_REPLY else _line(raw)


def parse_reply(line: bytes) -> Reply:
    """The answer in `line`.

    Raises:
        RequestError: it is none.
    """
    raw = _object_of_ours(line)
    outcome, value, earlier = raw.get("outcome"), raw.get("value", {}), raw.get("earlier")
    if outcome not in ("done", "refused", "unknown") or not isinstance(value, dict):
        raise RequestError("that is no answer of the helper")
    known = earlier if isinstance(earlier, dict) else None
    return Reply(outcome, str(raw.get("said", "")), value, known)


def parse_greeting(line: bytes) -> None:
    """Nothing, where `line` is the greeting of a helper that listens.

    Raises:
        RequestError: it refuses, or it is another one; the message says so.
    """
    raw = _object_of_ours(line)
    if "error" in raw:
        raise RequestError(str(raw["error"]))
    if raw.get("helper") != VERSION:
        raise RequestError("it is of another version: restart it after an upgrade")


def _object_of_ours(line: bytes) -> dict[str, Any]:
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError):
        raw = None
    if not isinstance(raw, dict):
        raise RequestError("that is no answer of the helper")
    return raw


def _cut(value: Any) -> Any:
    """`value`, with long texts and long lists cut."""
    if isinstance(value, str):
        return value[:_MAX_SENTENCE]
    if isinstance(value, list | tuple):
        return [_cut(one) for one in value[:_MAX_ITEMS]]
    if isinstance(value, Mapping):
        return {key: _cut(one) for key, one in value.items()}
    return value


def _line(raw: Mapping[str, Any]) -> bytes:
    return json.dumps(raw, ensure_ascii=True).encode("ascii") + b"\n"
