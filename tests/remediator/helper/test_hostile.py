"""Nothing that a client says becomes part of an argv, an environment or a path, whatever it says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remediator import runner
from remediator.gpu_control.nvml import NvmlControl
from remediator.helper.protocol import VERBS, RequestError, parse_request
from tests.remediator.helper.support import CARD, OTHER, Cards, Running, desk_of, until_end

# Every string carries this, so that it can be looked for wherever it must not be.
MARK = "zq7"

TEXTS = [
    "$(reboot)", "`reboot`", "; reboot", "| reboot", "&& reboot", "\nreboot\n", "${IFS}reboot", "$HOME",
    "> /etc/passwd", "*", "?", "[a-z]", "~root", "!!", "'", '"', "\\", "'; reboot; '", "{a,b}", "#", "a b",
    "\t", "\r", "\x00", "\x1b[2J", "\x7f", "\u202e", "\ufeff", "\u2028", "\U0001f525", "\u0660", "\uff10",
    "--help", "-h", "-i", "-i 0", "--gpu-reset", "-r", "-pl 100", "--", "-", "@file", "=", "-c", "-m os",
    "../../../etc/passwd", "/etc/passwd", "/bin/sh", "/dev/nvidia0", "file:///etc/passwd", "http://127.0.0.1/",
    "%2e%2e%2f", "C:\\windows", "./x", "x/..", "ollama.service", "LD_PRELOAD=x", "PATH=/tmp", "IFS= ",
    "{{7*7}}", "${7*7}", "<%= 7 %>", "%s", "%n", "{0}", "<script>alert(1)</script>", "' OR '1'='1", "\"}]}",
    "null", "true", "0", "1e9", "all", "none", "*.service", "GPU-", "MIG-GPU-", "GPU-0,GPU-1", "0x1F",
]  # fmt: skip
AROUND = [
    f"_{MARK}",
    f"{MARK}_",
    f"{MARK}_{MARK}",
    f"GPU-{MARK}_",
    f"_{CARD}{MARK}",
    f"{CARD}_{MARK}",
]
NEAR = [CARD[:-1], CARD + "0", CARD.lower(), CARD + "\n", " " + CARD, CARD + "," + OTHER]
STRINGS = [
    *NEAR,
    *(around.replace("_", text) for text in TEXTS for around in AROUND),
    # What looks like a card, and is none: these get as far as a uuid ever can.
    *(f"GPU-{number:08x}-{MARK}" for number in range(60)),
    *(f"{option}{MARK}" for option in ("x-", "A-", "0-", "GPU--", "all-")),
]


class Recorder:
    """Keeps each argv and environment that a process would have been started with."""

    def __init__(self) -> None:
        self.argvs: set[tuple[str, ...]] = set()
        self.environments: list[dict[str, str]] = []

    def run(self, argv: list[str], *, timeout: float) -> runner.Result:
        self.argvs.add(tuple(argv))
        self.environments.append(runner.environment())
        if argv[-1] == "list":
            return runner.Result(0, json.dumps({"uuids": [CARD]}), "")
        if "power" in argv:
            limits = {"limit": 4, "default": 4, "minimum": 1, "maximum": 10**7}
            return runner.Result(0, json.dumps(limits), "")
        if "read" in argv:
            return runner.Result(0, json.dumps({"limit": 1, "steps": [1]}), "")
        return runner.Result(0, "{}", "")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()

    def refuse(*arguments: Any, **_: Any) -> None:
        raise AssertionError(f"a process was started: {arguments}")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(runner, "run", recorder.run)
    return recorder


@pytest.fixture
def real(tmp_path: Path, serve: Callable[..., Running], started: Recorder) -> Running:
    """A helper that may do everything, with its own controls."""
    desk = desk_of(tmp_path, Cards(), allow=("power_limit", "reset", "jetson"), nvidia_smi=tmp_path)
    desk._power = desk._nvml = NvmlControl(10.0)  # type: ignore[assignment]
    return serve(desk)


def asking_for(text: str, number: int) -> bytes:
    """A request that names this card."""
    verb = list(VERBS)[1 + number % (len(VERBS) - 1)]
    key = VERBS[verb].number
    return json.dumps({"verb": verb, "uuid": text} | ({key: 7} if key else {})).encode()


def test_the_corpus_is_large_enough() -> None:
    assert len(set(STRINGS)) >= 500


def test_what_is_started_is_the_same_whatever_is_said(real: Running, started: Recorder) -> None:
    with real.raw() as one:
        one.sendall(b'{"verb": "power_limit", "uuid": "%s"}\n' % CARD.encode())
        assert json.loads(until_end(one))["outcome"] == "done"
    nvml = (sys.executable, "-P", "-m", "remediator.gpu_control.nvml_call")
    jetson = (sys.executable, "-P", "-m", "remediator.gpu_control.jetson_call", "/")
    environment = started.environments[0]
    answered = 0
    for number, text in enumerate(STRINGS):
        with real.raw() as one:
            one.sendall(asking_for(text, number) + b"\n")
            answered += b"outcome" in until_end(one)
    assert answered == len(STRINGS)
    assert started.argvs <= {
        (*nvml, "list"),
        (*nvml, "power", CARD),
        (*jetson, "read"),
        (*jetson, "fan"),
        (*jetson, "write", "7"),
        (*jetson, "fan-write", "7"),
    }
    assert all(one == environment for one in started.environments)
    assert MARK not in str(started.argvs) + str(started.environments)


@pytest.mark.parametrize(
    "place",
    [
        lambda text: {"verb": text, "uuid": CARD},
        lambda text: {"verb": "set_power_limit", "uuid": CARD, "milliwatts": text},
        lambda text: {"verb": "power_limit", "uuid": CARD, text: text},
        lambda text: text,
        lambda text: [text],
    ],
)
def test_in_any_other_place_it_is_no_request(place: Callable[[str], Any]) -> None:
    for text in STRINGS:
        with pytest.raises(RequestError):
            parse_request(json.dumps(place(text)).encode())
