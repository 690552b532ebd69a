"""The first requests of users after a start: measured by the server's own counters, never ours."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from remediator import services
from remediator.config import ServiceConfig, Timing
from remediator.engine.first_request_watch import FirstRequestWatch
from remediator.engine.log_watch import LogWatch
from remediator.engine.prober import Prober
from remediator.errors import ServiceTimeout
from remediator.service_metrics import ServiceCollector
from remediator.services import ServiceProbe
from remediator.services._canaries import OneAtATime
from remediator.services.base import FirstTokens, OurRequests
from tests.remediator.engine.bench import Bench
from tests.remediator.engine.dialects import Request, SgLang, served
from tests.remediator.engine.vllm_server import PAGE, fake_vllm

NONE_OF_OURS = OurRequests()


class Watched:
    """A server whose counters are set; each look may follow a canary of ours."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.driver, self.manager = bench.drivers["llm"], bench.managers["llm"]
        self.ours = NONE_OF_OURS
        self.new_remediator()

    def new_remediator(self) -> None:
        self.prober = Prober(self.bench.world, (FirstRequestWatch(self.bench.world),))

    def look(self, requests: int | None, seconds: float | None = None) -> float | None:
        """Look once at these counters; what is exported then."""
        said = FirstTokens(requests, seconds, self.ours)
        state = "loading" if requests is None else "ready"
        self.driver.forced = ServiceProbe(state, "", first_tokens=said)
        self.bench.clock.advance(5)
        self.prober.probe(self.bench.world.services["llm"])
        return self.exported()

    def restart(self) -> None:
        self.manager.stop(None, 1)
        self.bench.clock.advance(5)
        self.manager.start(1)

    def we_asked(self, *, quiet: float = 5.0, unanswered: int = 0) -> None:
        ours = self.ours
        self.ours = OurRequests(ours.begun + 1, ours.unanswered + unanswered, quiet)

    def exported(self) -> float | None:
        bench = self.bench
        logs = LogWatch(bench.world, bench.counters)
        found = [
            sample.value
            for family in ServiceCollector(bench.world, bench.counters, logs).collect()
            for sample in family.samples
            if sample.name == "llm_service_first_request_seconds"
        ]
        return found[0] if found else None


@pytest.fixture
def watched(make_bench: Callable[..., Bench]) -> Watched:
    return Watched(make_bench(services=("llm",)))


def test_the_mean_of_the_first_requests_after_a_start_is_kept(watched: Watched) -> None:
    watched.look(100, 50.0)
    watched.restart()
    assert watched.look(None) is None, "it loads"
    assert watched.look(0, 0.0) is None
    assert watched.look(2, 9.0) == 4.5
    assert watched.look(50, 12.0) == 4.5, "later ones are not the first"


def test_our_own_requests_are_left_out(watched: Watched) -> None:
    watched.look(100, 50.0)
    watched.restart()
    watched.we_asked()
    watched.we_asked()
    assert watched.look(2, 30.0) is None, "a warm-up and a canary"
    assert watched.look(2, 30.0) is None
    assert watched.look(3, 31.5) == 1.5


def test_what_came_together_with_ours_is_not_guessed_apart(watched: Watched) -> None:
    watched.look(100, 50.0)
    watched.restart()
    watched.look(0, 0.0)
    watched.we_asked()
    assert watched.look(7, 90.0) is None
    assert watched.look(9, 91.0) == 0.5


@pytest.mark.parametrize("quiet", [0.0, 0.5])
def test_one_of_ours_that_may_be_counted_late_is_waited_for(watched: Watched, quiet: float) -> None:
    watched.look(100, 50.0)
    watched.restart()
    watched.we_asked(quiet=quiet)
    assert watched.look(0, 0.0) is None
    watched.ours = replace(watched.ours, quiet_seconds=5.0 + quiet)
    assert watched.look(1, 20.0) is None, "that may have been ours"
    watched.ours = replace(watched.ours, quiet_seconds=10.0 + quiet)
    assert watched.look(2, 21.0) == 1.0


def test_one_of_ours_that_it_may_answer_yet_makes_it_unknowable(watched: Watched) -> None:
    watched.look(100, 50.0)
    watched.restart()
    watched.look(0, 0.0)
    watched.we_asked(unanswered=1)
    assert watched.look(0, 0.0) is None
    assert watched.look(1, 300.0) is None
    assert watched.look(9, 301.0) is None
    watched.restart()
    watched.look(None)
    assert watched.look(4, 2.0) == 0.5, "of the next process it is known again"


def test_what_the_process_before_it_had_counted_is_not_taken_for_the_new_ones(
    watched: Watched,
) -> None:
    watched.look(100, 50.0)
    watched.restart()
    assert watched.look(120, 60.0) is None, "read just before it ended"
    assert watched.look(1, 7.0) == 7.0


def test_what_an_earlier_driver_may_still_ask_makes_it_unknowable(watched: Watched) -> None:
    watched.look(0, 0.0)
    services = watched.bench.world.services
    anew = copy.copy(watched.driver)
    services["llm"] = replace(services["llm"], driver=anew)
    watched.driver = anew
    assert watched.look(0, 0.0) is None
    assert watched.look(1, 30.0) is None


def test_of_a_process_that_was_not_seen_to_start_nothing_is_known(watched: Watched) -> None:
    assert watched.look(100, 50.0) is None
    assert watched.look(101, 51.0) is None


def test_one_that_had_answered_nobody_when_it_was_first_seen_is_known(watched: Watched) -> None:
    watched.look(0, 0.0)
    assert watched.look(1, 3.0) == 3.0


def test_counters_that_go_back_in_the_same_process_are_no_start(watched: Watched) -> None:
    watched.look(100, 50.0)
    watched.restart()
    watched.look(None)
    watched.we_asked()
    watched.look(5, 5.0)
    assert watched.look(1, 1.0) is None
    assert watched.look(9, 9.0) is None


def test_a_new_process_ends_what_was_known_and_a_new_remediator_does_not(watched: Watched) -> None:
    watched.look(0, 0.0)
    assert watched.look(1, 3.0) == 3.0
    watched.new_remediator()
    assert watched.look(8, 9.0) == 3.0
    watched.restart()
    assert watched.look(None) is None


def test_a_server_that_counts_no_such_thing_has_no_such_series(watched: Watched) -> None:
    watched.driver.forced = ServiceProbe("ready", "")
    watched.prober.probe(watched.bench.world.services["llm"])
    assert watched.exported() is None


def test_a_manager_that_does_not_answer_changes_nothing(watched: Watched) -> None:
    watched.look(0, 0.0)
    watched.manager.fails = "no socket"
    assert watched.look(1, 3.0) is None
    watched.manager.fails = None
    assert watched.look(2, 4.0) == 2.0


# What the drivers say


def test_vllm_counts_over_its_engines_and_says_what_was_ours() -> None:
    with fake_vllm() as server:
        driver = services.create(ServiceConfig("llm", "vllm", server.url, {}), Timing())
        assert driver.probe().first_tokens == FirstTokens(0, 0.0, NONE_OF_OURS)
        lines = (
            'vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="qwen"} 3.0\n'
            'vllm:time_to_first_token_seconds_count{engine="0",model_name="qwen"} 3.0\n'
            'vllm:time_to_first_token_seconds_sum{engine="0",model_name="qwen"} 1.5\n'
            'vllm:time_to_first_token_seconds_count{engine="1",model_name="qwen"} 1.0\n'
            'vllm:time_to_first_token_seconds_sum{engine="1",model_name="qwen"} 0.25\n'
        )
        server.answers["/metrics"] = (200, PAGE + lines)
        driver.canary("qwen", 5)
        told = driver.probe().first_tokens
        assert told is not None
        assert (told.requests, told.seconds) == (4, 1.75)
        assert (told.ours.begun, told.ours.unanswered) == (1, 0)
        assert math.isfinite(told.ours.quiet_seconds)
        for page in ((500, ""), (200, "")):
            server.answers["/metrics"] = page
            told = driver.probe().first_tokens
            assert told is not None
            assert (told.requests, told.seconds, told.ours.begun) == (None, None, 1)


def test_sglang_counts_its_own_and_none_before_the_first() -> None:
    with served(SgLang()) as url:
        driver = services.create(ServiceConfig("llm", "sglang", url, {}), Timing())
        assert driver.probe().first_tokens == FirstTokens(0, 0.0, NONE_OF_OURS)


def test_a_canary_that_is_in_work_is_never_quiet() -> None:
    canaries = OneAtATime()
    assert canaries.so_far == NONE_OF_OURS

    def ask_in_vain() -> None:
        with canaries.wait(1):
            assert (canaries.so_far.begun, canaries.so_far.quiet_seconds) == (1, 0.0)
            raise ServiceTimeout("no answer")

    with pytest.raises(ServiceTimeout, match="no answer"):
        ask_in_vain()
    assert (canaries.so_far.begun, canaries.so_far.unanswered) == (1, 1)


def test_one_that_begins_while_the_count_is_read_is_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    canaries = OneAtATime()
    turn, ends = canaries._turn, contextlib.ExitStack()

    class Turn:
        """Whoever looks whether it is taken is just too early."""

        def __getattr__(self, name: str) -> object:
            return getattr(turn, name)

        def locked(self) -> bool:
            taken = turn.locked()
            monkeypatch.setattr(canaries, "_turn", turn)
            ends.enter_context(canaries.wait(1))
            return taken

    monkeypatch.setattr(canaries, "_turn", Turn())
    with ends:
        told = canaries.so_far
        assert told.quiet_seconds == 0.0 or told.begun < canaries.so_far.begun


@dataclass
class AskedMeanwhile(SgLang):
    """While its page of metrics is on its way, somebody asks for an answer."""

    meanwhile: Callable[[], object] = lambda: None

    def answer(self, request: Request) -> tuple[int, Any]:
        if request.path == "/metrics":
            self.meanwhile()
        return super().answer(request)


def test_one_that_runs_while_the_page_is_read_may_be_in_it_or_not() -> None:
    server = AskedMeanwhile()
    with served(server) as url:
        driver = services.create(ServiceConfig("llm", "sglang", url, {}), Timing())
        server.meanwhile = lambda: driver.canary("qwen", 5)
        assert driver.probe().first_tokens == FirstTokens(0, 0.0, OurRequests(1, 0, 0.0))
