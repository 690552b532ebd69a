"""A request is one of a few, exactly; everything else is refused before anything is looked up."""

from __future__ import annotations

import json
import os
import random
from typing import Any

import pytest

from remediator.helper.protocol import (
    MAX_REPLY,
    MAX_REQUEST,
    UUID,
    VERBS,
    Reply,
    Request,
    RequestError,
    encode_reply,
    encode_request,
    parse_reply,
    parse_request,
)

CARD = "GPU-11111111-0000-0000-0000-000000000000"
SET: dict[str, Any] = {"verb": "set_power_limit", "uuid": CARD, "milliwatts": 320_000}


def line(**over: Any) -> bytes:
    raw = {key: value for key, value in (SET | over).items() if value is not None}
    return json.dumps(raw).encode()


def test_the_verbs_are_fixed() -> None:
    """Each new one has to be thought through: what does it give to who owns the remediator?"""
    assert {name: verb.keys[1:] for name, verb in VERBS.items()} == {
        "about": (),
        "power_limit": ("uuid",),
        "set_power_limit": ("uuid", "milliwatts"),
        "reset_checks": ("uuid",),
        "reset_clients": ("uuid",),
        "reset": ("uuid",),
        "clock": ("uuid",),
        "set_clock": ("uuid", "hertz"),
        "fan": ("uuid",),
        "set_fan": ("uuid", "duty"),
    }
    assert {name for name, verb in VERBS.items() if verb.writes} == {
        "set_power_limit",
        "reset",
        "set_clock",
        "set_fan",
    }


@pytest.mark.parametrize("verb", VERBS)
def test_what_the_client_writes_is_what_the_helper_reads(verb: str) -> None:
    fields: dict[str, str | int] = {"uuid": CARD} if VERBS[verb].permission else {}
    number = VERBS[verb].number
    if number:
        fields[number] = 7
    request = parse_request(encode_request(verb, fields).rstrip(b"\n"))
    assert request == Request(verb, str(fields.get("uuid", "")), 7 if number else 0)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00",
        b"null",
        b"[]",
        b'"reset"',
        b"{}",
        b"{" * 400,
        b"[" * 400,
        line()[:-1],
        line() + b"x",
        b"\xef\xbb\xbf" + line(),
        json.dumps(SET).encode("utf-16"),
        line(verb=None),
        line(verb="set_power_limits"),
        line(verb="SET_POWER_LIMIT"),
        line(verb=["set_power_limit"]),
        line(verb="shell"),
        line(uuid=None),
        line(uuid=""),
        line(uuid=7),
        line(uuid=[CARD]),
        line(uuid=CARD + "\n"),
        line(uuid=CARD + "\0"),
        line(uuid="-i"),
        line(uuid="../" + CARD),
        line(uuid="G" * 65),
        line(milliwatts=None),
        line(milliwatts="320000"),
        line(milliwatts=320_000.0),
        line(milliwatts=True),
        line(milliwatts=0),
        line(milliwatts=-1),
        line(milliwatts=10_000_001),
        line(milliwatts=[1]),
        line(argv=["/bin/sh"]),
        line(path="/etc/passwd"),
        line(env={"LD_PRELOAD": "x"}),
        line(within=1),
        line(verb="reset"),
        b'{"verb":"about","verb":"reset"}',
        b'{"verb":"set_fan","uuid":"jetson-1","duty":NaN}',
        b'{"verb":"set_fan","uuid":"jetson-1","duty":256}',
        b'{"verb":"set_fan","uuid":"jetson-1","duty":' + b"9" * 400 + b"}",
        line() + b" " * MAX_REQUEST,
    ],
)
def test_what_is_no_request_is_refused(raw: bytes) -> None:
    with pytest.raises(RequestError):
        parse_request(raw)


def test_whatever_comes_in_is_a_request_or_none() -> None:
    """Requests with bytes changed, put in, taken out or doubled."""
    dice = random.Random(7)
    pieces = [
        b'"',
        b"{",
        b"}",
        b",",
        b":",
        b"\\",
        b"\x00",
        b"\xff",
        b"\\u0000",
        b"1e9",
        b"-",
        b"null",
    ]
    taken = 0
    for _ in range(int(os.environ.get("HELPER_FUZZ", "4000"))):
        raw = bytearray(line(verb=dice.choice(list(VERBS)), milliwatts=dice.choice([None, 7])))
        for _ in range(dice.randrange(3)):
            at = dice.randrange(len(raw))
            raw[at : at + dice.randrange(3)] = dice.choice([*pieces, bytes(raw[at : at + 9])])
        try:
            found = parse_request(bytes(raw))
        except RequestError:
            continue
        taken += 1
        verb = VERBS[found.verb]
        assert UUID.fullmatch(found.uuid) or not verb.permission
        assert verb.number is None or verb.least <= found.number <= verb.most
    assert taken


def test_an_answer_always_fits() -> None:
    for letter, left in (("x", 64), ("\U0001f525", None)):
        many = [{"pid": n, "name": letter * 1000} for n in range(1000)]
        earlier = {"said": letter * 10_000}
        raw = encode_reply(Reply("done", letter * 10_000, {"clients": many}, earlier))
        found = parse_reply(raw)
        assert raw.endswith(b"\n")
        assert raw.isascii()
        assert len(raw) <= MAX_REPLY
        assert found.outcome == "done"
        assert len(found.value.get("clients", ())) == (left or 0)


@pytest.mark.parametrize("raw", [b"", b"null", b"{}", b'{"outcome": "perhaps"}', b"[" * 100_000])
def test_what_is_no_answer_is_none(raw: bytes) -> None:
    with pytest.raises(RequestError):
        parse_reply(raw)
