"""Services that ran out of memory: what is counted, what is restarted for it, and what is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from remediator.engine.oom_watch import OutOfMemoryWatch
from remediator.engine.prober import Prober
from remediator.errors import ManagerError, ServiceError, ServiceTimeout, StorageError
from remediator.managers import ProcessStatus
from remediator.metrics import RemediatorCollector
from remediator.services import ServiceProbe
from remediator.signals import Finding, create
from remediator.store.inventory import OPERATOR
from remediator.targets import Target
from tests.remediator.engine.bench import Bench
from tests.remediator.engine.fakes import FakeDriver

ALERT, DOWN = "LLMServiceOutOfMemory", "LLMServiceDown"
OLLAMA = Target("service", "ollama")
NO_MEMORY = "the canary failed (HTTP 500): CUDA error: out of memory"
NO_MEMORY_AT_LOAD = "llama-server reported out-of-memory during startup: cudaMalloc failed"
BAD_CARD = "the canary failed (HTTP 500): CUDA error: uncorrectable ECC error encountered"
Make = Callable[..., Bench]


class Watched:
    """A bench whose prober counts; `killed` is what the manager says of the last process."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.manager, self.driver = bench.managers["ollama"], bench.drivers["ollama"]
        self.killed: bool | None = None
        self.manager.status = self._status  # type: ignore[method-assign]
        self.new_process()

    def new_process(self) -> None:
        """The remediator was started again: nothing but the store remembers."""
        self.prober = Prober(self.bench.world, (OutOfMemoryWatch(self.bench.world),))

    def _status(self) -> ProcessStatus:
        said = type(self.manager).status(self.manager)
        return replace(said, oom_killed=self.killed)

    def look(self, times: int = 1) -> int:
        """Probe so often; how many were counted by now."""
        for _ in range(times):
            self.bench.clock.advance(5)
            self.prober.probe(self.bench.world.services["ollama"])
        with self.bench.store.reading() as tx:
            return tx.inventory.service("ollama").out_of_memory

    def kill(self) -> None:
        self.manager.die()
        self.killed = True

    def start(self) -> None:
        self.manager.start(1)
        self.killed = None

    @property
    def reasons(self) -> list[str]:
        return [record["reason"] for record in self.bench.events("out_of_memory")]


@pytest.fixture
def bench(make_bench: Make) -> Bench:
    one = make_bench(services=("ollama",))
    one.drivers["ollama"].models = {"qwen:0.5b"}
    return one


@pytest.fixture
def watched(bench: Bench) -> Watched:
    return Watched(bench)


def read(bench: Bench) -> Finding:
    """The signal while the alert fires."""
    bench.fire(ALERT, service="ollama")
    return create({"signal": "out_of_memory"}, "test").read(bench.world, OLLAMA)


def fails_with(driver: FakeDriver, *texts: str) -> None:
    """The next canaries fail with these texts, later ones are answered."""
    left = list(texts)

    def canary(model: str, timeout: float) -> float:
        driver.canaries.append(model)
        if left:
            raise ServiceError(left.pop(0))
        return 0.1

    driver.canary = canary  # type: ignore[method-assign]


# What is counted


def test_a_death_for_memory_is_counted_once(watched: Watched) -> None:
    assert watched.look(2) == 0
    pid = watched.manager.identity.pid
    watched.kill()
    assert watched.look(5) == 1
    (record,) = watched.bench.events("out_of_memory")
    assert record["reason"] == "killed"
    assert record["target"] == "service:ollama"
    assert record["sentence"] == (
        f"ollama ran out of memory: the kernel killed its process (pid {pid}) for memory (exited)"
    )
    assert record["data"]["victim"]["pid"] == pid
    assert record["severity"] == "warning"


def test_each_death_is_one(watched: Watched) -> None:
    watched.look()
    for _ in range(3):
        watched.kill()
        watched.look(2)
        watched.start()
        watched.look(2)
    assert watched.look() == 3


def test_a_death_that_its_manager_made_good_between_two_looks_is_one(watched: Watched) -> None:
    watched.look()
    for expected in (1, 2):
        watched.kill()
        watched.manager.start(1)  # its manager still says how the last one ended
        assert watched.look(3) == expected


def test_a_death_that_its_manager_makes_good_later_is_still_the_same_one(watched: Watched) -> None:
    watched.look()
    watched.kill()
    assert watched.look(2) == 1
    watched.manager.start(1)  # its manager still says how the last one ended
    assert watched.look(3) == 1
    watched.kill()
    assert watched.look(3) == 2


def test_the_process_that_was_killed_is_named_not_the_one_after_it(watched: Watched) -> None:
    watched.look()
    killed = watched.manager.identity.pid
    watched.kill()
    watched.manager.start(1)
    assert watched.look() == 1
    assert watched.bench.events("out_of_memory")[0]["data"]["victim"]["pid"] == killed
    watched.kill()
    assert watched.look() == 2


def test_a_restart_of_the_remediator_counts_nothing_twice(watched: Watched) -> None:
    watched.look()
    watched.kill()
    assert watched.look() == 1
    watched.new_process()
    assert watched.look(3) == 1


def test_what_had_died_before_it_was_ever_seen_is_one(watched: Watched) -> None:
    watched.kill()
    assert watched.look(3) == 1
    watched.start()
    watched.look()
    watched.kill()
    assert watched.look(3) == 2


@pytest.mark.parametrize("said", [None, False])
def test_any_other_end_is_none(watched: Watched, said: bool | None) -> None:
    watched.look()
    watched.manager.die()
    watched.killed = said
    assert watched.look(3) == 0


def test_a_count_that_could_not_be_kept_is_made_up_for(watched: Watched) -> None:
    watched.look()
    watched.kill()
    watched.bench.disk.fail_at = {watched.bench.disk.transactions + 1}
    with pytest.raises(StorageError):
        watched.look()
    assert watched.look(2) == 1


def test_an_answer_to_probes_is_counted_once_until_it_is_well(watched: Watched) -> None:
    bad = ServiceProbe("error", "HTTP 500: CUDA error: out of memory")
    for expected in (1, 2):
        watched.driver.forced = bad
        assert watched.look(4) == expected
        watched.driver.forced = None
        watched.look()
    assert watched.reasons == ["probe", "probe"]


def test_other_failures_are_none(watched: Watched) -> None:
    watched.driver.forced = ServiceProbe("error", "GET /api/ps answered HTTP 502")
    assert watched.look(3) == 0


def test_a_canary_without_memory_is_counted_each_time_it_is_asked(watched: Watched) -> None:
    watched.driver.canary_error = ServiceError(NO_MEMORY)
    read(watched.bench)
    assert watched.look(3) == 1
    watched.bench.clock.advance(30)
    read(watched.bench)
    assert watched.look(3) == 2
    watched.driver.canary_error = None
    assert read(watched.bench).reason == "healthy"
    assert watched.look(3) == 2
    assert watched.reasons == ["canary", "canary"]


def test_a_load_without_memory_in_a_run_is_counted_once(watched: Watched) -> None:
    bench = watched.bench
    watched.look()
    bench.managers["ollama"].die()

    def refuse(model: str, timeout: float) -> None:
        raise ServiceError(NO_MEMORY_AT_LOAD)

    watched.driver.load = refuse  # type: ignore[method-assign]
    bench.fire(DOWN, service="ollama")
    bench.act()
    assert bench.run.state == "failed"
    assert watched.look(3) == 1
    watched.new_process()
    assert watched.look(3) == 1
    assert watched.reasons == ["step"]


def test_a_guess_of_a_manager_about_an_end_is_no_count(watched: Watched) -> None:
    """Docker's SIGKILL may have been for memory; how a process ended is counted by itself."""
    bench = watched.bench
    watched.look()
    bench.managers["ollama"].die()

    def start(timeout: float) -> None:
        raise ManagerError(
            "ollama did not stay up: ended with code 137 "
            "(SIGKILL: by a person, a stop that took too long, or out of memory)"
        )

    bench.managers["ollama"].start = start  # type: ignore[method-assign]
    bench.fire(DOWN, service="ollama")
    bench.act()
    assert bench.run.state == "failed"
    assert watched.look(3) == 0


# What is evidence


def test_two_canaries_without_memory_are_evidence(bench: Bench) -> None:
    bench.drivers["ollama"].canary_error = ServiceError(NO_MEMORY)
    finding = read(bench)
    assert (finding.state, finding.reason) == ("present", "out_of_memory")
    assert "CUDA error: out of memory" in finding.sentence
    assert bench.drivers["ollama"].canaries == ["qwen:0.5b"] * 2


def test_one_is_not(bench: Bench) -> None:
    fails_with(bench.drivers["ollama"], NO_MEMORY)
    assert (read(bench).state, read(bench).reason) == ("absent", "healthy")


def test_where_no_alert_speaks_of_memory_nothing_is_asked(make_bench: Make) -> None:
    bench = make_bench(services=("ollama", "vllm"))
    bench.drivers["ollama"].models = {"qwen:0.5b"}
    bench.drivers["ollama"].canary_error = ServiceError(NO_MEMORY)
    bench.fire(DOWN, service="ollama")
    bench.fire(ALERT, service="vllm")
    signal = create({"signal": "out_of_memory"}, "test")
    assert signal.read(bench.world, OLLAMA).reason == "healthy"
    assert bench.drivers["ollama"].canaries == []


def test_without_a_loaded_model_nothing_is_asked(bench: Bench) -> None:
    bench.drivers["ollama"].models = set()
    assert read(bench).reason == "healthy"
    assert bench.drivers["ollama"].canaries == []


def test_a_model_that_its_server_dropped_for_it_is_asked_for_again_for_a_while(
    bench: Bench,
) -> None:
    driver = bench.drivers["ollama"]
    driver.canary_error = ServiceError(NO_MEMORY)
    assert read(bench).state == "present"
    driver.models = set()
    assert read(bench).state == "present"
    bench.clock.advance(301)
    driver.canaries.clear()
    assert read(bench).reason == "healthy"
    assert driver.canaries == []


def test_a_model_that_answers_again_is_not_remembered_as_dropped(bench: Bench) -> None:
    driver = bench.drivers["ollama"]
    fails_with(driver, NO_MEMORY, NO_MEMORY)
    assert read(bench).state == "present"
    assert read(bench).reason == "healthy"
    driver.models, driver.canaries = set(), []
    assert read(bench).reason == "healthy"
    assert driver.canaries == []


def test_a_silent_server_may_only_be_busy(bench: Bench) -> None:
    bench.drivers["ollama"].canary_error = ServiceTimeout("no whole answer within 30 s")
    assert (read(bench).state, read(bench).reason) == ("unknown", "busy")


def test_one_that_does_not_answer_probes_is_asked_nothing_more(bench: Bench) -> None:
    driver = bench.drivers["ollama"]
    driver.forced = ServiceProbe("silent", "no whole answer within 3 s", driver.probe().models)
    assert read(bench).reason == "busy"
    assert driver.canaries == []


def test_a_failure_for_another_reason_proves_nothing(bench: Bench) -> None:
    bench.drivers["ollama"].canary_error = ServiceError("the canary failed (HTTP 500): boom")
    finding = read(bench)
    assert (finding.state, finding.reason, finding.needs_human) == (
        "unknown",
        "server_error",
        False,
    )


def test_a_service_that_is_held_is_asked_nothing(bench: Bench) -> None:
    bench.managers["ollama"].die()
    with bench.store.transaction() as tx:
        tx.inventory.hold("ollama", OPERATOR, "new model", bench.clock.now())
    assert read(bench).reason == "held"
    assert bench.drivers["ollama"].canaries == []


def test_a_target_that_is_no_service_is_unknown(bench: Bench) -> None:
    signal = create({"signal": "out_of_memory"}, "test")
    assert signal.read(bench.world, Target("gpu", bench.uuids[0])).reason == "cannot_tell"


# What is done


def test_a_service_without_memory_is_restarted_loaded_and_asked(bench: Bench) -> None:
    driver, manager = bench.drivers["ollama"], bench.managers["ollama"]
    bench.prober.probe(bench.world.services["ollama"])
    # Twice as evidence, twice in the second look; the process after it answers.
    fails_with(driver, *[NO_MEMORY] * 4)
    bench.fire(ALERT, service="ollama")
    bench.act()
    assert (bench.run.state, bench.run.playbook) == ("succeeded", "recover-oom")
    assert [call.split()[0] for call in manager.calls] == ["stop", "start"]
    assert driver.loads == ["qwen:0.5b"]
    assert len(driver.canaries) == 6, "one of them to warm it up"
    assert bench.incident(ALERT, OLLAMA).state == "recovering"


def test_one_that_recovers_by_itself_while_things_settle_is_left_alone(bench: Bench) -> None:
    fails_with(bench.drivers["ollama"], NO_MEMORY, NO_MEMORY)
    bench.fire(ALERT, service="ollama")
    bench.act()
    assert (bench.run.state, bench.run.reason) == ("refused", "healthy")
    assert bench.managers["ollama"].calls == []
    assert bench.incident(ALERT, OLLAMA).state == "refuted"


def test_one_that_is_healthy_again_is_refuted_and_that_is_recorded(bench: Bench) -> None:
    bench.fire(ALERT, service="ollama")
    bench.act()
    assert bench.decisions == ["refute:healthy"]
    assert bench.runs == []
    assert bench.incident(ALERT, OLLAMA).state == "refuted"


def test_a_card_at_fault_is_never_answered_by_a_restart(bench: Bench) -> None:
    bench.drivers["ollama"].canary_error = ServiceError(BAD_CARD)
    bench.fire(ALERT, service="ollama")
    bench.pass_time(120)
    assert bench.decisions == ["refuse:device_error"]
    assert bench.managers["ollama"].calls == []
    incident = bench.incident(ALERT, OLLAMA)
    assert (incident.state, incident.reason) == ("needs_human", "device_error")


def test_a_model_that_still_does_not_fit_fails_once_and_calls_a_person(bench: Bench) -> None:
    driver, manager = bench.drivers["ollama"], bench.managers["ollama"]
    bench.prober.probe(bench.world.services["ollama"])
    driver.canary_error = ServiceError(NO_MEMORY)

    def refuse(model: str, timeout: float) -> None:
        raise ServiceError(NO_MEMORY_AT_LOAD)

    driver.load = refuse  # type: ignore[method-assign]
    bench.fire(ALERT, service="ollama")
    bench.pass_time(600)
    assert bench.run.state == "failed"
    assert NO_MEMORY_AT_LOAD in bench.run.sentence
    assert [call.split()[0] for call in manager.calls] == ["stop", "start"], "no second try"
    incident = bench.incident(ALERT, OLLAMA)
    assert (incident.state, incident.last_step) == ("needs_human", "load_models")
    assert (bench.run.reason, incident.reason) == ("out_of_memory", "out_of_memory")


def test_a_server_that_answers_without_its_model_is_not_seen_good(bench: Bench) -> None:
    """The restart alone ends LLMServiceDown: that is not what the person was called for."""
    driver, load = bench.drivers["ollama"], bench.drivers["ollama"].load
    bench.prober.probe(bench.world.services["ollama"])
    bench.managers["ollama"].die()

    def refuse(model: str, timeout: float) -> None:
        raise ServiceError(NO_MEMORY_AT_LOAD)

    driver.load = refuse  # type: ignore[method-assign]
    bench.fire(DOWN, service="ollama")
    bench.act()
    bench.resolve(DOWN, service="ollama")
    bench.pass_time(120)
    assert bench.incident(DOWN, OLLAMA).state == "needs_human"
    load("qwen:0.5b", 1)
    bench.pass_time(2)
    assert bench.incident(DOWN, OLLAMA) is None


def test_the_down_alert_of_the_same_death_is_the_same_fault(bench: Bench) -> None:
    bench.managers["ollama"].die()
    bench.fire(DOWN, service="ollama")
    bench.fire(ALERT, service="ollama")
    bench.pass_time(120)
    assert [run.state for run in bench.runs] == ["succeeded"]
    assert [call.split()[0] for call in bench.managers["ollama"].calls] == ["start"]


def test_a_card_that_turned_hot_while_things_settled_is_said_to_be_the_reason(
    bench: Bench,
) -> None:
    bench.managers["ollama"].die()
    bench.fire(DOWN, service="ollama")
    bench.clock.at(bench.clock.passed + 5, lambda: setattr(bench.card, "celsius", 95.0))
    bench.act()
    assert (bench.run.state, bench.run.reason) == ("failed", "card_unfit")
    assert "too hot (95.0 °C)" in bench.run.sentence
    assert bench.managers["ollama"].calls == []
    incident = bench.incident(DOWN, OLLAMA)
    assert (incident.last_step, incident.reason) == ("check", "card_unfit")


def test_every_known_service_has_a_count_from_the_start(make_bench: Make) -> None:
    watched = Watched(make_bench(services=("ollama", "vllm")))

    def counts() -> dict[str, float]:
        bench = watched.bench
        collector = RemediatorCollector(
            bench.world, bench.playbooks, bench.counters, bench.intake, bench.prober
        )
        return {
            sample.labels["llm_service"]: sample.value
            for family in collector.collect()
            for sample in family.samples
            if sample.name == "llm_service_out_of_memory_total"
        }

    assert counts() == {"ollama": 0, "vllm": 0}
    watched.kill()
    watched.look()
    assert counts() == {"ollama": 1, "vllm": 0}
