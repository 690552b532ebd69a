"""Runs nvidia-smi, with an end to every wait."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import dataclass

_GRACE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What it printed, and its exit code: an NVML code, or 255."""

    code: int
    output: str
    complaint: str = ""

    @property
    def text(self) -> str:
        """All that it said as one line, for messages."""
        return " ".join(f"{self.output} {self.complaint}".split())[:300]


class Timeout(Exception):  # noqa: N818  not an error of ours
    """It did not answer in time, or an earlier one is still stuck in the driver."""


class SmiCommand:
    """One nvidia-smi at a time: while one is stuck in the driver no other is started."""

    def __init__(self, program: str, timeout: float) -> None:
        """Prepare to run `program` (its path); `timeout` is seconds for one answer."""
        self._program = program
        self._timeout = timeout
        self._stuck: subprocess.Popen[str] | None = None

    @property
    def is_stuck(self) -> bool:
        """Whether the last one did not end when it was asked to, and has not since."""
        return self._stuck is not None and self._stuck.poll() is None

    def run(self, *arguments: str) -> Answer:
        """Run it to its end.

        Raises:
            Timeout: it did not end in time.
            OSError: it cannot be started.
        """
        if self._stuck is not None and self.is_stuck:
            raise Timeout(f"nvidia-smi {self._stuck.pid} is stuck in the driver")
        self._stuck = None
        process = subprocess.Popen(
            [self._program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},
            # A group of its own, so that what it starts can be ended with it.
            start_new_session=True,
        )
        try:
            output, complaint = process.communicate(timeout=self._timeout)
        except subprocess.TimeoutExpired:
            self._end(process)
            raise Timeout(f"nvidia-smi did not answer in {self._timeout:g} s") from None
        return Answer(process.returncode, output, complaint)

    def _end(self, process: subprocess.Popen[str]) -> None:
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        # Asked, never killed: a GPU client that is killed inside the driver has frozen cards.
        if not _signalled(process, signal.SIGTERM):
            self._stuck = process


def _signalled(process: subprocess.Popen[str], number: signal.Signals) -> bool:
    try:
        os.killpg(process.pid, number)
        process.wait(_GRACE_SECONDS)
    except ProcessLookupError:
        process.wait()
    except subprocess.TimeoutExpired:
        return False
    return True
