"""The file of `gpu-exporter capture`: what a driver answered, one call a line (JSON Lines).

The first line says what the file is; each other line is one call with its answer:

    {"gpu_exporter_capture": 1, "source": "recorded", "driver": "580.95.05", ...}
    {"call": "nvmlDeviceGetPowerUsage", "gpu": 0, "result": 210500, "seconds": 0.0004}
    {"call": "nvmlDeviceGetTemperatureV", "gpu": 0, "args": [0], "error": 15}
    {"call": "nvmlDeviceGetFieldValues", "gpu": 0, "args": [82], "result": {"type": 1, "value": 48}}

    {"call": "nvmlDeviceGetSamples", "gpu": 0, "args": [1], "result": {"type": 1, "samples": [[1000167, 97]]}}

Since when samples are asked for is not in the file: the answers are given in their order. Fields are one
line each, whatever batch they were read in, so that a version that reads other batches can still replay the
file. A line without arguments is then the outcome of the batch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporter.errors import CaptureError

VERSION = 1
RECORDED = "recorded"
OPEN = "nvmlDeviceGetHandleByIndex"
OPEN_MIG = "nvmlDeviceGetMigDeviceHandleByIndex"
FIELD_VALUES = "nvmlDeviceGetFieldValues"
SAMPLES = "nvmlDeviceGetSamples"
# Their last argument says since when, which is another one each time.
_SINCE = {SAMPLES, "nvmlDeviceGetProcessUtilization"}
# The members of `nvmlValue_t`, in the order of `nvmlValueType_t`.
FIELD_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
_MAGIC = "gpu_exporter_capture"


@dataclass(frozen=True, slots=True)
class Header:
    """Where a capture comes from.

    Attributes:
        source: `recorded`, or from what it was built.
        driver: version of the kernel driver; empty where it could not be read from files.
        exporter: version that made the file.
        nvml_py: version of nvidia-ml-py, whose function names and structures these are.
        anonymised: uuids and serial numbers are made up.
    """

    source: str = RECORDED
    driver: str = ""
    exporter: str = ""
    nvml_py: str = ""
    anonymised: bool = True


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the driver's library, without the library's own handle.

    Attributes:
        gpu: the index by which the GPU was opened, for a MIG device of it `GPU/INDEX`; None for a
            call that is about no GPU.
        arguments: positional ones after the handle.
        named: the others, by name.
    """

    function: str
    gpu: int | str | None = None
    arguments: tuple[Any, ...] = ()
    named: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: a result, an NVML error code, or nothing at all.

    Attributes:
        result: numbers, texts, None, lists, and mappings for structures.
        seconds: how long it took; None when it was not measured.
        hung: it had not come back when the capture gave up.
    """

    result: Any = None
    error: int | None = None
    seconds: float | None = None
    hung: bool = False


@dataclass(frozen=True, slots=True)
class Capture:
    """A whole file: the answers to each call, in the order in which they came."""

    header: Header
    answers: Mapping[Call, tuple[Answer, ...]] = field(default_factory=dict)


def takes_handle(function: str) -> bool:
    """Tell whether the function's first argument is the handle of a GPU."""
    return function.startswith("nvmlDevice") and function not in {OPEN, "nvmlDeviceGetCount"}


def lasting(function: str, arguments: Sequence[Any]) -> tuple[Any, ...]:
    """Return the arguments after the handle by which a call is known again."""
    return tuple(arguments[:-1] if function in _SINCE else arguments)


def header_line(header: Header) -> str:
    """Write the first line of a file."""
    body = {name: getattr(header, name) for name in Header.__slots__}
    return _line({_MAGIC: VERSION, **body})


def answer_line(call: Call, answer: Answer) -> str:
    """Write one call and its answer; what is empty is left out."""
    body: dict[str, Any] = {"call": call.function}
    if call.gpu is not None:
        body["gpu"] = call.gpu
    if call.arguments:
        body["args"] = call.arguments
    if call.named:
        body["named"] = dict(call.named)
    if answer.hung:
        body["hung"] = True
    elif answer.error is not None:
        body["error"] = answer.error
    else:
        body["result"] = answer.result
    if answer.seconds is not None:
        body["seconds"] = round(answer.seconds, 6)
    return _line(body)


def load(path: Path) -> Capture:
    """Read a file.

    Raises:
        CaptureError: it cannot be read, is no capture, or is of a later version.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            return parse(lines)
    except OSError as error:
        raise CaptureError(f"cannot read {path}: {error.strerror}") from error
    except (CaptureError, UnicodeDecodeError) as error:
        raise CaptureError(f"{path}: {error}") from error


def parse(lines: Iterable[str]) -> Capture:
    """Read the lines of a file.

    Raises:
        CaptureError: with the number of the line.
    """
    header: Header | None = None
    answers: dict[Call, list[Answer]] = {}
    for number, body in _bodies(lines):
        try:
            if header is None:
                header = _header(body)
            else:
                call, answer = _entry(body)
                answers.setdefault(call, []).append(answer)
        except (KeyError, TypeError, ValueError) as error:
            raise CaptureError(f"line {number} is no call with an answer") from error
    if header is None:
        raise CaptureError("empty; make a capture with `gpu-exporter capture FILE`")
    if not answers:
        raise CaptureError("no driver answered in it; capture again on a machine with a GPU")
    return Capture(header, {call: tuple(given) for call, given in answers.items()})


def _bodies(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            body = json.loads(line)
        except ValueError as error:
            raise CaptureError(f"line {number} is not JSON; was the file cut off?") from error
        if not isinstance(body, dict):
            raise CaptureError(f"line {number} is no call with an answer")
        yield number, body


def _header(body: Mapping[str, Any]) -> Header:
    version = body.get(_MAGIC)
    if version is None:
        raise CaptureError("not a capture; make one with `gpu-exporter capture FILE`")
    if version != VERSION:
        raise CaptureError(
            f"a capture of version {version}, and this gpu-exporter reads version {VERSION}"
        )
    return Header(**{name: body[name] for name in Header.__slots__ if name in body})


def _entry(body: Mapping[str, Any]) -> tuple[Call, Answer]:
    gpu = body.get("gpu")
    call = Call(
        str(body["call"]),
        _place(gpu),
        tuple(_hashable(one) for one in body.get("args", ())),
        tuple(sorted((name, _hashable(value)) for name, value in body.get("named", {}).items())),
    )
    if not {"result", "error", "hung"} & body.keys():
        raise ValueError(call.function)
    error = body.get("error")
    return call, Answer(
        result=body.get("result"),
        error=None if error is None else int(error),
        seconds=body.get("seconds"),
        hung=bool(body.get("hung", False)),
    )


def _place(gpu: Any) -> int | str | None:
    if isinstance(gpu, str) and "/" in gpu:
        card, _, mig = gpu.partition("/")
        return f"{int(card)}/{int(mig)}"
    return None if gpu is None else int(gpu)


def _hashable(value: Any) -> Any:
    return tuple(_hashable(one) for one in value) if isinstance(value, list) else value


def _line(body: Mapping[str, Any]) -> str:
    return json.dumps(body, ensure_ascii=False) + "\n"
