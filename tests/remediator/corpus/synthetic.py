"""The synthetic two thirds of the corpus, from a seed: `python -m tests.remediator.corpus.synthetic`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from tests.remediator.corpus.traces import FILES, Expect, Trace, write

SEED = 6


@dataclass(frozen=True)
class Model:
    """A kind of card: its limit, and what it draws with a model loaded and nothing to do, at work,
    and while a kernel of it spins. Watts."""

    name: str
    limit: float
    idle: tuple[float, float]
    busy: tuple[float, float]
    spin: tuple[float, float]


MODELS = (
    Model("A100-40", 400, (52, 66), (215, 395), (96, 128)),
    Model("H100-SXM", 700, (70, 120), (330, 690), (150, 210)),
    Model("RTX PRO 6000", 600, (18, 82), (250, 560), (128, 142)),
    Model("L40S", 350, (34, 42), (170, 345), (78, 96)),
    Model("L4", 72, (12, 29), (44, 72), (31, 36)),
    Model("GB10", 140, (5, 12), (38, 90), (16, 27)),
)


def learned(model: Model) -> dict[str, tuple[float, float]]:
    """What was learned of a card that has been in use for days."""
    return {"idle": model.idle, "busy": model.busy}


def working(model: Model, seconds: float, **more: Any) -> dict[str, Any]:
    """A phase of a server at work."""
    return {"for": seconds, "util": 1.0, "watts": model.busy, "rate": 900.0, "running": 8} | more


def resting(model: Model, seconds: float, **more: Any) -> dict[str, Any]:
    """A phase of a server with nothing to do."""
    return {"for": seconds, "util": 0.0, "watts": model.idle, "rate": 0.0, "running": 0} | more


def stuck(model: Model, seconds: float, **more: Any) -> dict[str, Any]:
    """A phase of a server that holds its requests and does nothing with them."""
    phase = {"for": seconds, "util": 1.0, "watts": model.spin, "rate": 0.0, "running": 3}
    return phase | {"waiting": 2, "canary": "timed_out"} | more


def one(name: str = "llm", cards: tuple[int, ...] = (0,), *, metrics: bool = True) -> Any:
    """A service."""
    return {"name": name, "cards": list(cards), "metrics": metrics}


def _of(model: Model, rng: random.Random) -> dict[str, Any]:
    known = rng.random() < 0.6
    return {"limit": model.limit, "learned": learned(model) if known else None}


def busy(model: Model, rng: random.Random, n: int) -> Trace:
    """Work of many kinds; some without metrics, some on several cards, some after odd events."""
    kind = n % 8
    phases: tuple[Any, ...] = (working(model, 1200, rate=rng.uniform(5, 4000)),)
    more: dict[str, Any] = {}
    why = "tokens flow for all of 20 min at full utilisation"
    if kind == 1:
        phases = (working(model, 1200, rate=1 / rng.uniform(20, 55), waiting=40),)
        why = "a token in less than a minute is slow, not stuck"
    elif kind == 2:
        more["services"] = (one(metrics=False),)
        phases = (working(model, 1200, canary="answered"),)
        why = "no metrics, but each canary is answered"
    elif kind == 3:
        more |= {"cards": 4, "services": (one(cards=(0, 1, 2, 3)),)}
        why = "one model over four cards, all pegged, tokens flow"
    elif kind == 4:
        phases = (working(model, 400), working(model, 60, new_process=True), working(model, 600))
        why = "its counter began anew with another process"
    elif kind == 5:
        gap = rng.uniform(10, 100)
        phases = (working(model, 400), working(model, gap, state="silent"), working(model, 600))
        why = "its metrics did not answer for a while under load"
    elif kind == 6:
        low = (model.busy[0] * 0.45, model.busy[1] * 0.5)
        phases = (working(model, 400), working(model, 800, cap=model.limit / 2, watts=low))
        why = "a cap halves what it draws; tokens flow on"
    elif kind == 7:
        more["services"] = (one(metrics=False),)
        phases = (working(model, 900, canary="overloaded"), working(model, 300, canary="answered"))
        why = "no metrics; its queue is full, and it says so with 503"
    return Trace("", "busy", why, "nothing", "", phases, **_of(model, rng), **more)


def long_prefill(model: Model, rng: random.Random, n: int) -> Trace:
    """A prompt so long that no counter moves meanwhile."""
    still = rng.uniform(60, 290)
    phase = working(model, still, rate=0.0, running=1, waiting=n % 3, canary="timed_out")
    # Until its bands are learned, a card's work is told by the share of its limit that it draws.
    strong = (max(model.busy[0], 0.45 * model.limit), model.busy[1])
    more = _of(model, rng)
    if more["learned"] is None:
        phase["watts"] = strong
    if n % 3 == 2:
        more |= {"cards": 2, "services": (one(cards=(0, 1)),)}
    phases = (working(model, 300), phase, working(model, 300))
    why = (
        f"a prompt is read for {still:.0f} s, in which nothing is counted; it draws what work draws"
    )
    return Trace("", "long_prefill", why, "nothing", "", phases, **more)


def long_single_request(model: Model, rng: random.Random, n: int) -> Trace:
    """One request that takes minutes on a server without metrics; a canary waits behind it."""
    seconds = rng.choice([120, 300, 900, 1800])
    services = (one(metrics=False),)
    cards = 1
    if n % 4 == 3:
        cards, services = 2, (one(cards=(0, 1), metrics=False),)
    phases = (
        working(model, 200, canary="answered"),
        working(model, seconds, canary="timed_out", running=1),
        working(model, 200, canary="answered"),
    )
    why = f"one answer takes {seconds} s; a canary is queued behind it"
    more = _of(model, rng) | {"cards": cards, "services": services}
    return Trace("", "long_single_request", why, "nothing", "", phases, **more)


def idle(model: Model, rng: random.Random, n: int) -> Trace:
    """Nothing to do, with and without metrics, between bursts."""
    metrics = n % 2 == 0
    phases: tuple[Any, ...] = (resting(model, 900),)
    why = "no request, nothing drawn"
    if n % 3 == 1:
        burst = [working(model, rng.uniform(3, 40)), resting(model, rng.uniform(30, 200))]
        phases = tuple(phase for _ in range(5) for phase in burst)
        why = "short bursts with pauses"
    elif n % 3 == 2:
        clients = [resting(model, 6), resting(model, 50, running=1, util=0.3)]
        phases = (*(phase for _ in range(8) for phase in clients), resting(model, 60))
        why = "clients that give up come and go: no request is there for long"
    return Trace(
        "", "idle", why, "nothing", "", phases, services=(one(metrics=metrics),), **_of(model, rng)
    )


def ghost(model: Model, rng: random.Random, n: int) -> Trace:
    """Utilisation that is latched at 100 %."""
    watts = (model.idle[1], model.idle[1] * rng.uniform(1.2, 2.2))
    latched = {"for": 1500, "util": 1.0, "watts": watts, "rate": 0.0, "running": 0}
    if n % 3 == 0:
        phases: tuple[Any, ...] = ({**latched, "state": "down", "processes": 0, "memory": 0.0},)
        why = "its server is gone, no process uses the card, yet it shows 100 %"
    elif n % 3 == 1:
        phases = (working(model, 200), {**latched, "canary": "answered"})
        why = "latched after a restart; the service is idle and answers"
    else:
        phases = ({**latched, "canary": "answered"},)
        return Trace(
            "",
            "ghost",
            "latched; a server without metrics answers",
            "nothing",
            "",
            phases,
            services=(one(metrics=False),),
            **_of(model, rng),
        )
    return Trace("", "ghost", why, "nothing", "", phases, **_of(model, rng))


def loading(model: Model, rng: random.Random, n: int) -> Trace:
    """A server that comes up, which may take many minutes and keep a card busy."""
    seconds = rng.uniform(60, 900)
    up = working(model, seconds, state="loading", rate=0.0, running=0, util=rng.choice([0.1, 1.0]))
    after = working(model, 200)
    if n % 3 == 1:
        up |= {"watts": model.idle}
    first = working(model, 100) | ({"state": "sleeping"} if n % 3 == 2 else {})
    metrics = n % 2 == 0
    why = f"it loads its weights for {seconds:.0f} s and counts nothing"
    return Trace(
        "",
        "loading",
        why,
        "nothing",
        "",
        (first, {**up, "new_process": True}, after),
        services=(one(metrics=metrics),),
        **_of(model, rng),
    )


def sleeping(model: Model, rng: random.Random, n: int) -> Trace:
    """Put to sleep or paused on purpose, with requests that wait meanwhile."""
    waiting = n % 4
    pause = resting(model, 900, state="sleeping", waiting=waiting, util=float(n % 2))
    phases = (working(model, 200), pause, working(model, 200))
    why = f"it sleeps on purpose, {waiting} request(s) wait"
    return Trace("", "sleeping", why, "nothing", "", phases, **_of(model, rng))


def batch_end(model: Model, rng: random.Random, n: int) -> Trace:
    """The last request of a batch is done; utilisation and gauges lag behind."""
    lag = rng.uniform(3, 80)
    tail = {"for": lag, "util": 1.0, "watts": model.idle, "rate": 0.0, "running": 1 + n % 2}
    phases = (working(model, 500), {**tail, "canary": "answered"}, resting(model, 700))
    why = f"a batch ends; its gauge and the card's counter follow {lag:.0f} s later"
    return Trace("", "batch_end", why, "nothing", "", phases, **_of(model, rng))


def stall(model: Model, rng: random.Random, n: int) -> Trace:
    """A server with a counter that holds requests and makes no progress."""
    before = rng.uniform(120, 600)
    phase = stuck(model, 600, running=n % 3, waiting=1 + n % 4)
    why = "it holds requests, counts nothing, and draws what no work draws"
    more: dict[str, Any] = _of(model, rng)
    if more["learned"] is None:
        # Without bands a share of the limit tells: below 35 % nothing works.
        phase["watts"] = (model.spin[0] * 0.7, min(model.spin[1], 0.33 * model.limit))
    if n % 4 == 1:
        phase |= {"util": rng.uniform(0, 0.3), "watts": model.idle}
        why = "its scheduler is stuck: requests wait, the card rests"
    elif n % 4 == 2:
        more |= {"cards": 2, "services": (one(cards=(0, 1)),)}
        why = "one of two cards waits for the other for ever"
    elif n % 4 == 3:
        more |= {"services": (one("llm"), one("embeddings"))}
        phase |= {"services": {"embeddings": {"rate": 50.0, "running": 1}}}
        phase |= {"watts": (max(model.busy[0], 0.5 * model.limit), model.busy[1])}
        why = "one of two services on a card is stuck; what the other draws hides it for a while"
    expect: Expect = "watched" if n % 4 == 3 else "restart"
    phases = (working(model, before), phase)
    return Trace("", "stall", why, expect, "", phases, began=before, stuck=("llm",), **more)


def stall_at_power(model: Model, rng: random.Random, n: int) -> Trace:
    """A stall that draws what work draws cannot be told from a long prompt for a while."""
    trace = stall(model, rng, 0)
    phase = {**trace.phases[1], "watts": (max(model.busy[0], 0.5 * model.limit), model.busy[1])}
    why = "it stands still at the power of work, as a long prompt does: it is given more time"
    return replace(trace, expect="watched", why=why, phases=(trace.phases[0], phase))


def hang_low_power(model: Model, rng: random.Random, n: int) -> Trace:
    """A server without metrics that hangs."""
    before = rng.uniform(60, 400)
    watts = model.spin if n % 2 == 0 else model.idle
    phase = stuck(model, 900, watts=watts)
    more = _of(model, rng)
    may = more["learned"] is not None and n % 2 == 1
    if n % 4 == 1:
        more |= {"cards": 2, "services": (one(cards=(0, 1), metrics=False),)}
    else:
        more |= {"services": (one(metrics=False),)}
    why = "no metrics; a canary gets no answer, and the card draws what no work draws"
    phases = (working(model, before, canary="answered"), phase)
    return Trace(
        "",
        "hang_low_power",
        why,
        "reported",
        "",
        phases,
        began=before,
        stuck=("llm",),
        may_restart=may,
        **more,
    )


def device_fault(model: Model, rng: random.Random, n: int) -> Trace:
    """What the driver says of a card comes before all else."""
    before = rng.uniform(60, 400)
    fault: dict[str, Any] = rng.choice(
        [
            {"fault": "lost"},
            {"fault": "reset_required"},
            {"recovery": "reset"},
            {"recovery": "drain_and_reset"},
            {"recovery": "reboot"},
            {"xid": 119, "recovery": "unsaid"},
            {"xid": 95, "recovery": "unsaid"},
            {"xid": 79},
        ]
    )
    phases = (working(model, before), stuck(model, 300, **fault))
    more = _of(model, rng)
    if n % 3 == 2:
        more |= {"cards": 2, "services": (one(cards=(0, 1)),)}
        working_card = {"watts": model.busy} | dict.fromkeys(("fault", "recovery", "xid"))
        phases = (phases[0], {**phases[1], "cards": {"1": working_card}})
    why = f"the driver says so: {fault}"
    return Trace("", "device_fault", why, "device", "", phases, began=before, **more)


def node_fault(model: Model, rng: random.Random, n: int) -> Trace:
    """Services on different cards stand still at once: what they have in common is the host."""
    before = rng.uniform(60, 400)
    count = 2 + n % 3
    services = tuple(one(f"llm{i}", (i,)) for i in range(count))
    phases = (working(model, before), stuck(model, 600))
    why = f"{count} services on {count} cards stand still at the same moment"
    more = _of(model, rng) | {"cards": count, "services": services}
    return Trace("", "node_fault", why, "escalated", "", phases, began=before, **more)


Maker = Callable[[Model, random.Random, int], Trace]
MAKERS: tuple[tuple[Maker, int], ...] = (
    (busy, 20),
    (long_prefill, 12),
    (long_single_request, 10),
    (idle, 10),
    (ghost, 8),
    (loading, 10),
    (sleeping, 8),
    (batch_end, 8),
    (stall, 16),
    (stall_at_power, 6),
    (hang_low_power, 12),
    (device_fault, 12),
    (node_fault, 6),
)


def traces(seed: int = SEED) -> Iterator[Trace]:
    """All of them; the same each time."""
    for maker, count in MAKERS:
        for n in range(count):
            rng = random.Random(f"{seed} {maker.__name__} {n}")
            model = MODELS[n % len(MODELS)]
            name = f"{maker.__name__}-{n:02d}-{model.name.replace(' ', '-')}"
            source = f"synthetic, seed {seed}"
            yield replace(maker(model, rng, n), id=name, source=source)


if __name__ == "__main__":
    write(FILES[0], traces())
