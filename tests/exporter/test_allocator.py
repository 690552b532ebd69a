"""The allocator's arenas, seen in the address space: glibc reserves 64 MiB for each one beside the first."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from exporter import allocator

THREADS_THAT_ALLOCATE = """
import ctypes, re, threading
{first}
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
ready, done = threading.Barrier(5), threading.Event()

def allocate():
    library.malloc(ctypes.c_size_t(1000))
    ready.wait()
    done.wait()

threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads:
    thread.start()
ready.wait()
reserved = re.findall(r"^(\\w+)-(\\w+) ---p", open("/proc/self/maps").read(), re.M)
print(sum(2**25 < int(end, 16) - int(start, 16) < 2**26 for start, end in reserved))
done.set()
"""


def arenas(first: str = "", **environment: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", THREADS_THAT_ALLOCATE.format(first=first)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def test_threads_share_one_arena_in_this_process_and_in_one_that_is_started() -> None:
    if arenas() == 0:
        pytest.skip("this C library gives threads no arenas of their own")
    assert arenas("from exporter import allocator; allocator.be_thrifty()") == 0
    assert arenas(**allocator.ENVIRONMENT) == 0
