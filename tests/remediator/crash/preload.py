"""The shim that kills, tears or fails the n-th write: built here, preloaded, spoken to by ctypes."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_SOURCE = Path(__file__).with_name("shim.c")
_WAYS = {"count": 0, "kill": 1, "torn": 2, "drop": 3, "fail": 4}
WRITES, SYNCS, NAMES = 1, 2, 4
_DYING = ctypes.CFUNCTYPE(None)


@dataclass(frozen=True)
class Way:
    """How a point ends: `way` of the shim, and of a failure which error, which calls, for how long."""

    name: str
    way: str
    error: int = 0
    kinds: int = 0
    lasting: bool = False

    @property
    def kills(self) -> bool:
        return self.way != "fail"


WAYS = {
    one.name: one
    for one in (
        Way("kill", "kill"),
        Way("torn write", "torn"),
        Way("unsynced lost", "drop"),
        Way("ENOSPC", "fail", errno.ENOSPC, WRITES),
        Way("EIO", "fail", errno.EIO, WRITES | SYNCS | NAMES),
        Way("ENOSPC from then on", "fail", errno.ENOSPC, WRITES, lasting=True),
        Way("EIO from then on", "fail", errno.EIO, WRITES | SYNCS | NAMES, lasting=True),
    )
}


def build(folder: Path) -> Path:
    """Compile the shim into `folder`."""
    shim = folder / "shim.so"
    argv = [
        "gcc",
        "-O1",
        "-Wall",
        "-Werror",
        "-shared",
        "-fPIC",
        "-o",
        str(shim),
        str(_SOURCE),
        "-ldl",
    ]
    subprocess.run(argv, check=True)
    return shim


def preloaded(shim: Path, argv: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Run a Python command with the shim in front of libc."""
    environment = os.environ | {"LD_PRELOAD": str(shim), "CRASH_SHIM": str(shim)}
    return subprocess.run([sys.executable, *argv], env=environment, check=False)


class Shim:
    """The shim of this very process, which was started with it."""

    def __init__(self) -> None:
        self._so = ctypes.CDLL(os.environ["CRASH_SHIM"])
        self._so.shim_count.restype = ctypes.c_long
        self._dying: object = None

    def arm(self, folder: Path, way: Way | None, target: int, dying: Callable[[], None]) -> None:
        """From now on count, and at point `target` do what `way` says; None only counts."""
        self._dying = _DYING(dying)
        one = way or Way("count", "count")
        self._so.shim_arm(
            os.fsencode(folder) + b"/",
            _WAYS[one.way],
            ctypes.c_long(target),
            one.error,
            one.kinds,
            int(one.lasting),
            self._dying,
        )

    def disarm(self) -> None:
        self._so.shim_disarm()

    def step(self) -> None:
        """A point that is no call: before or after something was done to the world."""
        self._so.shim_step()

    def count(self, way: Way | None) -> int:
        return int(self._so.shim_count(int(way is not None and not way.kills)))
