"""The driver's library, with every call and its answer written down."""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from exporter.capture.file import (
    FIELD_MEMBERS,
    FIELD_VALUES,
    OPEN,
    OPEN_MIG,
    SAMPLES,
    Answer,
    Call,
    lasting,
    takes_handle,
)
from exporter.clock import Clock

Write = Callable[[Call, Answer], None]

_FUNCTION_NOT_FOUND = 13
_UUID = re.compile(r"(GPU|MIG)-[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
# Above the kernel's highest pid (2^22): where the capture is replayed, no process has it.
_FIRST_PID = 2**22 + 1


class Disguise:
    """Replaces what tells one machine from another; what was equal stays equal."""

    def __init__(self, *, anonymise: bool) -> None:
        """Replace pids always, since they mean nothing elsewhere; uuids and serials if asked to."""
        self._anonymise = anonymise
        self._uuids: dict[str, str] = {}
        self._pids: dict[int, int] = {}

    def of(self, call: Call, result: Any) -> Any:
        """Return the result as it may be written down."""
        if self._anonymise and "Serial" in call.function:
            return ""
        return self._value(result)

    def _value(self, value: Any) -> Any:
        if isinstance(value, str) and self._anonymise:
            return _UUID.sub(self._uuid, value)
        if isinstance(value, list):
            return [self._value(one) for one in value]
        if isinstance(value, dict):
            return {name: self._member(name, one) for name, one in value.items()}
        return value

    def _member(self, name: str, value: Any) -> Any:
        if name == "pid":
            return self._pids.setdefault(value, _FIRST_PID + len(self._pids))
        return self._value(value)

    def _uuid(self, found: re.Match[str]) -> str:
        made_up = f"{found[1]}-00000000-0000-4000-8000-{len(self._uuids):012x}"
        return self._uuids.setdefault(found[0], made_up)


class Recorder:
    """Stands in the place of pynvml: asks it, writes the answer down and passes it on.

    It takes readings only: the driver's events are not asked for.
    """

    def __init__(self, nvml: Any, write: Write, clock: Clock, disguise: Disguise) -> None:
        self._nvml = nvml
        self._write = write
        self._clock = clock
        self._disguise = disguise
        self._gpus: dict[int | None, int | str] = {}
        self._lock = threading.Lock()
        self._pending: tuple[Call, float] | None = None

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._nvml, name)
        if not name.startswith("nvml") or not callable(found):
            return found

        def call(*arguments: Any, **named: Any) -> Any:
            return self._ask(found, name, arguments, named)

        return call

    def stuck(self, seconds: float) -> Call | None:
        """Return the call that has been going on for so long, if there is one."""
        with self._lock:
            if self._pending is None:
                return None
            call, since = self._pending
        if self._clock.monotonic() - since < seconds:
            return None
        return _batch(call) if call.function == FIELD_VALUES else call

    def _ask(
        self, function: Any, name: str, arguments: Sequence[Any], named: Mapping[str, Any]
    ) -> Any:
        if name.startswith("nvmlEvent"):
            raise self._nvml.NVMLError(_FUNCTION_NOT_FOUND)
        call = self._call(name, arguments, named)
        started = self._clock.monotonic()
        with self._lock:
            self._pending = (call, started)
        try:
            result = function(*arguments, **named)
        except self._nvml.NVMLError as error:
            self._note(call, Answer(error=int(error.value)), started)
            raise
        finally:
            with self._lock:
                self._pending = None
        if name == OPEN:
            self._gpus[_key(result)] = arguments[0]
        if name == OPEN_MIG:
            self._gpus[_key(result)] = f"{call.gpu}/{arguments[1]}"
        self._note(call, Answer(None if name in (OPEN, OPEN_MIG) else result), started)
        return result

    def _call(self, name: str, arguments: Sequence[Any], named: Mapping[str, Any]) -> Call:
        gpu = None
        if takes_handle(name):
            gpu, arguments = self._gpus[_key(arguments[0])], arguments[1:]
        told = tuple(_plain(one) for one in lasting(name, arguments))
        return Call(
            name, gpu, told, tuple(sorted((key, _plain(one)) for key, one in named.items()))
        )

    def _note(self, call: Call, answer: Answer, started: float) -> None:
        answer = replace(answer, seconds=self._clock.monotonic() - started)
        if call.function == FIELD_VALUES:
            self._note_fields(call, answer)
            return
        plain = _samples if call.function == SAMPLES else _plain
        told = None if answer.error is not None else plain(answer.result)
        self._write(call, replace(answer, result=self._disguise.of(call, told)))

    def _note_fields(self, call: Call, answer: Answer) -> None:
        self._write(_batch(call), replace(answer, result=None))
        if answer.error is not None:
            return
        for wanted, value in zip(call.arguments[0], answer.result, strict=True):
            arguments = tuple(wanted) if isinstance(wanted, list) else (wanted,)
            self._write(replace(call, arguments=arguments), _field(value))


def _batch(call: Call) -> Call:
    return replace(call, arguments=())


def _field(value: Any) -> Answer:
    code = int(value.nvmlReturn)
    if code:
        return Answer(error=code)
    kind = int(value.valueType)
    return Answer({"type": kind, "value": getattr(value.value, FIELD_MEMBERS[kind])})


def _samples(result: tuple[int, Sequence[Any]]) -> dict[str, Any]:
    kind, samples = result
    member = FIELD_MEMBERS[kind] if kind < len(FIELD_MEMBERS) else None
    values = [[one.timeStamp, member and getattr(one.sampleValue, member)] for one in samples]
    return {"type": kind, "samples": values}


def _plain(value: Any) -> Any:
    """Turn what the library gives into what JSON has."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, ctypes.Structure | ctypes.Union):
        return {one[0]: _plain(getattr(value, one[0])) for one in value._fields_}
    if isinstance(value, list | tuple | ctypes.Array):
        return [_plain(one) for one in value]
    return {name: _plain(one) for name, one in vars(value).items()}


def _key(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value
