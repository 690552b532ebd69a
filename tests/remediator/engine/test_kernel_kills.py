"""The kernel log as evidence: whose death it proves, and whose it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from remediator.engine.kernel_kills import Machine
from remediator.engine.oom_watch import OutOfMemoryWatch
from remediator.engine.prober import Prober
from remediator.errors import NoEvidence
from remediator.host_reading import HostReading, parse_host
from remediator.managers import ProcessIdentity, ProcessStatus
from tests.remediator.engine.bench import Bench

Make = Callable[..., Bench]
EVERY = 5.0


class Scene:
    """One service whose manager does not know how its process ends; a machine; its kernel log."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.clock = bench.clock
        self.manager = bench.managers["ollama"]
        self.manager.status = self._status  # type: ignore[method-assign]
        self.manager_says: bool | None = None
        self.boot, self.first_namespace = "boot-1", True
        self.processes: dict[int, float] = {}
        self.log: dict[str, Any] | None = {"boot_id": "boot-1", "lost": 0, "kills": []}
        self.silent, self.asked = False, 0
        bench.gpus.host = self._host  # type: ignore[method-assign]
        self.runs(self.manager.identity)
        self.begin()

    def begin(self) -> None:
        """The remediator is started, or started again: nothing but its store remembers."""
        machine = Machine(lambda: self.boot, lambda: self.first_namespace, self.processes.get)
        watch = OutOfMemoryWatch(self.bench.world, machine)
        self.prober = Prober(self.bench.world, (watch,))

    def runs(self, identity: ProcessIdentity | None) -> None:
        self.manager.identity = identity
        if identity is not None:
            self.processes[identity.pid] = identity.started_at

    def dies(self) -> ProcessIdentity:
        gone = self.manager.identity
        assert gone is not None
        self.manager.die()
        del self.processes[gone.pid]
        return gone

    def logs(self, pid: int, ago: float = 0.0, **more: Any) -> None:
        assert self.log is not None
        kill = {
            "timestamp": self.clock.now() - ago,
            "sequence": 442 + len(self.log["kills"]),
            "pid": pid,
            "process": "ollama",
            "constraint": "cgroup",
            "unit": "ollama.service",
        }
        self.log["kills"].append(kill | more)

    def look(self, times: int = 1) -> int:
        """Look so often, and say how many were counted by now."""
        for _ in range(times):
            self.clock.advance(EVERY)
            self.prober.probe(self.bench.world.services["ollama"])
        with self.bench.store.reading() as tx:
            return tx.inventory.service("ollama").out_of_memory

    @property
    def records(self) -> list[dict[str, Any]]:
        return self.bench.events("out_of_memory")

    def _status(self) -> ProcessStatus:
        said = type(self.manager).status(self.manager)
        return replace(said, oom_killed=self.manager_says)

    def _host(self) -> HostReading:
        self.asked += 1
        if self.silent:
            raise NoEvidence("the exporter did not answer")
        return parse_host({"oom_kill_log": self.log})


@pytest.fixture
def scene(make_bench: Make) -> Scene:
    return Scene(make_bench(services=("ollama",)))


def test_the_process_that_the_log_names_was_killed_for_memory(scene: Scene) -> None:
    assert scene.look(3) == 0
    assert scene.asked == 0, "while it runs nobody is asked"
    scene.clock.advance(2)
    gone = scene.dies()
    scene.logs(gone.pid)
    assert scene.look(5) == 1
    (record,) = scene.records
    assert record["reason"] == "killed"
    assert record["sentence"] == (
        f"ollama ran out of memory: the kernel killed its process (pid {gone.pid}) at the limit of "
        "its cgroup 5s ago, says the kernel log (exited)"
    )
    assert record["data"]["victim"] == gone.to_json()
    assert record["data"]["kernel_log"] == {
        "at": pytest.approx(scene.clock.now() - 5 * EVERY),
        "age": 5.0,
        "pid": gone.pid,
        "process": "ollama",
        "constraint": "cgroup",
        "unit": "ollama.service",
        "sequence": 442,
    }


@pytest.mark.parametrize(
    ("constraint", "said"),
    [("host", " for want of the host's memory "), (None, " for memory "), ("x", " for memory ")],
)
def test_whose_memory_ran_out_is_said_where_it_is_known(
    scene: Scene, constraint: str | None, said: str
) -> None:
    scene.look()
    scene.logs(scene.dies().pid, constraint=constraint)
    assert scene.look() == 1
    assert said in scene.records[0]["sentence"]


def test_a_line_that_is_read_a_moment_later_still_counts(scene: Scene) -> None:
    scene.look()
    gone = scene.dies()
    assert scene.look(2) == 0
    scene.logs(gone.pid, ago=2 * EVERY)
    assert scene.look() == 1


def test_after_a_while_nobody_is_asked_any_more(scene: Scene) -> None:
    scene.look()
    scene.dies()
    scene.look(20)
    assert scene.asked == 7, "for 30 s"


@pytest.mark.parametrize(
    ("ago", "counts"),
    [
        pytest.param(0.0, True, id="since it was last seen"),
        pytest.param(8.0, True, id="while it was ending"),
        pytest.param(12.0, False, id="it was seen alive long after"),
        pytest.param(3000.0, False, id="before it began"),
    ],
)
def test_the_time_of_the_line_must_fit(scene: Scene, ago: float, counts: bool) -> None:
    scene.look(4)
    scene.logs(scene.dies().pid, ago=ago)
    assert scene.look(3) == counts


def test_a_line_of_before_its_start_is_of_another_process_with_that_pid(scene: Scene) -> None:
    scene.logs(4711, ago=1.5)
    scene.runs(ProcessIdentity(4711, scene.clock.now()))
    scene.look()
    scene.dies()
    assert scene.look(3) == 0


def test_a_line_of_after_its_end_is_of_another_process_with_that_pid(scene: Scene) -> None:
    scene.look()
    gone = scene.dies()
    scene.look()
    scene.clock.advance(3)
    scene.logs(gone.pid)
    assert scene.look(3) == 0


@pytest.mark.parametrize(("began_after", "counts"), [(-1.0, False), (0.0, False), (1.0, True)])
def test_a_pid_that_is_anothers_by_now_counts_only_if_it_was_not_yet(
    scene: Scene, began_after: float, counts: bool
) -> None:
    scene.runs(ProcessIdentity(4711, scene.clock.now() - 900))
    scene.look()
    scene.clock.advance(3)
    scene.logs(scene.dies().pid)
    scene.processes[4711] = scene.clock.now() + began_after
    assert scene.look(3) == counts


def test_one_that_is_not_reaped_yet_is_itself(scene: Scene) -> None:
    scene.look()
    gone = scene.dies()
    scene.processes[gone.pid] = gone.started_at
    scene.logs(gone.pid)
    assert scene.look() == 1


def test_a_name_or_a_unit_alone_proves_nothing(scene: Scene) -> None:
    scene.look()
    scene.logs(scene.dies().pid + 1, process="ollama", unit="ollama.service")
    assert scene.look(3) == 0


def _silent(scene: Scene) -> None:
    scene.silent = True


def _no_log(scene: Scene) -> None:
    scene.log = None


def _another_machine(scene: Scene) -> None:
    assert scene.log is not None
    scene.log["boot_id"] = "boot-of-another"


def _nameless_boots(scene: Scene) -> None:
    assert scene.log is not None
    scene.boot = scene.log["boot_id"] = ""


def _other_pids(scene: Scene) -> None:
    scene.first_namespace = False


def _not_there(scene: Scene) -> None:
    """As of a supervisord in a container: the pid is another process's here."""
    scene.processes = {pid: at - 60 for pid, at in scene.processes.items()}
    scene.begin()


def _manager_knows_better(scene: Scene) -> None:
    scene.manager_says = False


@pytest.mark.parametrize(
    "spoil",
    [
        *(_silent, _no_log, _another_machine, _nameless_boots),
        *(_other_pids, _not_there, _manager_knows_better),
    ],
)
def test_where_it_cannot_be_told_nothing_is_claimed(
    scene: Scene, spoil: Callable[[Scene], None]
) -> None:
    spoil(scene)
    scene.look()
    gone = scene.manager.identity
    assert gone is not None
    scene.manager.die()
    scene.processes.pop(gone.pid)
    if scene.log is not None:
        scene.logs(gone.pid)
    assert scene.look(4) == 0
    assert scene.records == []


@pytest.mark.parametrize(
    "log",
    [
        [],
        {"boot_id": "boot-1"},
        {"boot_id": "boot-1", "kills": {}},
        {"boot_id": 1, "kills": []},
        {"boot_id": "boot-1", "kills": [None, 5, {}, {"pid": "x"}, {"pid": 1, "timestamp": "x"}]},
        {"boot_id": "boot-1", "kills": [{"pid": True, "timestamp": 1e400, "sequence": 1}]},
    ],
)
def test_an_answer_that_is_none_changes_nothing(scene: Scene, log: Any) -> None:
    scene.look()
    scene.dies()
    scene.log = log
    assert scene.look(3) == 0


def test_what_a_process_calls_itself_is_bounded() -> None:
    kill = {"pid": 1, "timestamp": 5.0, "sequence": 1, "process": "x" * 9999, "unit": ["y"]}
    log = parse_host({"oom_kill_log": {"boot_id": "b", "kills": [kill] * 999}}).oom_kill_log
    assert log is not None
    assert len(log.kills) == 64
    assert (len(log.kills[0].process), log.kills[0].unit) == (256, "")


def test_where_the_manager_says_so_itself_it_is_counted_once_and_nobody_is_asked(
    scene: Scene,
) -> None:
    scene.look()
    scene.logs(scene.dies().pid)
    scene.manager_says = True
    assert scene.look(3) == 1
    assert "kernel_log" not in scene.records[0]["data"]
    scene.manager_says = None
    assert scene.look(3) == 1
    assert scene.asked == 0


def test_one_that_its_manager_replaced_between_two_looks_is_known_too(scene: Scene) -> None:
    scene.look()
    gone = scene.dies()
    scene.logs(gone.pid)
    scene.runs(ProcessIdentity(gone.pid + 1, scene.clock.now() + 1))
    assert scene.look(9) == 1
    assert scene.records[0]["data"]["victim"]["pid"] == gone.pid
    second = scene.dies()
    scene.logs(second.pid)
    assert scene.look(2) == 2


def test_one_that_died_while_the_remediator_was_away_is_known_by_what_it_kept(scene: Scene) -> None:
    scene.look(30)
    gone = scene.dies()
    scene.logs(gone.pid)
    scene.clock.advance(300)
    scene.begin()
    assert scene.look(3) == 1
    scene.begin()
    assert scene.look(3) == 1, "once"


def test_a_line_of_before_it_was_last_seen_is_none_of_it_after_a_restart_either(
    scene: Scene,
) -> None:
    scene.look(30)
    gone = scene.dies()
    scene.logs(gone.pid, ago=80)
    scene.clock.advance(5)
    scene.begin()
    assert scene.look(3) == 0


def test_what_died_too_long_ago_is_not_counted_any_more(scene: Scene) -> None:
    scene.look()
    scene.logs(scene.dies().pid)
    scene.clock.advance(601)
    scene.begin()
    assert scene.look(3) == 0


def test_a_pid_of_an_earlier_boot_is_nobodys(scene: Scene) -> None:
    scene.look()
    gone = scene.dies()
    scene.boot = "boot-2"
    scene.log = {"boot_id": "boot-2", "kills": []}
    scene.clock.advance(60)
    scene.begin()
    scene.logs(gone.pid)
    assert scene.look(3) == 0


def test_that_it_lives_is_kept_once_a_minute_and_not_with_every_look(scene: Scene) -> None:
    scene.look(2)
    before = scene.bench.disk.transactions
    scene.look(24)
    assert scene.bench.disk.transactions - before <= 3


def test_one_that_its_manager_lost_sight_of_goes_on(scene: Scene) -> None:
    scene.look()
    identity = scene.manager.identity
    assert identity is not None
    scene.manager.die()
    scene.look()
    scene.runs(identity)
    scene.look(10)
    scene.logs(scene.dies().pid)
    assert scene.look(2) == 1
