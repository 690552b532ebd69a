"""Is a service hung, or only busy? Pure functions over fresh evidence.

99 % utilisation is how a healthy LLM server looks, and a canary that times out may only be queued:
neither leads to an action.

A server with a progress counter is stuck when it has requests and its real-time counter has not
moved for `stalled_after` seconds, as looks without a break have shown. A long prompt moves no counter
either, but draws what work draws, so three times as long must pass while

* all its cards' bands are learned: unless each has drawn less than at work for the last minute;
* they are not (a new installation, a new power limit or driver, no server with a counter there): where
  their power is known and one of them draws 35 % or more of the limit that holds now.

Where power cannot be read, `stalled_after` is all. Two canaries that failed make the longer time
unnecessary. So while the bands of a card are not learned, a prompt of more than `stalled_after`
seconds on a card that works below 35 % of its limit would be taken for a stall.

A server without a counter, or one that says that it has no request, is hung when two canaries
failed, or when one timed out and each of its cards has drawn no more than at rest, by its learned
bands, for two minutes. Anything else is a suspicion, which a person hears of.

What services on different cards have in common when they stand still at once is the host: none of
them is restarted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from remediator.durations import format_duration
from remediator.power import CardPower

Canary = Literal["answered", "failed", "refused", "timed_out", "not_asked"]
ServiceState = Literal["serving", "loading", "sleeping", "held", "down", "silent"]
Judgement = Literal[
    "busy",
    "no_demand",
    "held",
    "sleeping",
    "ghost",
    "not_saturated",
    "stalled",
    "hung",
    "stalling",
    "suspect",
    "loading",
    "device_fault",
    "node_fault",
    "no_service",
    "unknown",
]
Allowed = Literal["nothing", "restart", "watch", "page", "device_playbook"]

ALLOWED: Mapping[Judgement, Allowed] = {
    "busy": "nothing",
    "no_demand": "nothing",
    "held": "nothing",
    "sleeping": "nothing",
    "ghost": "nothing",
    "not_saturated": "nothing",
    "stalled": "restart",
    "hung": "restart",
    "stalling": "watch",
    "suspect": "page",
    "loading": "watch",
    "device_fault": "device_playbook",
    "node_fault": "page",
    "no_service": "nothing",
    "unknown": "watch",
}
"""The most that may follow from each verdict."""

# Where a card's bands are not learned: a hung kernel spins at a quarter of the limit or less on
# most cards, and one that works draws more than 40 %.
_LOW_POWER_RATIO = 0.35
# A long prompt emits nothing for minutes, and draws what work draws.
_PATIENCE_WITH_POWER = 3.0
# One reading below the band of work proves nothing: between two steps every card draws less.
_LOW_FOR = 60.0
_IDLE_FOR = 120.0
_GHOST_MEMORY_RATIO = 0.05


@dataclass(frozen=True)
class CardEvidence:
    """The cards of one service.

    `fault` is what the driver says of one of them, `readable` whether each gave a fresh reading.
    `power_ratio` is the highest draw as a share of the limit that holds now, None where not known.
    `each` is the power of each of them, against its own bands.
    """

    fault: str | None = None
    readable: bool = True
    power_ratio: float | None = None
    each: tuple[CardPower, ...] = ()

    @property
    def learned(self) -> bool:
        """Whether all of them can be judged by their own bands."""
        return bool(self.each) and all(one.below_busy_seconds is not None for one in self.each)

    @property
    def low(self) -> bool:
        """Whether it is proven that they draw less than work does."""
        if self.learned:
            return min(one.below_busy_seconds or 0.0 for one in self.each) >= _LOW_FOR
        return self.power_ratio is not None and self.power_ratio < _LOW_POWER_RATIO

    @property
    def idle(self) -> bool:
        """Whether they have drawn no more than with nothing to do, by their own bands."""
        return self.learned and min(one.idle_seconds or 0.0 for one in self.each) >= _IDLE_FOR

    @property
    def power_known(self) -> bool:
        """Whether power says anything at all."""
        return self.learned or self.power_ratio is not None


@dataclass(frozen=True)
class ServiceEvidence:
    """What one service showed; None where it could not be read.

    `progress_delta` is how far its real-time counter moved since the look before. It stands still
    for `still_seconds`, and there have been requests for `demand_seconds`, both without a break in
    the looks, of which the last was `look_age_seconds` ago. `demand` is the number of requests now.
    `canary_says` is what a canary failed with. The services in `together`, on other cards, began to
    stand still at the same time; `node` is what is known to be wrong with the whole machine.
    """

    name: str
    state: ServiceState = "serving"
    canary: Canary = "not_asked"
    canary_says: str = ""
    progress_delta: float | None = None
    still_seconds: float | None = None
    demand: int | None = None
    demand_seconds: float | None = None
    look_age_seconds: float | None = None
    cards: CardEvidence = field(default_factory=CardEvidence)
    together: tuple[str, ...] = ()
    node: str | None = None


@dataclass(frozen=True)
class HangEvidence:
    """Everything that the verdict on a card rests on; None where it could not be read.

    `reading_age_seconds` is how old its reading is, `node` what is wrong with the whole machine.
    """

    fresh: bool
    fault: str | None
    saturated_seconds: float | None
    required_seconds: float | None
    processes: int | None
    memory_ratio: float | None
    services: tuple[ServiceEvidence, ...]
    stalled_after: float
    reading_age_seconds: float | None = None
    node: str | None = None


@dataclass(frozen=True)
class Verdict:
    """The judgement, its sentence, and which services are stalled or hung."""

    judgement: Judgement
    sentence: str
    services: tuple[str, ...] = ()

    @property
    def allowed(self) -> Allowed:
        """The most that may follow from it."""
        return ALLOWED[self.judgement]


def judge_service(service: ServiceEvidence, stalled_after: float) -> Verdict:
    """The verdict on one service; `stalled_after` in seconds."""
    name = service.name
    if service.state in ("held", "down", "sleeping", "loading"):
        return _not_serving(service)
    if service.progress_delta is not None and service.progress_delta > 0:
        return Verdict("busy", f"{name} makes progress: busy is not hung")
    if service.canary == "answered":
        return Verdict("busy", f"{name} answered a canary: busy is not hung")
    if service.node is not None:
        return Verdict("node_fault", service.node)
    if service.state == "silent" or service.still_seconds is None:
        what = f"{name} proves neither progress nor a stall{_power(service)}"
        return _by_canary(service, what)
    if service.demand == 0:
        if service.canary == "not_asked":
            return Verdict("no_demand", f"{name} has no request ({_asked(service)})")
        return _by_canary(service, f"{name} says that it has no request{_power(service)}")
    if service.demand_seconds is None:
        return _by_canary(service, f"{name} stands still, and does not say whether it has requests")
    return _of_stall(service, service.still_seconds, service.demand_seconds, stalled_after)


def judge(evidence: HangEvidence) -> Verdict:
    """The verdict on one card that is said to be saturated."""
    if evidence.node is not None:
        # What still works is for whoever mends the machine to interrupt, and no news here.
        verdicts = (judge_service(one, evidence.stalled_after) for one in evidence.services)
        busy = next((verdict for verdict in verdicts if verdict.judgement == "busy"), None)
        return busy or Verdict("node_fault", evidence.node)
    if evidence.fault is not None:
        return Verdict("device_fault", f"the card has a fault of its own ({evidence.fault})")
    if not evidence.fresh or evidence.saturated_seconds is None:
        return Verdict("unknown", "the card gave no fresh reading, so nothing is concluded")
    if evidence.required_seconds is None:
        return Verdict("unknown", "no saturation threshold is exported, so nothing is concluded")
    if evidence.saturated_seconds < evidence.required_seconds:
        return Verdict(
            "not_saturated",
            f"saturated for {evidence.saturated_seconds:.0f} s only; it is not stuck at its limit",
        )
    return _of_services(evidence)


def _of_services(evidence: HangEvidence) -> Verdict:
    verdicts = [judge_service(one, evidence.stalled_after) for one in evidence.services]
    for verdict in verdicts:
        if verdict.judgement == "node_fault":
            return verdict
    stuck = [verdict for verdict in verdicts if verdict.judgement in ("stalled", "hung")]
    if stuck:
        # That a neighbour works explains the utilisation, not the stall.
        hung = any(verdict.judgement == "hung" for verdict in stuck)
        names = tuple(name for verdict in stuck for name in verdict.services)
        sentence = "; ".join(verdict.sentence for verdict in stuck)
        return Verdict("hung" if hung else "stalled", sentence, names)
    for judgement in ("device_fault", "unknown", "busy", "stalling"):
        for verdict in verdicts:
            if verdict.judgement == judgement:
                return verdict
    if _is_empty(evidence):
        return Verdict("ghost", "no process uses the card: a latched counter, nothing to restart")
    for verdict in verdicts:
        if verdict.judgement == "loading":
            return verdict
    at_work = [v for v in verdicts if v.judgement in ("suspect", "no_demand")]
    if not at_work:
        return Verdict(
            "no_service", "no configured service is at work on it: nothing may be restarted"
        )
    shown = "; ".join(verdict.sentence for verdict in at_work)
    return Verdict("suspect", f"no proof of progress and no proof of a stall: {shown}")


def _by_canary(service: ServiceEvidence, what: str) -> Verdict:
    """Without a counter, or without a request but our own."""
    cards = service.cards
    timed_out_at_rest = service.canary == "timed_out" and cards.idle
    if service.canary == "failed" or timed_out_at_rest:
        unfit = _unfit(service, what)
        if unfit is not None:
            return unfit
        rests = ", and its cards draw no more than at rest" if timed_out_at_rest else ""
        return Verdict("hung", f"{what} ({_asked(service)}{rests})", (service.name,))
    return Verdict("suspect", f"{what} ({_asked(service)})")


def _of_stall(
    service: ServiceEvidence, still: float, demand: float, stalled_after: float
) -> Verdict:
    name, cards = service.name, service.cards
    at_power = cards.power_known and not cards.low and service.canary != "failed"
    required = stalled_after * (_PATIENCE_WITH_POWER if at_power else 1.0)
    seen = min(still, demand)
    what = f"{name} has requests and no progress for {format_duration(seen)}{_power(service)}"
    if seen >= stalled_after and service.together:
        others = ", ".join(service.together)
        why = "they are on different cards, so it is the host or its driver"
        return Verdict("node_fault", f"{what}, and so have {others}: {why}")
    if seen < required:
        return Verdict("stalling", f"{what}; it is given {format_duration(required)}")
    unfit = _unfit(service, what)
    if unfit is not None:
        return unfit
    if cards.low or service.canary in ("failed", "timed_out"):
        return Verdict("hung", f"{what} ({_asked(service)})", (name,))
    return Verdict("stalled", what, (name,))


def _unfit(service: ServiceEvidence, what: str) -> Verdict | None:
    """Why a restart is not for this: the cards come first."""
    if service.cards.fault is not None:
        why = f"a card of it has a fault ({service.cards.fault})"
        return Verdict("device_fault", f"{what}, and {why}")
    if not service.cards.readable:
        return Verdict("unknown", f"{what}, but not every card of it gives a fresh reading")
    return None


def _not_serving(service: ServiceEvidence) -> Verdict:
    name = service.name
    if service.state == "held":
        return Verdict("held", f"{name} is held down on purpose")
    if service.state == "sleeping":
        return Verdict("sleeping", f"{name} was put to sleep or paused on purpose")
    if service.state == "loading":
        return Verdict("loading", f"{name} is coming up, which keeps a card busy")
    return Verdict("no_service", f"{name} is not up")


def _power(service: ServiceEvidence) -> str:
    cards = service.cards
    if cards.idle:
        return ", at the power of rest"
    if cards.learned:
        return f", at {'less than ' if cards.low else ''}the power of work"
    return "" if cards.power_ratio is None else f", at {cards.power_ratio:.0%} of the power limit"


def _asked(service: ServiceEvidence) -> str:
    words = {
        "answered": "a canary was answered",
        "failed": "two canaries failed",
        "refused": "a canary was not taken, which proves nothing",
        "timed_out": "a canary timed out, which may only mean that it is queued",
        "not_asked": "no canary was asked",
    }
    says = f": {service.canary_says}" if service.canary_says else ""
    return words[service.canary] + says


def _is_empty(evidence: HangEvidence) -> bool:
    """Whether it was seen that nothing uses the card; what could not be read proves nothing."""
    if evidence.processes is None or evidence.memory_ratio is None:
        return False
    return evidence.processes == 0 and evidence.memory_ratio < _GHOST_MEMORY_RATIO
