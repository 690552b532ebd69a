"""Servers that really run out of memory, with the whole remediator at work: real time, real processes."""

from __future__ import annotations

import contextlib
import os
import urllib.error
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from remediator.alertmanager import Alert, Notification
from remediator.app import Remediator, build
from remediator.clock import SystemClock
from remediator.config import Config
from remediator.config.strict import build as from_raw
from remediator.degraded import degraded_since
from remediator.first_requests import answer_seconds, warm_up_seconds
from remediator.oom_events import ENDED, events_of
from remediator.store import Run, Store
from tests.remediator.engine.hungry_server import MODEL, TOO_MUCH
from tests.remediator.engine.processes import PYTHON, call, end, free_port
from tests.waiting import poll

SERVER = str(Path(__file__).with_name("hungry_server.py"))
MEMORY = Path("/sys/fs/cgroup/memory")
LIMIT = 64 * 2**20
STEPS = [
    {"action": "settle", "seconds": "200ms"},
    {"action": "check", "signal": "out_of_memory"},
    {"action": "lower_load", "after": 1},
    {"action": "restart_service"},
    {"action": "wait_ready", "within": "20s"},
    {"action": "load_models"},
    {"action": "canary"},
]
RUNG = {"steps": STEPS, "verify": {"signal": "service_down"}, "within": "20s"}


class Live:
    """The remediator with all its threads, over one server that a plain process is."""

    driver = "vllm"

    def __init__(
        self, folder: Path, how: list[str], degraded: list[str] | None = None, **service: Any
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        raw = {
            "state_dir": str(folder / "state"),
            "mode": "auto",
            "allow": ["service_restart"],
            "exporter": {"url": f"http://127.0.0.1:{free_port()}"},
            "gpus": {"control": "none"},
            "playbooks": {"recover-oom": {"rungs": [RUNG]}},
            "timing": {"probe_interval": "100ms", "settling": "1ms"},
            "limits": {"cooldown": "0s", "breaker_relapses": 10},
            "services": [
                {
                    "name": "llm",
                    "driver": self.driver,
                    "endpoint": self.url,
                    "manager": self.process(*how),
                    **service,
                    **({"degraded": self.process(*degraded)} if degraded else {}),
                }
            ],
        }
        clock = SystemClock()
        self.config = from_raw(Config, raw, "")
        self.store = Store(self.config.state_dir, b"k" * 64, clock)
        self.remediator: Remediator = build(self.config, clock, self.store)

    def process(self, *how: str) -> dict[str, Any]:
        command = [PYTHON, "-IS", SERVER, str(self.port), *how]
        return {"type": "process", "command": command, "log_file": str(self.folder / "log")}

    def begin(self, *, ready: bool = True) -> None:
        self.remediator.worker.start()
        # So that the log is read from before its first line.
        poll(lambda: "llm" in self.remediator.logs.readable)
        self.manager.start(5)
        if ready:
            poll(lambda: self.known().models == (MODEL,))

    @property
    def manager(self) -> Any:
        return self.remediator.world.services["llm"].manager

    def known(self) -> Any:
        with self.store.reading() as tx:
            return tx.inventory.service("llm")

    def loaded(self) -> list[str]:
        """What the server itself says that it has loaded."""
        probe = self.remediator.world.services["llm"].driver.probe()
        return [model.name for model in probe.models]

    @property
    def reasons(self) -> list[str]:
        with self.store.reading() as tx:
            return [event.reason for event in events_of(tx, "llm")]

    def ask(self, tokens: int) -> Any:
        body = {"model": MODEL, "prompt": "ping", "max_tokens": tokens}
        return call(f"{self.url}/v1/completions", body)

    def fire(self) -> None:
        """Alertmanager says that it is down."""
        labels = {"alertname": "LLMServiceDown", "llm_service": "llm", "job": "gpu-remediator"}
        now = SystemClock().now()
        alert = Alert("00000000000000aa", "firing", labels, {}, now, None)
        self.remediator.intake.accept(Notification("remediator", "", 0, (alert,), str(now)))
        self.remediator.worker.nudge()

    def ended(self) -> Run:
        def over() -> list[Run]:
            with self.store.reading() as tx:
                return [run for run in tx.runs.latest(100) if run.ended_at is not None]

        return poll(over)[0]  # type: ignore[index]

    @property
    def audit(self) -> list[dict[str, Any]]:
        with self.store.reading() as tx:
            return [dict(one.record) for one in tx.audit_records(limit=10_000)]

    def sentences(self, event: str) -> list[str]:
        return [one["sentence"] for one in self.audit if one["event"] == event]

    def close(self) -> None:
        self.remediator.worker.stop()
        identity = self.manager.status().identity
        if identity is not None:
            end(identity.pid)
            poll(lambda: self.manager.status().state == "exited")
        self.store.close()


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Callable[..., Live]]:
    made: list[Live] = []

    def make(how: list[str], **service: Any) -> Live:
        made.append(Live(tmp_path, how, **service))
        made[-1].begin()
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup with a limit, where this machine lets us have one."""
    second = not (MEMORY / "memory.limit_in_bytes").exists()
    folder = (MEMORY.parent if second else MEMORY) / f"hungry-{uuid.uuid4().hex[:8]}"
    limits = (
        {"memory.max": LIMIT, "memory.swap.max": 0} if second else {"memory.limit_in_bytes": LIMIT}
    )
    try:
        folder.mkdir()
        for name, value in limits.items():
            (folder / name).write_text(str(value))
    except OSError as error:
        with contextlib.suppress(OSError):
            folder.rmdir()
        pytest.skip(f"a real kill by a memory cgroup was NOT tried: {error}")
    yield folder
    poll(lambda: not (folder / "cgroup.procs").read_text().split())
    folder.rmdir()


def retried(one: Live) -> list[str]:
    """What a client that tries again and again hears until it is answered."""
    heard: list[str] = []

    def answered() -> bool:
        try:
            return bool(one.ask(1)["choices"])
        except urllib.error.HTTPError as error:
            heard.append(f"HTTP {error.code}")
        except OSError as error:
            heard.append(type(getattr(error, "reason", error)).__name__)
        return False

    poll(answered)
    return heard


def test_one_whose_own_allocation_fails_is_known_for_that_and_recovered(
    live: Callable[..., Live],
) -> None:
    one = live(["limit", str(2**30)])
    with pytest.raises(urllib.error.HTTPError, match="500"):
        one.ask(TOO_MUCH)
    poll(lambda: one.reasons == [ENDED])
    one.fire()
    heard = retried(one)
    assert set(heard) <= {"ConnectionRefusedError"}
    run = one.ended()
    assert (run.playbook, run.state) == ("recover-oom", "succeeded")
    (said,) = one.sentences("out_of_memory")
    assert said == "llm ran out of memory: its log says the host's memory: MemoryError"
    decision = next(one for one in one.sentences("decision") if "recover-oom acts" in one)
    assert "it ran out of the host's memory: MemoryError" in decision
    with one.store.reading() as tx:
        steps = {step.action: step.state for step in tx.runs.steps(run.id)}
        assert warm_up_seconds(tx, "llm") is not None
        assert answer_seconds(tx, "llm") is not None
    assert (steps["load_models"], steps["canary"]) == ("done", "done")
    advice = (
        "to end it, give it more of the host's memory, or start it with --gpu-memory-utilization"
    )
    assert any(advice in said for said in one.sentences("step_finished")), "none is configured"
    assert one.known().out_of_memory == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="a kill by a memory cgroup NOT tried: needs root")
def test_one_that_the_kernel_kills_for_its_cgroup_is_known_for_that_and_recovered(
    cgroup: Path, live: Callable[..., Live]
) -> None:
    one = live(["cgroup", str(cgroup)])
    with pytest.raises(OSError, match=r"closed|reset"):
        one.ask(TOO_MUCH)
    poll(lambda: one.known().out_of_memory)
    one.fire()
    assert set(retried(one)) <= {"ConnectionRefusedError"}
    run = one.ended()
    assert (run.playbook, run.state) == ("recover-oom", "succeeded")
    with one.store.reading() as tx:
        steps = {step.action: step.state for step in tx.runs.steps(run.id)}
    assert (steps["load_models"], steps["canary"]) == ("done", "done")
    assert one.loaded() == [MODEL]
    (said,) = one.sentences("out_of_memory")
    assert "the kernel killed its process" in said
    assert one.known().out_of_memory == 1


def test_one_that_keeps_at_it_is_started_with_less_load_and_then_holds(
    live: Callable[..., Live],
) -> None:
    one = live(["limit", str(2**30)], degraded=["limit", str(2**30), "small"])
    with pytest.raises(urllib.error.HTTPError, match="500"):
        one.ask(TOO_MUCH)
    poll(lambda: one.reasons == [ENDED])
    one.fire()
    assert one.ended().state == "succeeded"
    with pytest.raises(urllib.error.HTTPError, match="400"):
        one.ask(TOO_MUCH)
    assert one.ask(1)["choices"]
    status = one.manager.status()
    assert status.running
    assert status.detail.startswith("with less load (llm)")
    with one.store.reading() as tx:
        assert degraded_since(tx, "llm") is not None

    # Who starts it as usual takes that back.
    one.manager.stop(None, 10)
    one.manager._usual.start(5)
    poll(lambda: one.manager.status().running)
    with one.store.reading() as tx:
        assert degraded_since(tx, "llm") is None
