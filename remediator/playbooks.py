"""Playbooks: which steps answer which alert, from the shipped defaults and the configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Literal

import yaml

from remediator import actions, signals
from remediator.actions import Action, ForControl, Gentle, changes_a_card
from remediator.config.model import Mode, Permission
from remediator.config.strict import Seconds, build, did_you_mean
from remediator.errors import ConfigError
from remediator.signals import Signal
from remediator.targets import Target
from remediator.world import Service

NOTIFY = "notify"

Kind = Literal["gpu", "service", "host"]

_TAILS = ("afterwards", "bring_back")

# Numbers that no rung has, whatever becomes of the configuration while a run is under way.
AFTERWARDS, BRING_BACK = 1000, 1001


@dataclass(frozen=True)
class RungBlock:
    """A rung as YAML has it."""

    steps: tuple[Mapping[str, Any], ...]
    verify: Mapping[str, Any]
    within: Seconds = 120.0


@dataclass(frozen=True)
class PlaybookBlock:
    """A playbook as YAML has it."""

    alerts: tuple[str, ...]
    target: Kind | tuple[Kind, ...]
    weight: int
    evidence: Mapping[str, Any]
    rungs: tuple[RungBlock, ...] = ()
    afterwards: tuple[Mapping[str, Any], ...] = ()
    bring_back: tuple[Mapping[str, Any], ...] = ()
    mode: Mode | None = None
    recheck: Seconds = 30.0
    pages: bool = True


@dataclass(frozen=True)
class Stage:
    """Steps that are done one after the other."""

    steps: tuple[Action, ...] = ()
    raw_steps: tuple[Mapping[str, Any], ...] = ()

    @property
    def destructive(self) -> bool:
        """Whether any step interrupts a service or a card."""
        return any(step.destructive for step in self.steps)

    @property
    def safe(self) -> bool:
        """Whether all that it interrupts is stopped for safety: no budget stands in its way."""
        return self.destructive and all(s.safe_direction for s in self.steps if s.destructive)

    @property
    def on_all_services(self) -> bool:
        """Whether it works on every service of the card, not on a single one."""
        return any(step.scope == "all_services" for step in self.steps)

    @property
    def permissions(self) -> tuple[Permission, ...]:
        """The second keys its steps need."""
        return tuple(dict.fromkeys(s.permission for s in self.steps if s.permission))


@dataclass(frozen=True, kw_only=True)
class Rung(Stage):
    """Steps, and the signal that must be gone after them (`within` seconds)."""

    verify: Signal
    within: float


@dataclass(frozen=True)
class Playbook:
    """What is done about an alert. A heavier one (`weight`) supersedes a lighter one.

    Of several `targets` the first whose key label the alert carries is the one aimed at. Without
    `pages` no end of a run and no refusal calls a person. `afterwards` is done once a rung is
    verified; `bring_back` where a run ends before all steps of its rung were done, so that what it
    stopped does not stay down. Neither interrupts anything.
    """

    name: str
    alerts: tuple[str, ...]
    targets: tuple[Kind, ...]
    weight: int
    evidence: Signal
    rungs: tuple[Rung, ...]
    mode: Mode | None
    recheck: float
    pages: bool = True
    afterwards: Stage = field(default_factory=Stage)
    bring_back: Stage = field(default_factory=Stage)

    @property
    def stages(self) -> Mapping[int, Stage]:
        """The rungs by number, then what comes after them."""
        tails = {AFTERWARDS: self.afterwards, BRING_BACK: self.bring_back}
        return {**dict(enumerate(self.rungs)), **tails}

    @property
    def safe(self) -> bool:
        """Whether its first rung is the safe direction."""
        return bool(self.rungs) and self.rungs[0].safe

    @property
    def only_unloads(self) -> bool:
        """Whether it interrupts nothing and works on every service alike."""
        return all(rung.on_all_services and not rung.destructive for rung in self.rungs)


@dataclass(frozen=True)
class PlannedStep:
    """One step on one target; `rung` is the number of its stage: a rung's, or that of a tail."""

    rung: int
    action: Action
    raw: Mapping[str, Any]
    gpu: str | None
    service: str | None

    def to_json(self) -> dict[str, Any]:
        """For the journal."""
        return {
            "rung": self.rung,
            "step": dict(self.raw),
            "gpu": self.gpu,
            "service": self.service,
        }


@dataclass(frozen=True)
class Plan:
    """Every step of a run, and why there can be none."""

    steps: tuple[PlannedStep, ...]
    problem: str = ""


@dataclass
class Playbooks:
    """All playbooks by name, and which alert each answers. A reload changes them in place."""

    by_name: Mapping[str, Playbook]
    by_alert: Mapping[str, Playbook] = field(default_factory=dict)

    def for_alert(self, alertname: str) -> Playbook | None:
        """The playbook of an alert; None means notify."""
        return self.by_alert.get(alertname)

    def snapshot(self) -> Playbooks:
        """The playbooks as they are now, which no reload changes."""
        return Playbooks(self.by_name, self.by_alert)

    def adopt(self, other: Playbooks) -> None:
        """Put other playbooks in force."""
        self.by_name, self.by_alert = other.by_name, other.by_alert


def load(overrides: Mapping[str, Any]) -> Playbooks:
    """The shipped playbooks with `overrides` laid over them.

    Raises:
        ConfigError: a block is wrong, or two playbooks answer one alert.
    """
    raw: dict[str, Any] = yaml.safe_load(
        resources.files("remediator").joinpath("playbooks.yml").read_text(encoding="utf-8")
    )
    shipped = tuple(raw)
    for name, block in overrides.items():
        if not isinstance(block, Mapping):
            raise ConfigError(f"playbooks.{name} must be a mapping")
        raw[name] = {**raw.get(name, {}), **block}
    by_name = {name: _known_or_whole(name, block, shipped) for name, block in raw.items()}
    by_alert: dict[str, Playbook] = {}
    for playbook in by_name.values():
        for alert in playbook.alerts:
            if alert in by_alert:
                other = by_alert[alert].name
                raise ConfigError(f"playbooks {other} and {playbook.name} both answer {alert}")
            by_alert[alert] = playbook
    return Playbooks(by_name, by_alert)


def make_plan(
    playbook: Playbook,
    target: Target,
    services: Sequence[Service],
    singled_out: Sequence[str] = (),
    *,
    control: str | None = None,
) -> Plan:
    """Every step of `playbook` on `target`.

    Args:
        playbook: What is to be done.
        target: What it is aimed at.
        services: The configured services of the card, or the one aimed at.
        singled_out: Those of them that the evidence names; a rung for one service works on these.
        control: What writes to the cards; steps that only another one has are left out.
    """
    gpu = target.name if target.kind == "gpu" else None
    named = [service for service in services if service.name in singled_out]
    steps: list[PlannedStep] = []
    for number, rung in playbook.stages.items():
        chosen = services if rung.on_all_services or not named else named
        for action, raw in zip(rung.steps, rung.raw_steps, strict=True):
            if isinstance(action, ForControl) and control not in (None, action.control):
                continue
            if action.scope == "gpu":
                steps.append(PlannedStep(number, action, raw, gpu, None))
                continue
            if not services:
                where = "this machine" if target.kind == "host" else target.name
                return _cut(steps, number, f"no configured service uses {where}")
            if len(chosen) > 1 and not rung.on_all_services and not named:
                names = ", ".join(service.name for service in chosen)
                return _cut(steps, number, f"several services use {target.name} ({names})")
            steps += [PlannedStep(number, action, raw, gpu, s.name) for s in chosen]
    return Plan(tuple(steps))


def from_journal(raw: Sequence[Mapping[str, Any]]) -> tuple[PlannedStep, ...]:
    """The steps that `PlannedStep.to_json` wrote."""
    return tuple(
        PlannedStep(
            rung=int(one["rung"]),
            action=actions.create(one["step"], "journal"),
            raw=one["step"],
            gpu=one["gpu"],
            service=one["service"],
        )
        for one in raw
    )


def _cut(steps: list[PlannedStep], rung: int, problem: str) -> Plan:
    """Only whole rungs before the impossible one remain."""
    return Plan(tuple(step for step in steps if step.rung < rung), problem)


def stage_name(number: int) -> str:
    """What a person calls the stage with this number."""
    tails = {AFTERWARDS: "afterwards", BRING_BACK: "bring back"}
    return tails.get(number, f"rung {number + 1}")


def _known_or_whole(name: str, raw: object, shipped: Sequence[str]) -> Playbook:
    """A playbook; a part of one under a name that is not shipped is most likely a slip."""
    try:
        return _playbook(name, raw)
    except ConfigError as error:
        hint = "" if name in shipped else did_you_mean(name, shipped)
        if not hint:
            raise
        raise ConfigError(f"{error}; no playbook {name!r} is shipped: {hint}") from None


def _playbook(name: str, raw: object) -> Playbook:
    where = f"playbooks.{name}"
    block = build(PlaybookBlock, raw, where)
    rungs = tuple(_rung(rung, f"{where}.rungs[{i}]") for i, rung in enumerate(block.rungs))
    targets = (block.target,) if isinstance(block.target, str) else block.target
    if not targets:
        raise ConfigError(f"{where}.target is empty; it must name what the playbook is aimed at")
    other = next((kind for kind in targets if kind != "gpu"), None)
    if other and any(step.scope == "gpu" for rung in rungs for step in rung.steps):
        raise ConfigError(f"{where} is aimed at a {other}, so it can have no GPU step")
    tails = {key: _tail(getattr(block, key), f"{where}.{key}") for key in _TAILS}
    if other and any(step.scope == "gpu" for tail in tails.values() for step in tail.steps):
        raise ConfigError(f"{where} is aimed at a {other}, so it can have no GPU step")
    return Playbook(
        name=name,
        alerts=block.alerts,
        targets=targets,
        weight=block.weight,
        evidence=signals.create(block.evidence, f"{where}.evidence"),
        rungs=rungs,
        mode=block.mode,
        recheck=block.recheck,
        pages=block.pages,
        **tails,
    )


def _tail(raw: tuple[Mapping[str, Any], ...], where: str) -> Stage:
    """Steps after a rung: no gate is asked before them, so they may interrupt nothing."""
    steps = tuple(actions.create(one, f"{where}[{i}]") for i, one in enumerate(raw))
    for number, step in enumerate(steps):
        if step.destructive or changes_a_card(step) or isinstance(step, Gentle):
            raise ConfigError(
                f"{where}[{number}]: {step.kind} changes a service or a card; that belongs into a "
                "rung, which is verified"
            )
    return Stage(steps, raw)


def _rung(block: RungBlock, where: str) -> Rung:
    if not block.steps:
        raise ConfigError(f"{where}.steps is empty")
    return Rung(
        steps=tuple(
            actions.create(raw, f"{where}.steps[{i}]") for i, raw in enumerate(block.steps)
        ),
        raw_steps=block.steps,
        verify=signals.create(block.verify, f"{where}.verify"),
        within=block.within,
    )
