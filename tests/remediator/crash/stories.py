"""One incident for each playbook, told by a world that outlives the remediator's process.

What a bench keeps in memory of cards, servers, managers and time is the world; it is pickled at the
moment of a death. Alertmanager is a part of it: it repeats what was not answered 202.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from remediator.config.secrets import read_or_create_key
from remediator.engine import retention
from remediator.errors import RemediatorError, StorageError
from remediator.store import Draft, Store
from remediator.store.transaction import Trail
from remediator.targets import Target
from tests.remediator.crash.preload import Shim
from tests.remediator.engine import fakes
from tests.remediator.engine.bench import KEY, Bench
from tests.remediator.engine.device_scene import RECOVERY, DeviceBench, FakeRelease, FakeReset
from tests.remediator.engine.hang_scene import Engine, Scene
from tests.remediator.engine.memory_scene import MemoryScene

_OF_THE_PROCESS = (
    "store", "world", "intake", "evaluator", "executor", "leases", "prober", "housekeeper",
    "playbooks", "counters", "config", "emergency",
)  # fmt: skip
_MOST_SECONDS = 1500
_REPEATS = 60.0


class AlertSource:
    """Fires while its condition holds; sends until it is answered, then repeats."""

    def __init__(self, alertname: str, condition: Callable[[Bench], bool], **target: str) -> None:
        self.alertname, self.condition, self.target = alertname, condition, target
        self.fires = False
        self.answered_at: float | None = None
        self.answers: list[str] = []
        self.unanswered = False

    def look(self, bench: Bench, shim: Shim) -> None:
        now, holds = bench.clock.now(), self.condition(bench)
        if holds != self.fires:
            self.fires, self.answered_at, self.unanswered = holds, None, True
        if self.fires and self.answered_at is not None and now - self.answered_at > _REPEATS:
            self.unanswered = True
        if self.unanswered:
            self._send(bench, now, shim)

    def _send(self, bench: Bench, now: float, shim: Shim) -> None:
        try:
            (bench.fire if self.fires else bench.resolve)(self.alertname, **self.target)
        except StorageError:
            return
        self.answered_at, self.unanswered = now, False
        self.answers.append("firing" if self.fires else "resolved")
        shim.step()

    @property
    def quiet(self) -> bool:
        return not self.fires and not self.unanswered


class Story:
    """An incident, and what must be true of it in the end."""

    name = ""
    most: ClassVar[dict[str, int]] = {}
    """How often each thing may be done at most, whatever happens."""
    ends = ("succeeded",)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bench = self.make(folder)
        self.sources = self.alerts()
        self.began = 0.0
        self.missed: list[str] = []

    def make(self, folder: Path) -> Bench:
        raise NotImplementedError

    def alerts(self) -> list[AlertSource]:
        raise NotImplementedError

    def wire(self) -> None:
        """The parts of a new process over the same world."""
        self.bench._wire()

    def prepare(self) -> None:
        """Everything up to the moment before the first alert."""
        self.begin()
        self.began = self.bench.clock.passed
        self.sleep()

    def begin(self) -> None:
        """What makes the alert fire."""

    def broken_by_the_outage(self) -> list[str]:
        """What must have been done although the disk never came back."""
        return []

    def untrue(self) -> list[str]:
        """What else must be true in the end, and is not."""
        return []

    def done(self) -> dict[str, int]:
        """How often each thing was done to the world."""
        found: dict[str, int] = {}
        for name, manager in self.bench.managers.items():
            for call in manager.calls:
                key = f"{call.split()[0]} {name}"
                found[key] = found.get(key, 0) + 1
        for write in self.bench.control.writes:
            key = f"write {write.milliwatts // 1000} W"
            found[key] = found.get(key, 0) + 1
        for driver in self.bench.drivers.values():
            for model in driver.unloads:
                found[f"unload {model}"] = found.get(f"unload {model}", 0) + 1
        return found

    # a life of a process

    def wake(self, folder: Path) -> None:
        """A new process begins over the same disk and the same world."""
        bench = self.bench
        bench.directory = self.folder = folder
        bench.config = bench.make_config(folder)
        beside = Trail.beside(folder)
        trail = Trail(beside.anchor, beside.segments, emergency=folder.parent)
        key = self.key(folder)
        # The real one, which waits for the disk: what it has not synced is lost here.
        bench.store = Store(folder, key, bench.clock, trail=trail)
        self.wire()
        bench.housekeeper.note_start()

    def key(self, folder: Path) -> bytes:
        return KEY

    def live(self, shim: Shim, *, until: Callable[[], bool], at_most: float | None = None) -> None:
        """Let every loop look once a second, as long as something is still to come."""
        clock = self.bench.clock
        end = at_most or clock.passed + _MOST_SECONDS
        while not until() and clock.passed < end:
            self.bench.clock.advance(1.0)
            for source in self.sources:
                source.look(self.bench, shim)
            for look in self.looks():
                with contextlib.suppress(RemediatorError):
                    look()

    def looks(self) -> list[Callable[[], object]]:
        bench = self.bench
        return [bench.act, bench.tick_leases, bench.tick_housekeeper, bench.tick_emergency]

    def over(self) -> bool:
        """Nothing is left to do: every alert is over and told, every run has ended, every knob is back."""
        if self.bench.clock.passed < self.began + 30 or not all(one.quiet for one in self.sources):
            return False
        with self.bench.store.reading() as tx:
            idle = not tx.runs.active() and not tx.leases.open_all()
            return idle and not any(one.ended_at is None for one in tx.episodes.open_all())

    def sleep(self) -> None:
        self.bench.store.close()


class CrashBench(Bench):
    """A bench that can be pickled, and be woken over another folder."""

    def __init__(self, directory: Path, **more: Any) -> None:
        self._more = more
        super().__init__(directory, **more)

    def make_config(self, directory: Path) -> Any:
        import dataclasses

        return dataclasses.replace(self._config_of, state_dir=directory)

    def _wire(self) -> None:
        self._config_of = self.config
        super()._wire()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in _OF_THE_PROCESS}


class CrashDeviceBench(DeviceBench):
    make_config = CrashBench.make_config
    __getstate__ = CrashBench.__getstate__

    def _wire(self) -> None:
        self._config_of = self.config
        super()._wire()


def _hot(above: float) -> Callable[[Bench], bool]:
    return lambda bench: bench.card.temperature > above


class ThrottleGpu(Story):
    name = "throttle-gpu"
    most: ClassVar = {"write 320 W": 1, "write 400 W": 1}

    def make(self, folder: Path) -> Bench:
        return CrashBench(folder)

    def alerts(self) -> list[AlertSource]:
        return [AlertSource("GPUTemperatureWarning", _hot(83))]

    def begin(self) -> None:
        card = self.bench.card
        card.heat_by_power(full=84.0, capped=76.0)
        self.bench.clock.at(self.bench.clock.passed + 40, lambda: setattr(card, "celsius", 70.0))


class CoolDown(Story):
    name = "cool-down"
    most: ClassVar = {"write 100 W": 1, "write 400 W": 1, "stop ollama": 1, "start ollama": 1}

    def make(self, folder: Path) -> Bench:
        return CrashBench(folder, services=("ollama",))

    def alerts(self) -> list[AlertSource]:
        return [AlertSource("GPUTemperatureCritical", _hot(85))]

    def begin(self) -> None:
        manager = self.bench.managers["ollama"]
        self.bench.card.celsius = lambda watts: (
            87.0 if manager.identity and manager.identity.pid == 1001 else 70.0
        )


class EmergencyStop(Story):
    name = "emergency-stop"
    most: ClassVar = {"stop ollama": 1}

    def make(self, folder: Path) -> Bench:
        return CrashBench(folder, services=("ollama",))

    def alerts(self) -> list[AlertSource]:
        return [AlertSource("GPUTemperatureShutdown", _hot(90))]

    def begin(self) -> None:
        manager = self.bench.managers["ollama"]
        self.bench.card.celsius = lambda watts: 91.0 if manager.identity else 70.0

    def broken_by_the_outage(self) -> list[str]:
        runs = self.bench.managers["ollama"].identity is not None
        return ["a stop for heat waited for the disk"] if runs else []


class ClearCache(Story):
    name = "clear-cache"
    # Harmless to repeat: it is gone already the second time.
    most: ClassVar = {"unload old": 2}

    def make(self, folder: Path) -> Bench:
        bench = CrashBench(folder, services=("ollama",))
        self.scene = MemoryScene(bench)
        bench.drivers["ollama"].can_unload = True
        return bench

    def alerts(self) -> list[AlertSource]:
        full = 36 * 2**30
        return [AlertSource("GPUMemoryWarning", lambda bench: bench.card.memory_used > full)]

    def begin(self) -> None:
        self.scene.holds("ollama", old=17, new=20)


class ResetSession(ClearCache):
    name = "reset-session"
    most: ClassVar = {"stop ollama": 1, "start ollama": 1}

    def alerts(self) -> list[AlertSource]:
        full = 38 * 2**30
        return [AlertSource("GPUMemoryCritical", lambda bench: bench.card.memory_used > full)]

    def begin(self) -> None:
        self.scene.holds("ollama", llama=16, qwen=8)
        self.scene.learn()
        self.scene.leak("ollama", 15)


class _Scene(Scene):
    """Its looks survive a store that fails, as the prober's own loop does."""

    def _look(self) -> None:
        for service in self.bench.world.services.values():
            with contextlib.suppress(RemediatorError):
                self.bench.prober.probe(service)
        self.at(5.0, self._look)


class RecoverHang(Story):
    name = "recover-hang"
    most: ClassVar = {"stop vllm": 1, "start vllm": 1}

    def make(self, folder: Path) -> Bench:
        bench = CrashBench(folder, services=("vllm",))
        self.scene = _Scene(bench)
        return bench

    def wire(self) -> None:
        self.scene.wire()

    def alerts(self) -> list[AlertSource]:
        return [
            AlertSource(
                "LLMServiceStalled", lambda bench: bench.drivers["vllm"].stuck, service="vllm"
            )
        ]

    def begin(self) -> None:
        self.bench.clock.advance(30)
        self.scene.engine.stuck, self.scene.engine.waiting = True, 3


class RecoverOom(Story):
    name = "recover-oom"
    most: ClassVar = {"start ollama": 1}

    def make(self, folder: Path) -> Bench:
        bench = CrashBench(folder, services=("ollama",))
        bench.drivers["ollama"].models = {"llama3:8b"}
        bench.prober.probe(bench.world.services["ollama"])
        return bench

    def alerts(self) -> list[AlertSource]:
        return [
            AlertSource(
                "LLMServiceDown",
                lambda bench: bench.managers["ollama"].identity is None,
                service="ollama",
            )
        ]

    def begin(self) -> None:
        self.bench.managers["ollama"].die()


class DeviceFault(Story):
    name = "device-fault"
    most: ClassVar = {"stop ollama": 1, "start ollama": 1, "reset": 1}
    ends = ("succeeded", "ambiguous", "failed")

    def make(self, folder: Path) -> Bench:
        bench = CrashDeviceBench(folder)
        bench.drivers["ollama"].models = {"llama"}
        bench.prober.probe(bench.world.services["ollama"])
        return bench

    def alerts(self) -> list[AlertSource]:
        return [
            AlertSource(RECOVERY, lambda bench: bench.card.recovery_action not in ("none", None))
        ]

    def begin(self) -> None:
        self.bench.card.recovery_action = "reset"

    def done(self) -> dict[str, int]:
        return super().done() | {"reset": len(self.bench.reset.resets)}


class FirstStart(ThrottleGpu):
    """A machine on which there is nothing yet: the key, the database and its tables come first."""

    name = "first start"

    def prepare(self) -> None:
        super().prepare()
        for path in self.folder.iterdir():
            path.unlink()

    def key(self, folder: Path) -> bytes:
        return read_or_create_key(folder / "audit.key")


class Retention(ThrottleGpu):
    """What is older than 400 days moves into a segment at the start."""

    name = "retention"

    def begin(self) -> None:
        for number in range(60):
            with self.bench.store.transaction() as tx:
                tx.audit(Draft("decision", f"sentence {number}"))
            self.bench.clock.advance(10 * 86400.0)
        super().begin()


class Forgetting(ThrottleGpu):
    """Runs of long ago, and what belongs to them, are forgotten in several batches at the start."""

    name = "forgetting"
    runs = 10

    def wire(self) -> None:
        retention._RUNS_AT_ONCE = 4
        self.woke = self.bench.clock.passed
        super().wire()

    def over(self) -> bool:
        # One batch at a look, also where a disk that is well again leaves nothing else to do.
        return self.bench.clock.passed > self.woke + 10 and super().over()

    def begin(self) -> None:
        target, now = Target("gpu", self.bench.uuids[0]), self.bench.clock.now()
        power: Any = {"uuid": target.name, "knob": "power_limit", "control": "fake"}
        old: Any = {"playbook": "throttle-gpu", "weight": 10, "trigger": "Old", "target": target}
        for number in range(1, self.runs + 1):
            with self.bench.store.transaction() as tx:
                tx.episodes.record_delivery(now, str(number), "r", 1, 0)
                run = tx.runs.create(
                    episode_id=None, locks=(), state="running", plan=[], now=now, expires_at=None,
                    boot_id="before", **old,
                )  # fmt: skip
                assert run is not None
                tx.approvals.ask(run.id, {}, {})
                step: Any = {"rung": 0, "action": "cap_power", "gpu": target.name, "service": None}
                tx.runs.intend(run.id, 0, intent={}, sentence="", now=now, boot_id="before", **step)
                tx.runs.finish_step(run.id, 0, "done", {}, "", now)
                lease = tx.leases.take(original=1, value=2, run_id=run.id, now=now, **power)
                tx.leases.end(lease.id, "restored", "", now)
                tx.set_meta(f"left_down:{run.id}:ollama", "told")
                tx.set_meta(f"flapping:{lease.id}", "paged")
                tx.runs.end(run.id, "succeeded", "x", "", now)
        self.bench.clock.advance(401 * 86400.0)
        super().begin()

    def untrue(self) -> list[str]:
        left = [run.id for run in self.bench.runs if run.trigger == "Old"]
        # Where the disk failed for so long that nothing came after it, the newest is kept.
        kept = [self.runs] if self.bench.runs[-1].id == self.runs else []
        told = sum(record["data"]["runs"] for record in self.bench.events("runs_forgotten"))
        with self.bench.store.reading() as tx:
            rows = {
                table: tx._db.execute(f"SELECT count(*) FROM {table} WHERE {old}").fetchone()[0]
                for table, old in (
                    ("steps", f"run_id < {self.runs}"),
                    ("approvals", f"run_id < {self.runs}"),
                    ("leases", f"id < {self.runs}"),
                    ("deliveries", f"id <= {self.runs}"),
                    ("meta", "key LIKE 'left_down:_:%' OR key LIKE 'flapping:_'"),
                )
            }
        found = [f"{count} row(s) of {table} are left" for table, count in rows.items() if count]
        if left != kept or told != self.runs - len(kept):
            found.append(f"runs {left} are left of {self.runs}, {told} are said to be forgotten")
        return found


STORIES: dict[str, type[Story]] = {
    one.name: one
    for one in (
        ThrottleGpu, CoolDown, EmergencyStop, ClearCache, ResetSession, RecoverHang, RecoverOom,
        DeviceFault, FirstStart, Retention, Forgetting,
    )
}  # fmt: skip

_DOES = (
    (fakes.FakeManager, ("stop", "start")),
    (fakes.FakeDriver, ("load", "unload", "canary")),
    (Engine, ("canary",)),
    (fakes.FakeControl, ("set_power_limit",)),
    (FakeReset, ("reset",)),
    (FakeRelease, ("let_go", "give_back")),
)


def mark_steps(shim: Shim) -> None:
    """Make the moments before and after each thing that is done to the world points, too."""
    for cls, names in _DOES:
        for name in names:
            setattr(cls, name, _marked(getattr(cls, name), shim))


def _marked(method: Callable[..., Any], shim: Shim) -> Callable[..., Any]:
    def marked(self: Any, *arguments: Any) -> Any:
        shim.step()
        result = method(self, *arguments)
        shim.step()
        return result

    marked.__qualname__, marked.__module__ = method.__qualname__, method.__module__
    marked.__name__ = method.__name__
    return marked
