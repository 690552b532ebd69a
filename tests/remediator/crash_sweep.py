"""Kills, tears and fails a remediator at every point of an incident of each playbook, and looks what is left.

    python -m tests.remediator.crash_sweep [--every K | --points N] [--story NAME]… [--way NAME]…

A point is each write, sync and rename below the state directory, and the moment before and after
each thing that is done to a card, a server or a process. For each point the process is a real one
that dies by SIGKILL (or whose call fails); the world, which is in memory, outlives it. A second
process then takes over, and brings everything to its end; `checks.py` says what must be true then.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from remediator.errors import RemediatorError
from tests.remediator.crash import checks, frozen, stories
from tests.remediator.crash.preload import WAYS, Shim, Way, build, preloaded
from tests.remediator.crash.stories import Story
from tests.remediator.engine import bench

# So long (seconds of the story) a disk that does not come back is lived with.
_OUTAGE = 240.0
_FOLDERS = (Path("/dev/shm"), Path(tempfile.gettempdir()))


def main() -> int:
    arguments = _arguments()
    with tempfile.TemporaryDirectory(
        dir=next(f for f in _FOLDERS if os.access(f, os.W_OK))
    ) as name:
        if "CRASH_SHIM" not in os.environ:
            argv = ["-m", "tests.remediator.crash_sweep", *sys.argv[1:]]
            return preloaded(build(Path(name)), argv).returncode
        return Sweep(Path(name), arguments).run()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="crash_sweep", description=__doc__.split("\n")[0])
    parser.add_argument("--every", type=int, default=1, help="only each so manieth point")
    parser.add_argument("--points", type=int, help="so many of each story and way, spread evenly")
    parser.add_argument("--only", type=int, help="this very point")
    parser.add_argument("--story", action="append", choices=list(stories.STORIES))
    parser.add_argument("--way", action="append", choices=list(WAYS))
    return parser.parse_args()


class Sweep:
    """Every point of every story, in every way."""

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        logging.disable(logging.CRITICAL)
        self._template, self._world = folder / "template", folder / "world"
        self._state, self._after = folder / "state", folder / "after"
        self._answer = folder / "answer"
        self._arguments = arguments
        self._shim = Shim()
        stories.mark_steps(self._shim)
        _read_playbooks_once()
        self._points: Counter[tuple[str, str]] = Counter()
        self._ends: Counter[tuple[str, str]] = Counter()
        self._broken: list[str] = []

    def run(self) -> int:
        """Everything that was asked for; 0 when every promise was kept."""
        names = self._arguments.story or list(stories.STORIES)
        ways = [WAYS[name] for name in self._arguments.way or WAYS]
        gc.collect()
        gc.freeze()
        begun = time.monotonic()
        for name in names:
            _remove(self._template, self._world)
            _in_a_child(partial(self._prepare, name))
            for way in ways:
                self._sweep(name, way)
        self._table(names, ways, time.monotonic() - begun)
        return 1 if self._broken else 0

    def _prepare(self, name: str) -> None:
        """The story up to its beginning: the disk and the world from which every life starts."""
        story = stories.STORIES[name](self._template)
        story.prepare()
        self._world.write_bytes(frozen.dumps(story))

    def _sweep(self, name: str, way: Way) -> None:
        total = self._result(partial(self._count, way))
        for number in self._chosen(total):
            said = self._point(way, number)
            self._points[name, way.name] += 1
            self._ends[name, said["end"]] += 1
            for problem in said["problems"]:
                line = f"{name}, {way.name} at {number} of {total}: {problem}"
                self._broken.append(line)
                print(f"BROKEN: {line}", flush=True)

    def _chosen(self, total: int) -> Sequence[int]:
        if self._arguments.only:
            return [self._arguments.only]
        every = self._arguments.every
        if self._arguments.points:
            every = max(1, total // self._arguments.points)
        return range(1 + (every - 1) // 2, total + 1, every)

    def _count(self, way: Way) -> int:
        """How many points there are."""
        story = self._first_life(way, 2**40)
        story.sleep()
        return self._shim.count(way)

    def _point(self, way: Way, number: int) -> Any:
        """One life up to the point, and the one after it."""
        _remove(self._state, self._after, self._state.with_name("emergency.jsonl"))
        status = _in_a_child(partial(self._first_life, way, number))
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        if way.kills != killed:
            return {"end": "not reached", "problems": [f"the first life ended with {status}"]}
        return self._result(self._second_life)

    def _first_life(self, way: Way, number: int) -> Story:
        shutil.copytree(self._template, self._state)
        story: Story = frozen.loads(self._world.read_bytes())

        def dying() -> None:
            self._after.write_bytes(frozen.dumps(story))

        self._shim.arm(self._state, way, number, dying)
        try:
            story.wake(self._state)
        except RemediatorError:
            # It does not start. Whoever starts it again comes when the disk is well.
            self._shim.disarm()
        else:
            lasts = story.bench.clock.passed + _OUTAGE if way.lasting else None
            story.live(self._shim, until=story.over, at_most=lasts)
            self._shim.disarm()
            story.missed = story.broken_by_the_outage() if lasts else []
        dying()
        return story

    def _second_life(self) -> dict[str, object]:
        story: Story = frozen.loads(self._after.read_bytes())
        story.wake(self._state)
        story.live(self._shim, until=story.over)
        runs = ", ".join(sorted(run.state for run in story.bench.runs)) or "no run"
        found = [*story.missed, *checks.problems(story)]
        story.sleep()
        return {"end": runs, "problems": found}

    def _result(self, work: Callable[[], object]) -> Any:
        """What `work` returns in a child."""
        _remove(self._answer)
        if work != self._second_life:
            _remove(self._state, self._after, self._state.with_name("emergency.jsonl"))
        status = _in_a_child(lambda: self._answer.write_text(json.dumps(work())))
        if status != 0:
            return {"end": "broken", "problems": ["the second life itself failed"]}
        return json.loads(self._answer.read_text())

    def _table(self, names: list[str], ways: list[Way], seconds: float) -> None:
        print("| playbook | " + " | ".join(way.name for way in ways) + " | ends |")
        print("|---|" + "---|" * (len(ways) + 1))
        for name in names:
            counts = " | ".join(str(self._points[name, way.name]) for way in ways)
            ends = "; ".join(
                f"{end}: {count}"
                for (story, end), count in sorted(self._ends.items())
                if story == name
            )
            print(f"| `{name}` | {counts} | {ends} |")
        total = sum(self._points.values())
        print(f"{total} points, {len(self._broken)} broken promises, {seconds:.0f} s")


def _in_a_child(work: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:  # noqa: BLE001 - whatever it is, this process ends here
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1]


def _remove(*paths: Path) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)


def _read_playbooks_once() -> None:
    """Reading YAML would take longer than everything else of a life."""
    known, load = {}, bench.load

    def remembered(raw: object) -> object:
        key = repr(raw)
        if key not in known:
            known[key] = load(raw)
        return known[key]

    bench.load = remembered
    remembered({})


if __name__ == "__main__":
    sys.exit(main())
