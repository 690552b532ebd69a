"""What an error text of an LLM server means: which class of fault, by the words that are known.

The texts are those of CUDA 13.5, NVML, PyTorch, vLLM 0.33, SGLang 0.5, llama.cpp, Ollama, TGI and
Ray 2.60. The order matters: a text about bad memory of a card may also speak of a CUDA error, and
a host's "out of memory" contains the words of a card's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

ErrorKind = Literal["hardware", "driver", "illegal_access", "out_of_memory", "runtime"]

# Of the exporter's table (exporter/xids.json) the critical codes need hands; a test holds the two together.
_XID = r"\bXid\b(?: \((?:PCI:)?[0-9A-Fa-f:.]+(?: [^)]*)?\))?\W{{0,3}}(?:{})\b"

_SIGNATURES: tuple[tuple[ErrorKind, Literal["", "host", "gpu"], tuple[str, ...]], ...] = (
    (
        "hardware",
        "",
        (
            "uncorrectable ECC error",
            "uncorrectable NVLink error",
            "or a hardware error",
            "hardware stack error",
            "GPU is lost",
            "fallen off the bus",
            _XID.format("48|64|79|95|136|140|143|151|155|156|158"),
        ),
    ),
    (
        "driver",
        "",
        (
            r"CUDA\b.*initialization error",
            "CUDA driver version is insufficient",
            "no CUDA-capable device is detected",
            "system not yet initialized",
            "unsupported display driver / cuda driver combination",
            "Driver/library version mismatch",
            "Failed to initialize NVML",
            _XID.format("46|62|109|110|119|120"),
        ),
    ),
    (
        "illegal_access",
        "",
        (
            "an illegal memory access was encountered",
            "an illegal instruction was encountered",
            "misaligned address",
            "invalid program counter",
            "unspecified launch failure",
            "device-side assert triggered",
            _XID.format("13|31"),
        ),
    ),
    (
        "out_of_memory",
        "host",
        (
            r"out of memory: Killed process \d+",
            "killed due to the node running low on memory",
            r"ray\.exceptions\.OutOfMemoryError",
            r"\bOOMKilled\b",
            r"Result=oom-kill",
            "DefaultCPUAllocator: can't allocate memory",
            r"\bMemoryError\b",
            "model requires more system memory",
            r"std::bad_alloc",
            r"\bCannot allocate memory\b",
            r"unable to allocate CPU\w* buffer",
            r"insufficient memory \(attempted to allocate",
        ),
    ),
    (
        "out_of_memory",
        "gpu",
        (
            r"torch(?:\.cuda)?\.OutOfMemoryError",
            "CUDA_ERROR_OUT_OF_MEMORY",
            "CUBLAS_STATUS_ALLOC_FAILED",
            "hipMalloc failed",
            r"unable to allocate (?:CUDA|ROCm|Vulkan)\d+ buffer",
            "failed to allocate buffer for kv cache",
            "failed to allocate compute (?:pp )?buffers",
            "ErrorOutOfDeviceMemory",
            "out of device memory",
            "No available memory for the cache blocks",
            "is larger than the available KV cache memory",
            "is less than desired GPU memory utilization",
            "not enough GPU memory",
            "unable to load full model on GPU",
            "alloc_req_slots runs out of memory",
            "Not enough memory to handle",
            r"\bout[ -]of[ -]memory\b",
        ),
    ),
)
_COMPILED = tuple(
    (kind, where, re.compile("|".join(f"(?:{one})" for one in texts), re.IGNORECASE))
    for kind, where, texts in _SIGNATURES
)


# Failures of a server itself, as it writes them to its log.
_RUNTIME = re.compile(
    "EngineDeadError|EngineCore encountered an issue|EngineCore failed to start"
    "|died unexpectedly|GGML_ASSERT|runner has unexpectedly stopped"
    "|(?:llama-server|llama runner) process has terminated"
    "|ActorDiedError|WorkerCrashedError|NodeDiedError"
    "|the launch timed out and was terminated",
    re.IGNORECASE,
)
# Each signature holds one of these, in lower case; most lines of a log hold none.
_WORTH_A_LOOK = (
    *("out of memory", "out-of-memory", "outofmemory", "memoryerror", "oomkilled", "oom-kill"),
    *(
        "alloc",
        "memory to handle",
        "memory than",
        "system memory",
        "low on memory",
        "insufficient memory",
        "no available",
    ),
    *("outofdevicememory", "out of device", "kv cache memory", "desired gpu", "not enough gpu"),
    *("unable to load full", "cuda_error", "uncorrectable", "hardware", "gpu is lost"),
    *("off the bus", "xid", "initializ", "insufficient", "no cuda-capable", "nvml", "mismatch"),
    *("unsupported display", "illegal", "misaligned", "invalid program", "unspecified launch"),
    *("assert", "killed", "enginedead", "enginecore", "unexpectedly", "process has terminated"),
    *("actordied", "workercrashed", "nodedied", "launch timed out"),
)
# A line that quotes what a user wrote says nothing of the server; nor does advice.
_NO_FAILURE = re.compile(
    r"prompt|\bmessages?\W{1,4}\[|\"content\"|received request"
    r"|\b(?:avoid|prevent|reduce|may|might|can|could|would|if|in case of)\b.{0,60}out[ -]of[ -]memory",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class ErrorClass:
    """The class of an error; `signature` is the part of its text that says so, empty for `runtime`.

    `where` is the memory that ran out: the `host`'s or a `gpu`'s; empty for the other classes.
    """

    kind: ErrorKind
    where: Literal["", "host", "gpu"] = ""
    signature: str = ""

    @property
    def needs_hands(self) -> bool:
        """Whether starting the server again cannot help: the card or its driver is at fault."""
        return self.kind in ("hardware", "driver")


def classify(text: str) -> ErrorClass:
    """The class of an error text; `runtime` is every text without a known signature."""
    for kind, where, pattern in _COMPILED:
        found = pattern.search(text)
        if found is not None:
            return ErrorClass(kind, where, found[0])
    return ErrorClass("runtime")


def failure_in(line: str) -> ErrorClass | None:
    """The class of the failure that a line of a server's log tells of; None where it tells of none.

    Unlike in an answer to a request, most of what stands in a log is no failure.
    """
    lower = line.lower()
    if not any(words in lower for words in _WORTH_A_LOOK):
        return None
    found = classify(line)
    if not found.signature:
        said = _RUNTIME.search(line)
        if said is None:
            return None
        found = ErrorClass("runtime", signature=said[0])
    return None if _NO_FAILURE.search(line) else found
