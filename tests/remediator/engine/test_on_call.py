"""What on-call hears at every end of every playbook: enough to act on, and nothing that is no enum value."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from remediator import actions, signals
from remediator.actions import Intent, Outcome
from remediator.alertmanager import Alert, Notification
from remediator.engine.gathering import supersede
from remediator.errors import OutcomeUnknown, RemediatorError
from remediator.inventory import host_instance
from remediator.metrics import RemediatorCollector
from remediator.playbooks import Playbook, load
from remediator.policy.decision import GATE_REASONS
from remediator.signals import Finding
from remediator.store import Incident
from tests.remediator.engine import bench as bench_module
from tests.remediator.engine.bench import EVERYTHING, Bench

HOSTILE = 'no such device "/dev/nvidia0"\n} 1\nremediator_incident_state{state="x"} 1 \x1b[2J'
ENUM = re.compile(r"[a-z]+(_[a-z]+)*")
BOOKS = {name: book for name, book in load({}).by_name.items() if book.rungs}
# How a run is made to end, and what on-call is told then.
ENDS = {
    "succeeded": "recovering",
    "still_present": "needs_human",
    "no_evidence": "needs_human",
    "failed": "needs_human",
    "impossible": "needs_human",
    "outcome_unknown": "needs_human",
    "internal_error": "needs_human",
    "refuted": "refuted",
    "superseded": "recovering",
}
Make = Callable[..., Bench]


class Script:
    """The world as a play: what the evidence says, and what each step does."""

    def __init__(self, end: str) -> None:
        self.end = end
        self.steps_done = 0
        self.at_step = 0
        self.bench: Bench | None = None

    @property
    def finding(self) -> Finding:
        state = "present"
        if self.steps_done:
            state = {"succeeded": "absent", "no_evidence": "unknown"}.get(self.end, "present")
        return Finding(state, "scripted", HOSTILE)  # type: ignore[arg-type]

    def intend(self, context: actions.StepContext) -> Intent:
        if self.end == "impossible" and self.steps_done == self.at_step:
            raise RemediatorError(HOSTILE)
        return Intent(HOSTILE)

    def run(self, context: actions.StepContext, intent: Mapping[str, Any]) -> Outcome:
        here = self.steps_done == self.at_step
        self.steps_done += 1
        if not here:
            return Outcome("done", "scripted", HOSTILE)
        if self.end == "failed":
            raise RemediatorError(HOSTILE)
        if self.end == "outcome_unknown":
            raise OutcomeUnknown(HOSTILE)
        if self.end == "internal_error":
            raise KeyError(HOSTILE)
        if self.end == "refuted":
            return Outcome("refuted", "healthy", HOSTILE)
        if self.end == "superseded":
            assert self.bench is not None
            run = self.bench.run.id
            with self.bench.store.transaction() as tx:
                supersede(tx, run, "emergency-stop")
        return Outcome("done", "scripted", HOSTILE)


class ScriptedSignal:
    reasons = ("scripted",)

    def __init__(self, script: Script) -> None:
        self._script = script

    def read(self, world: object, target: object) -> Finding:
        return self._script.finding


@pytest.fixture
def play(make_bench: Make, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bench]:
    def start(playbook: Playbook, kind: str, alertname: str, end: str, at_step: int = 0) -> Bench:
        script = Script(end)
        script.at_step = at_step
        create = actions.create

        def scripted(raw: Mapping[str, Any], where: str) -> actions.Action:
            action = create(raw, where)
            action.intend = script.intend  # type: ignore[method-assign]
            action.run = script.run  # type: ignore[method-assign]
            action.begun = lambda context, intent: False  # type: ignore[method-assign]
            return action

        # Those that other tests have read must neither be scripted nor stand in for these.
        monkeypatch.setattr(bench_module, "_LOADED", {})
        monkeypatch.setattr(actions, "create", scripted)
        monkeypatch.setattr(signals, "create", lambda raw, where: ScriptedSignal(script))
        bench = make_bench(services=("ollama",), allow=[*EVERYTHING, "gpu_reset"])
        script.bench = bench
        fire(bench, alertname, kind)
        bench.act()
        return bench

    return start


def fire(bench: Bench, alertname: str, kind: str, status: str = "firing") -> None:
    key, value = {
        "gpu": ("uuid", bench.uuids[0]),
        "service": ("llm_service", "ollama"),
        "host": ("instance", host_instance(bench.config)),
    }[kind]
    labels = {"alertname": alertname, key: value}
    began = bench.clock.now() - 5 - bench.clock.passed
    ended = bench.clock.now() if status == "resolved" else None
    alert = Alert("f" * 16, status, labels, {}, began, ended)  # type: ignore[arg-type]
    bench.intake.accept(Notification("remediator", "", 0, (alert,), "digest"))


def incidents(bench: Bench) -> list[Incident]:
    with bench.store.reading() as tx:
        return list(tx.incidents.open_all())


def paged(bench: Bench) -> list[dict[str, str]]:
    """The labels of each open incident, as Prometheus gets them."""
    collector = RemediatorCollector(
        bench.world, bench.playbooks, bench.counters, bench.intake, bench.prober
    )
    return [
        dict(sample.labels)
        for family in collector.collect()
        if family.name == "remediator_incident_state"
        for sample in family.samples
    ]


def cases() -> list[tuple[str, str, str]]:
    return [(name, kind, end) for name in BOOKS for kind in BOOKS[name].targets for end in ENDS]


@pytest.mark.parametrize(("name", "kind", "end"), cases())
def test_every_end_of_every_playbook_says_what_on_call_needs(
    play: Callable[..., Bench], name: str, kind: str, end: str
) -> None:
    playbook = BOOKS[name]
    bench = play(playbook, kind, playbook.alerts[0], end)
    run = bench.run
    assert run.ended_at is not None, run
    state = ENDS[end]
    if state == "needs_human" and not playbook.pages:
        assert incidents(bench) == [], "it calls nobody, and claims nothing either"
        return
    (labels,) = paged(bench)
    assert labels["state"] == state
    assert (labels["trigger"], labels["playbook"]) == (playbook.alerts[0], name)
    assert bool(labels["uuid"]) == (kind == "gpu")
    assert labels["llm_service"] == ("ollama" if kind == "service" else "")
    assert labels["last_step"] in actions.names(), "how far it got"
    assert ENUM.fullmatch(labels["reason"]), "why it ended"
    assert run.sentence, "and the story is in the run"


@pytest.mark.parametrize("name", [name for name, book in BOOKS.items() if book.pages])
def test_the_step_that_failed_is_the_one_that_is_named(
    play: Callable[..., Bench], name: str
) -> None:
    playbook = BOOKS[name]
    steps = playbook.rungs[0].steps
    last = max(n for n, step in enumerate(steps) if not isinstance(step, actions.ForControl))
    bench = play(playbook, playbook.targets[0], playbook.alerts[0], "failed", at_step=last)
    (labels,) = paged(bench)
    assert labels["last_step"] in {step.kind for step in playbook.rungs[0].steps}
    failed = [step for step in bench.steps() if step.state == "failed"]
    assert [step.action for step in failed] == [playbook.rungs[0].steps[last].kind]
    if not playbook.bring_back.steps:
        assert labels["last_step"] == failed[0].action


@pytest.mark.parametrize("end", [end for end, state in ENDS.items() if state != "needs_human"])
@pytest.mark.parametrize("name", BOOKS)
def test_what_is_mended_or_refuted_is_over_with_its_alert(
    play: Callable[..., Bench], name: str, end: str
) -> None:
    playbook = BOOKS[name]
    kind, alertname = playbook.targets[0], playbook.alerts[0]
    bench = play(playbook, kind, alertname, end)
    fire(bench, alertname, kind, "resolved")
    bench.tick_housekeeper()
    assert incidents(bench) == []


@pytest.mark.parametrize("name", [name for name, book in BOOKS.items() if book.pages])
def test_what_needs_a_person_outlives_its_alert_until_it_is_seen_good(
    play: Callable[..., Bench], name: str
) -> None:
    playbook = BOOKS[name]
    kind, alertname = playbook.targets[0], playbook.alerts[0]
    bench = play(playbook, kind, alertname, "failed")
    bench.card.health = "critical"
    bench.managers["ollama"].die()
    fire(bench, alertname, kind, "resolved")
    for _ in range(3):
        bench.clock.advance(60)
        bench.tick_housekeeper()
    (incident,) = incidents(bench)
    assert incident.state == "needs_human"
    bench.card.health = "healthy"
    bench.managers["ollama"].start(1)
    bench.tick_housekeeper()
    assert incidents(bench) == []


@pytest.mark.parametrize("name", sorted(load({}).by_name))
def test_every_reason_that_a_playbook_may_give_is_an_enum_value(name: str) -> None:
    playbook = load({}).by_name[name]
    read = [playbook.evidence, *(rung.verify for rung in playbook.rungs)]
    for reason in {*GATE_REASONS, *(reason for signal in read for reason in signal.reasons)}:
        assert ENUM.fullmatch(reason), reason
