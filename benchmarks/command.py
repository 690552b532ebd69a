"""What the command lines of all benchmarks share: bounds of numbers, and two looks at the machine."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable

from benchmarks import machine


def add_count(
    parser: argparse.ArgumentParser,
    flag: str,
    default: int,
    text: str,
    *,
    least: int = 1,
    most: int = 3600,
) -> None:
    """Adds an option that takes a whole number from `least` to `most`."""

    def whole(typed: str) -> int:
        if not typed.isdecimal() or not least <= int(typed) <= most:
            raise argparse.ArgumentTypeError(f"a number from {least} to {most}, not {typed!r}")
        return int(typed)

    parser.add_argument(
        flag, type=whole, default=default, metavar="N", help=f"{text} (%(default)s)"
    )


def run(measure: Callable[[], bool], *failures: type[Exception]) -> int:
    """Measures between two looks at how busy the machine is; SIGTERM cleans up too.

    Args:
        measure: Prints its figures; False when a goal was missed.
        failures: What it raises when something could not be measured.

    Returns:
        The exit status: 1 when a goal was missed, and, with one message, when it could not be measured.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(f"{machine.describe()}\nbefore: {machine.load()}\n", flush=True)
    try:
        met = measure()
    except failures as error:
        print(error, file=sys.stderr)
        return 1
    print(f"\nafter: {machine.load()}")
    return int(not met)
