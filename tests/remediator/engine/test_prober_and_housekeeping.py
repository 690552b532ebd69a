"""What was loaded when a service was last well, and the end of every state."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from remediator.errors import ServiceError, StorageError
from remediator.managers import ProcessStatus
from remediator.metrics import RemediatorCollector, registry_for
from remediator.services import ServiceProbe
from remediator.store import Transaction
from remediator.targets import Target
from tests.remediator.engine.bench import Bench

WARNING = "GPUTemperatureWarning"
DOWN = "LLMServiceDown"
SERVICE = Target("service", "ollama")
Make = Callable[..., Bench]


@pytest.fixture
def bench(make_bench: Make) -> Bench:
    return make_bench(services=("ollama",))


def probe(bench: Bench) -> object:
    return bench.prober.probe(bench.world.services["ollama"])


def remembered(bench: Bench) -> tuple[str, ...]:
    with bench.store.reading() as tx:
        return tx.inventory.service("ollama").models


def test_remembers_what_was_loaded_when_it_was_last_well(bench: Bench) -> None:
    bench.drivers["ollama"].models = {"llama3:8b", "qwen3:4b"}
    probe(bench)
    bench.managers["ollama"].die()
    probe(bench)
    assert remembered(bench) == ("llama3:8b", "qwen3:4b")
    bench.restart()
    assert remembered(bench) == ("llama3:8b", "qwen3:4b")


def test_does_not_take_an_empty_service_in_recovery_for_well(bench: Bench) -> None:
    bench.drivers["ollama"].models = {"llama3:8b"}
    probe(bench)
    bench.managers["ollama"].die()
    bench.fire(DOWN, service="ollama")
    bench.evaluate()
    bench.managers["ollama"].start(1)
    probe(bench)
    assert remembered(bench) == ("llama3:8b",)


def test_a_memory_that_could_not_be_kept_is_kept_at_the_next_look(bench: Bench) -> None:
    bench.drivers["ollama"].models = {"llama3:8b"}
    bench.disk.fail_at = {bench.disk.transactions + 1}
    with pytest.raises(StorageError):
        probe(bench)
    probe(bench)
    assert remembered(bench) == ("llama3:8b",)


@pytest.mark.parametrize(
    ("state", "manager", "up"),
    [
        ("ready", "running", True),
        ("loading", "running", True),
        ("error", "running", True),
        ("refused", "running", False),
        ("refused", "exited", False),
        ("silent", "running", True),
        ("silent", "exited", False),
        ("silent", "failed", False),
        ("silent", "starting", None),
    ],
)
def test_up_is_said_only_of_what_was_seen(
    bench: Bench, state: str, manager: str, up: bool | None
) -> None:
    bench.drivers["ollama"].forced = ServiceProbe(state, "")
    bench.managers["ollama"].status = lambda: ProcessStatus(manager, None, "")
    assert probe(bench).up is up


def test_a_silent_server_with_a_silent_manager_is_neither_up_nor_down(bench: Bench) -> None:
    bench.drivers["ollama"].forced = ServiceProbe("silent", "")
    bench.managers["ollama"].fails = "no supervisord"
    assert probe(bench).up is None


def service_up(bench: Bench) -> float | None:
    collector = RemediatorCollector(
        bench.world, bench.playbooks, bench.counters, bench.intake, bench.prober
    )
    return registry_for(collector).get_sample_value("llm_service_up", {"llm_service": "ollama"})


def test_a_manager_that_does_not_answer_is_told_of_once_and_when_it_does_again(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "remediator.engine.prober")
    for fails in ("no supervisord", "no supervisord", "refused", "", "", "refused"):
        bench.managers["ollama"].fails = fails
        probe(bench)
    assert [record.getMessage() for record in caplog.records] == [
        "the manager does not answer service=ollama error=no supervisord",
        "the manager does not answer service=ollama error=refused",
        "the manager answers again service=ollama",
        "the manager does not answer service=ollama error=refused",
    ]


def test_what_was_not_seen_for_long_is_not_known_any_more(bench: Bench) -> None:
    probe(bench)
    # the default: every 5 s, and two calls of at most 3 s each
    bench.clock.advance(33)
    assert service_up(bench) == 1
    bench.clock.advance(1)
    assert service_up(bench) is None
    assert bench.prober.views == {}
    probe(bench)
    assert service_up(bench) == 1


def test_a_clock_that_is_set_makes_no_view_old(bench: Bench) -> None:
    probe(bench)
    wall = bench.clock.now
    bench.clock.now = lambda: wall() + 86_400
    assert service_up(bench) == 1


def test_the_watch_over_a_service_survives_a_fault_of_its_driver(bench: Bench) -> None:
    looks = []

    def broken() -> ServiceProbe:
        looks.append(1)
        if len(looks) == 3:
            bench.world.stopping.set()
        raise KeyError("models")

    bench.drivers["ollama"].probe = broken
    bench.prober.run(bench.world.services["ollama"], bench.world.stopping)
    assert len(looks) == 3


def episodes(bench: Bench) -> int:
    with bench.store.reading() as tx:
        return len(tx.episodes.open_all())


def test_an_episode_that_nobody_speaks_of_any_more_ends(bench: Bench) -> None:
    bench.fire(WARNING)
    bench.pass_time(1100, step=10)
    bench.fire(WARNING)
    bench.pass_time(1190, step=10)
    assert episodes(bench) == 1
    bench.pass_time(30, step=10)
    assert episodes(bench) == 0
    (record,) = bench.events("episode_silent")
    assert "proves nothing" in record["sentence"]


def test_our_own_absence_is_not_the_silence_of_an_alert(bench: Bench) -> None:
    bench.fire(WARNING)
    bench.pass_time(10)
    bench.clock.advance(1300)
    bench.restart()
    bench.pass_time(1190, step=10)
    assert episodes(bench) == 1
    bench.pass_time(30, step=10)
    assert episodes(bench) == 0


def test_a_clock_that_is_set_is_not_the_silence_of_an_alert(bench: Bench) -> None:
    bench.fire(WARNING)
    bench.housekeeper.tick()
    wall = bench.clock.now
    bench.clock.now = lambda: wall() + 86_400
    bench.housekeeper.tick()
    assert episodes(bench) == 1
    bench.clock.now = lambda: wall() - 86_400
    bench.clock.advance(1201)
    bench.housekeeper.tick()
    assert episodes(bench) == 0


def test_what_could_not_be_taken_in_was_not_silent(bench: Bench) -> None:
    bench.fire(WARNING)
    for _ in range(70):
        bench.store.failing = True
        bench.clock.advance(20)
        bench.housekeeper.tick()
    bench.store.failing = False
    bench.housekeeper.tick()
    assert episodes(bench) == 1


def test_a_repeat_that_comes_while_silence_is_noticed_keeps_the_episode(bench: Bench) -> None:
    bench.fire(WARNING)
    bench.housekeeper.tick()
    bench.clock.advance(1201)
    reading = bench.store.reading

    @contextlib.contextmanager
    def reading_then_repeat() -> Iterator[Transaction]:
        with reading() as tx:
            yield tx
        bench.store.reading = reading
        bench.fire(WARNING)

    bench.store.reading = reading_then_repeat
    bench.housekeeper.tick()
    assert episodes(bench) == 1


def test_an_approval_that_comes_while_it_expires_counts(make_bench: Make) -> None:
    bench = make_bench(mode="approve")
    bench.card.celsius = 84.0
    bench.fire(WARNING)
    bench.act()
    run = bench.run.id
    bench.clock.advance(901)
    reading = bench.store.reading
    looks: list[int] = []

    @contextlib.contextmanager
    def approved_after_the_look() -> Iterator[Transaction]:
        with reading() as tx:
            yield tx
        looks.append(1)
        if len(looks) == 2:  # the first is for silent episodes
            with bench.store.transaction() as tx:
                tx.runs.set_state(run, "reserved", bench.clock.now())

    bench.store.reading = approved_after_the_look
    bench.housekeeper.tick()
    bench.store.reading = reading
    assert bench.run.state == "reserved"


def deliveries(bench: Bench) -> list[float]:
    with bench.store.reading() as tx:
        rows = tx.episodes._db.execute("SELECT received_at FROM deliveries ORDER BY id")
        return [row[0] for row in rows]


def test_deliveries_are_kept_for_a_week_and_the_newest_for_ever(bench: Bench) -> None:
    start, day = bench.clock.now(), 86_400
    for _ in range(3):
        bench.fire(WARNING)
        bench.clock.advance(day)
    bench.clock.advance(5 * day)  # the first is 8 days old, the last 6
    bench.housekeeper.tick()
    assert deliveries(bench) == [start + day, start + 2 * day]
    bench.clock.advance(30 * day)
    bench.housekeeper.tick()
    assert deliveries(bench) == [start + 2 * day]
    bench.restart()
    assert bench.intake.last_delivery == start + 2 * day


def test_deliveries_are_pruned_once_an_hour(bench: Bench) -> None:
    bench.fire(WARNING)
    bench.housekeeper.tick()
    begun = bench.disk.transactions
    for _ in range(1799):
        bench.clock.advance(2)
        bench.housekeeper.tick()
    ended = [record for record in bench.audit if record["event"] == "episode_silent"]
    assert bench.disk.transactions - begun == len(ended)
    bench.clock.advance(2)
    bench.housekeeper.tick()
    assert bench.disk.transactions - begun == len(ended) + 1


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ("SELECT id FROM runs WHERE state IN ('reserved', 'running') ORDER BY id", "runs_state"),
        ("DELETE FROM deliveries WHERE received_at < 1", "deliveries_received"),
        ("SELECT max(received_at) FROM deliveries", "deliveries_received"),
    ],
)
def test_what_is_asked_all_the_time_has_an_index(bench: Bench, query: str, index: str) -> None:
    with bench.store.reading() as tx:
        plan = tx.episodes._db.execute(f"EXPLAIN QUERY PLAN {query}").fetchall()
    assert index in str(plan)


def test_a_start_that_cannot_be_recorded_is_one_all_the_same(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.disk.fail_at = {bench.disk.transactions + 1}
    bench.housekeeper.note_start()
    assert "the start could not be recorded" in caplog.text
    assert bench.events("started") == []


def test_the_start_records_what_it_takes_over(bench: Bench) -> None:
    bench.card.celsius = 84.0
    bench.fire(WARNING)
    bench.evaluate()
    bench.restart()
    bench.housekeeper.note_start()
    (record,) = bench.events("started")
    assert "1 unfinished run(s) and 0 undo lease(s)" in record["sentence"]


def failed_incident(bench: Bench) -> None:
    """A cap that did not help; then the alert is over."""
    bench.card.celsius = 84.0
    bench.card.health = "warning"
    bench.fire(WARNING)
    bench.act()
    bench.resolve(WARNING)


def test_what_needs_a_person_stays_until_it_is_seen_good(bench: Bench) -> None:
    failed_incident(bench)
    for unseen in ("warning", "lost", "silent"):
        bench.card.fault = "lost" if unseen == "lost" else None
        bench.gpus.silent = unseen == "silent"
        bench.pass_time(60)
        assert bench.incident(WARNING).state == "needs_human", unseen
    bench.card.fault, bench.gpus.silent = None, False
    bench.card.health, bench.card.celsius = "healthy", 60.0
    bench.pass_time(2)
    assert bench.incident(WARNING) is None
    assert "fresh and healthy" in bench.events("incident_closed")[0]["sentence"]


def test_what_needs_a_person_is_not_talked_down_by_a_later_decision(bench: Bench) -> None:
    failed_incident(bench)
    bench.clock.advance(90)
    bench.fire(WARNING)
    bench.card.celsius = 80.0
    bench.act()
    assert bench.decisions[-1] == "refute:below_threshold"
    assert bench.incident(WARNING).state == "needs_human"


def test_an_acknowledged_incident_is_over(bench: Bench) -> None:
    failed_incident(bench)
    incident = bench.incident(WARNING)
    with bench.store.transaction() as tx:
        tx.incidents.close(incident.id, bench.clock.now())
    bench.pass_time(5)
    assert bench.incident(WARNING) is None


def test_a_dead_service_that_needs_a_person_is_good_when_it_answers(bench: Bench) -> None:
    bench.drivers["ollama"].models = {"llama3:8b"}
    probe(bench)
    bench.drivers["ollama"].canary_error = ServiceError("the canary failed (HTTP 500)")
    bench.managers["ollama"].die()
    bench.fire(DOWN, service="ollama")
    bench.act()
    bench.managers["ollama"].die()
    bench.resolve(DOWN, service="ollama")
    bench.pass_time(5)
    assert bench.incident(DOWN, SERVICE).state == "needs_human"
    bench.managers["ollama"].start(1)
    bench.pass_time(5)
    assert bench.incident(DOWN, SERVICE) is None


def test_a_success_claims_recovery_only_for_a_while(bench: Bench) -> None:
    bench.card.heat_by_power(full=84.0, capped=76.0)
    bench.fire(WARNING)
    bench.act()
    assert bench.incident(WARNING).state == "recovering"
    bench.card.celsius = 84.0
    bench.pass_time(90)
    assert bench.decisions[-1] == "refuse:duplicate"
    assert bench.incident(WARNING) is None, "on-call hears what goes on firing"
    assert bench.written_watts == [320.0]


def test_a_refuted_incident_ends_with_its_alert(bench: Bench) -> None:
    bench.card.celsius = 80.0
    bench.fire(WARNING)
    bench.act()
    bench.resolve(WARNING)
    bench.housekeeper.tick()
    assert bench.incident(WARNING) is None


def test_episodes_of_which_nothing_came_are_forgotten_after_a_month(make_bench: Make) -> None:
    bench = make_bench()
    bench.card.heat_by_power(full=84.0, capped=76.0)
    bench.fire("GPUTemperatureWarning")
    bench.act()
    bench.resolve("GPUTemperatureWarning")
    for service in ("gone", "goes on", "new"):
        bench.fire("LLMServiceDown", service=service)
    bench.act()
    bench.resolve("LLMServiceDown", service="gone")

    def left() -> list[tuple[int, str]]:
        with bench.store.reading() as tx:
            return tx._db.execute("SELECT id, alertname FROM episodes ORDER BY id").fetchall()

    bench.clock.advance(29 * 86400)
    bench.tick_housekeeper()
    assert [number for number, _ in left()] == [1, 2, 3, 4]
    bench.clock.advance(2 * 86400)
    bench.tick_housekeeper()
    # What a run is of, what still fires, and the newest: its number must not be given away again.
    assert [number for number, _ in left()] == [1, 3, 4]
    assert bench.runs[0].episode_id == 1
