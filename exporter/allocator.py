"""The C library's memory allocator: what many threads that mostly wait do not need."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Mapping
from types import MappingProxyType

# mallopt(3). One arena for all threads: they take turns in the interpreter anyway, and each arena
# more keeps about half a MiB that the others cannot use.
_ARENA_MAX, _MMAP_THRESHOLD = -8, -3
_ARENAS = 1
# What is bigger, as a page is, goes back to the system when it is freed.
_BIG_BYTES = 64 * 1024

ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {"MALLOC_ARENA_MAX": str(_ARENAS), "MALLOC_MMAP_THRESHOLD_": str(_BIG_BYTES)}
)
"""The same for a process that is started."""


def be_thrifty() -> None:
    """Keep little memory in reserve; before the first thread, and without effect where it is not glibc."""
    with contextlib.suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        library.mallopt(_ARENA_MAX, _ARENAS)
        library.mallopt(_MMAP_THRESHOLD, _BIG_BYTES)
