"""A capture in place of a driver: the NVML backend over what a driver once answered."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml

from exporter.backends import _nvml_errors as codes
from exporter.backends.base import BackendOptions
from exporter.backends.nvml import NvmlBackend
from exporter.capture import file as capture_file
from exporter.capture.file import (
    FIELD_MEMBERS,
    FIELD_VALUES,
    OPEN,
    OPEN_MIG,
    SAMPLES,
    Answer,
    Call,
    Capture,
    lasting,
    takes_handle,
)
from exporter.clock import SystemClock
from exporter.environment import Environment

# A machine of which no file can be read: this one's has nothing to do with the capture.
_NOWHERE = Environment(Path(os.devnull))


def create(options: BackendOptions) -> ReplayBackend:
    """Make the backend of the capture `options.replay_file`.

    Raises:
        CaptureError: it is not one.
    """
    return ReplayBackend(capture_file.load(Path(options.replay_file)))


class ReplayBackend(NvmlBackend):
    """The GPUs of a capture. They tell no Xid errors: a capture holds readings only."""

    name = "replay"

    def __init__(self, capture: Capture) -> None:
        super().__init__(ReplayLibrary(capture), _NOWHERE, SystemClock())

    def fingerprint(self) -> object:
        """Return a constant: in a capture nothing comes or goes."""
        return None


class ReplayLibrary:
    """Stands in the place of pynvml, from which it takes constants and errors but no function.

    The answers to a call are given in their order; after the last one, that one again. A call
    that is not in the capture is one that the driver does not know, and one that hung times out.
    """

    NVMLError = pynvml.NVMLError

    def __init__(self, capture: Capture) -> None:
        self._answers = capture.answers
        self._given: dict[Call, int] = {}
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        found = getattr(pynvml, name)
        if not name.startswith("nvml") or not callable(found):
            return found

        def call(*arguments: Any, **named: Any) -> Any:
            return self._play(name, arguments, named)

        return call

    def _play(self, name: str, arguments: Sequence[Any], named: Mapping[str, Any]) -> Any:
        gpu = None
        if takes_handle(name):
            gpu, arguments = arguments[0], arguments[1:]
        if name == FIELD_VALUES:
            return self._fields(gpu, arguments[0])
        asked = Call(name, gpu, lasting(name, arguments), tuple(sorted(named.items())))
        result = self._result(asked)
        if name == SAMPLES:
            return _samples(result)
        if name == OPEN_MIG:
            return f"{gpu}/{arguments[0]}"
        # The index is handle enough.
        return arguments[0] if name == OPEN else _object(result)

    def _result(self, call: Call) -> Any:
        answer = self._next(call)
        if answer.error is not None:
            raise pynvml.NVMLError(answer.error)
        return answer.result

    def _fields(self, gpu: int | str | None, wanted: Sequence[Any]) -> list[SimpleNamespace]:
        batch = Call(FIELD_VALUES, gpu)
        if batch in self._answers:
            self._result(batch)
        fields = [one if isinstance(one, tuple) else (one,) for one in wanted]
        return [_field(self._next(Call(FIELD_VALUES, gpu, one))) for one in fields]

    def _next(self, call: Call) -> Answer:
        answers = self._answers.get(call)
        if answers is None:
            return Answer(error=codes.FUNCTION_NOT_FOUND)
        with self._lock:
            position = self._given.get(call, 0)
            self._given[call] = min(position + 1, len(answers) - 1)
        answer = answers[position]
        return Answer(error=codes.TIMEOUT) if answer.hung else answer


def _field(answer: Answer) -> SimpleNamespace:
    if answer.error is not None:
        return SimpleNamespace(nvmlReturn=answer.error)
    kind, value = answer.result["type"], answer.result["value"]
    return SimpleNamespace(
        nvmlReturn=0, valueType=kind, value=SimpleNamespace(**{FIELD_MEMBERS[kind]: value})
    )


def _samples(result: Any) -> tuple[int, list[SimpleNamespace]]:
    member = FIELD_MEMBERS[result["type"]]
    return result["type"], [
        SimpleNamespace(timeStamp=at, sampleValue=SimpleNamespace(**{member: value}))
        for at, value in result["samples"]
    ]


def _object(value: Any) -> Any:
    if isinstance(value, list):
        return [_object(one) for one in value]
    if isinstance(value, dict):
        return SimpleNamespace(**{name: _object(one) for name, one in value.items()})
    return value
