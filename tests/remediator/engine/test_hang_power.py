"""Each card's own bands: what they are learned from, when they hold, and what they decide."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remediator.engine.power_watch import PowerWatch
from remediator.engine.prober import Prober
from remediator.engine.progress_watch import ProgressWatch
from remediator.errors import ServiceError, ServiceTimeout
from remediator.policy.power_bands import Bands, Conditions, Learned
from remediator.targets import Target
from tests.remediator.engine.bench import Bench
from tests.remediator.engine.hang_scene import LIMIT, Engine, Scene

Make = Callable[..., Bench]
VLLM = Target("service", "vllm")
HERE = Conditions(400, "580.65.06")
DAY = 86400.0


def samples(start: float, *watts: float) -> tuple[tuple[float, float], ...]:
    return tuple((start + 30 * n, one) for n, one in enumerate(watts))


def test_bands_leave_out_what_is_odd_and_widen_what_is_left() -> None:
    idle = samples(0, *[60.0] * 38, 300.0, 300.0)
    busy = samples(0, *[250.0] * 38, 20.0, 390.0)
    assert Learned(HERE, idle, busy).bands(2000) == Bands(66.0, 225.0, 40, idle[-1][0])


@pytest.mark.parametrize(
    ("idle", "busy"),
    [([60.0] * 19, [250.0] * 99), ([60.0] * 99, [250.0] * 19), ([60.0] * 40, [70.0] * 40)],
    ids=["little rest", "little work", "not apart"],
)
def test_too_little_or_what_is_not_apart_is_no_band(idle: list[float], busy: list[float]) -> None:
    assert Learned(HERE, samples(0, *idle), samples(0, *busy)).bands(4000) is None


def test_samples_and_bands_age() -> None:
    learned = Learned(HERE, samples(0, *[60.0] * 40), samples(0, *[250.0] * 40))
    assert learned.bands(14 * DAY) is not None
    assert learned.bands(15 * DAY) is None
    assert len(learned.with_sample("idle", 14 * DAY + 600, 61).idle) < 40


def test_a_sample_is_taken_every_half_minute_and_no_more_are_kept_than_two_hours_of_them() -> None:
    learned = Learned(HERE)
    for second in range(0, 20_000, 5):
        learned = learned.with_sample("busy", second, 250)
    assert len(learned.busy) == 240
    assert learned.busy[-1][0] - learned.busy[-2][0] == 30
    assert learned.idle == ()


def test_what_comes_from_the_future_is_dropped() -> None:
    learned = Learned(HERE, busy=samples(5000, 250, 260)).with_sample("busy", 100, 240)
    assert learned.busy == ((100, 240),)


@settings(max_examples=25)
@given(st.lists(st.floats(1, 1000), min_size=20, max_size=40), st.floats(0, 1000))
def test_bands_survive_the_store(watts: list[float], more: float) -> None:
    learned = Learned(HERE, samples(0, *watts), samples(0, *[w + more for w in watts]))
    again = Learned.from_json(learned.to_json())
    assert again == learned
    bands = again.bands(5000)
    assert bands is None or bands.idle_below < bands.busy_above


@pytest.fixture
def scene(make_bench: Make) -> Scene:
    """One service with an engine on one card, whose power is learned."""
    return learning(Scene(make_bench(services=("vllm",))))


def learning(scene: Scene, driver: str = "580.65.06") -> Scene:
    bench = scene.bench
    watch = PowerWatch(bench.world, lambda: driver)
    bench.prober = Prober(bench.world, (ProgressWatch(bench.world), watch))
    rng = random.Random(6)
    raw = scene.card.reading

    def reading() -> dict[str, object]:
        found = raw()
        busy = scene.engine.running > 0
        found["utilization"] = 100.0 if busy or scene.card.saturated_seconds else 0.0
        found["power"]["draw_w"] = scene.card.draws * rng.uniform(0.97, 1.03)
        return found

    scene.card.reading = reading
    return scene


def work(scene: Scene, seconds: float, watts: float = 200.0) -> None:
    scene.engine.running, scene.card.draws, scene.card.saturated_seconds = 3, watts, 45.0
    scene.bench.clock.advance(seconds)


def rest(scene: Scene, seconds: float, watts: float = 40.0) -> None:
    scene.engine.running, scene.card.draws, scene.card.saturated_seconds = 0, watts, 0.0
    scene.bench.clock.advance(seconds)


def bands(scene: Scene) -> Bands | None:
    learned = scene.bench.world.power.learned(scene.bench.uuids[0])
    return None if learned is None else learned.bands(scene.bench.clock.now())


def test_a_card_is_learned_at_work_and_at_rest(scene: Scene) -> None:
    work(scene, 700)
    assert bands(scene) is None
    rest(scene, 700)
    found = bands(scene)
    assert found is not None
    assert 40 < found.idle_below < 50
    assert 165 < found.busy_above < 200


def test_what_is_not_known_to_be_work_or_rest_is_not_learned(scene: Scene) -> None:
    scene.engine.stuck = True
    work(scene, 700)
    scene.engine.stuck = False
    rest(scene, 20)
    scene.card.saturated_seconds = 45.0  # a latched counter
    scene.bench.clock.advance(700)
    learned = scene.bench.world.power.learned(scene.bench.uuids[0])
    assert learned is not None
    assert learned.busy == ()
    assert len(learned.idle) <= 1


def test_without_engine_metrics_only_an_empty_card_is_at_rest(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",))
    scene = Scene(bench, engines=())
    bench.prober = Prober(
        bench.world, (ProgressWatch(bench.world), PowerWatch(bench.world, lambda: ""))
    )
    raw = scene.card.reading
    scene.card.reading = lambda: raw() | {"utilization": 0.0}
    bench.clock.advance(100)
    learned = bench.world.power.learned(bench.uuids[0])
    assert learned is not None
    assert learned.idle == ()
    scene.card.processes = 0
    bench.clock.advance(100)
    assert len(bench.world.power.learned(bench.uuids[0]).idle) >= 3


def known(scene: Scene) -> Scene:
    work(scene, 700)
    rest(scene, 700)
    assert bands(scene) is not None
    return scene


def stall(scene: Scene, watts: float) -> None:
    scene.engine.stuck, scene.engine.running = True, 3
    scene.card.draws, scene.card.saturated_seconds = watts, 45.0


def test_what_works_at_little_of_the_limit_is_given_more_time_once_it_is_known(
    scene: Scene,
) -> None:
    """120 W of 400 W: by the limit's share it would hang, by its own band it works."""
    work(scene, 700, watts=120)
    rest(scene, 700, watts=20)
    stall(scene, 120)
    scene.bench.clock.advance(200)
    finding = scene.finding(VLLM)
    assert (finding.state, finding.reason) == ("unknown", "stalling")
    scene.bench.clock.advance(200)
    assert scene.finding(VLLM).state == "present"


def test_what_hangs_at_much_of_the_limit_is_found_at_once_when_it_is_known(scene: Scene) -> None:
    """180 W of 400 W: by the limit's share it would work, by its own band it does not."""
    work(scene, 700, watts=350)
    rest(scene, 700)
    stall(scene, 180)
    scene.bench.clock.advance(130)
    finding = scene.finding(VLLM)
    assert (finding.state, finding.reason) == ("present", "hung")
    assert finding.data["allowed"] == "restart"
    (card,) = finding.data["cards"]["each"]
    assert card["idle_below"] < card["watts"] < card["busy_above"]
    assert card["below_busy_seconds"] >= 60
    assert card["age_seconds"] == pytest.approx(0.4)
    assert finding.data["look_age_seconds"] <= 5
    assert card["bands_age_seconds"] > 0


@pytest.mark.parametrize("what", ["limit", "driver"])
def test_another_limit_or_driver_begins_anew(scene: Scene, what: str) -> None:
    known(scene)
    if what == "limit":
        scene.card.watts = 0.7 * LIMIT
    else:
        learning(scene, "590.10")
    scene.bench.clock.advance(10)
    assert bands(scene) is None
    assert scene.finding(VLLM).data["cards"]["each"][0]["idle_below"] is None


def test_bands_are_known_after_a_restart_of_the_remediator(scene: Scene) -> None:
    known(scene)
    rest(scene, 1800)
    before = bands(scene)
    scene.bench.restart()
    learning(scene)
    scene.bench.clock.advance(10)
    after = bands(scene)
    assert before is not None
    assert after is not None
    assert after.idle_below == pytest.approx(before.idle_below, rel=0.05)


@pytest.mark.parametrize("text", ["", "[]", '{"idle": 3}'])
def test_what_cannot_be_used_begins_anew(scene: Scene, text: str) -> None:
    with scene.bench.store.transaction() as tx:
        tx.set_meta(f"power_bands:{scene.bench.uuids[0]}", text)
    work(scene, 100)
    assert len(scene.bench.world.power.learned(scene.bench.uuids[0]).busy) >= 2


def only_a_canary(scene: Scene, error: Exception | None) -> list[str]:
    """Its metrics are gone; what a canary says is all there is."""
    asked: list[str] = []

    def canary(model: str, timeout: float) -> float:
        asked.append(model)
        scene.bench.clock.advance(timeout if isinstance(error, ServiceTimeout) else 0.1)
        if error is not None:
            raise error
        return 0.1

    engine: Engine = scene.engine
    probe = engine.probe
    engine.probe = lambda: type(found := probe())(found.state, "", found.models)
    engine.canary = canary
    return asked


def test_a_canary_that_times_out_counts_only_at_the_power_of_rest(scene: Scene) -> None:
    known(scene)
    only_a_canary(scene, ServiceTimeout("no answer"))
    stall(scene, 200)
    scene.bench.clock.advance(150)
    assert scene.finding().reason == "suspect"
    scene.card.draws = 40.0
    scene.bench.clock.advance(60)
    assert scene.finding().reason == "suspect"
    scene.bench.clock.advance(70)
    finding = scene.finding()
    assert (finding.state, finding.reason, finding.services) == ("present", "hung", ("vllm",))


@pytest.mark.parametrize(
    ("error", "times", "reason"),
    [
        (ServiceError("the canary failed (HTTP 500): unexpected EOF"), 2, "hung"),
        (ServiceError("the canary's answer is not complete"), 2, "hung"),
        (ServiceError("the canary failed (HTTP 503): server busy"), 1, "suspect"),
        (ServiceError("the canary failed (HTTP 401): no key"), 1, "suspect"),
        (ServiceError("the canary failed (HTTP 500): CUDA error: out of memory"), 1, "suspect"),
        (ServiceError("the canary failed (HTTP 500): GPU is lost"), 1, "suspect"),
        (None, 1, "busy"),
    ],
)
def test_a_canary_has_failed_when_it_failed_twice_and_for_no_other_reason(
    scene: Scene, error: Exception | None, times: int, reason: str
) -> None:
    asked = only_a_canary(scene, error)
    stall(scene, 200)
    finding = scene.finding()
    assert finding.reason == reason
    assert len(asked) == times
    if reason == "suspect":
        assert finding.data["services"][0]["canary_says"] == str(error)
