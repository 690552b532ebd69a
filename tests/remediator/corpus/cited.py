"""The cited third of the corpus: `python -m tests.remediator.corpus.cited`.

Each is modelled on what a report says was seen; where it gives watts, they are these. Held out: no
threshold was chosen by them. A source is named as its own tracker names it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tests.remediator.corpus.synthetic import MODELS, Model, one, resting, stuck, working
from tests.remediator.corpus.traces import FILES, Trace, write

A100, H100, RTX, L40S, L4, GB10 = MODELS
H100_PCIE = Model("H100 PCIe", 350, (48, 62), (150, 345), (69, 72))
B200 = Model("B200", 1000, (140, 190), (420, 980), (230, 300))

Several = tuple[Trace, ...]


def _trace(
    label: Any, expect: Any, source: str, why: str, model: Model, *phases: Any, **more: Any
) -> Trace:
    return Trace("", label, why, expect, source, phases, held_out=True, limit=model.limit, **more)


def _twice(trace: Trace, model: Model) -> Several:
    """On a fresh installation, and where the card is known."""
    return trace, replace(trace, learned={"idle": model.idle, "busy": model.busy})


def _hung(source: str, why: str, model: Model, **more: Any) -> Trace:
    phase = stuck(model, 600, **more)
    return _trace(
        "stall",
        "restart",
        source,
        why,
        model,
        working(model, 300),
        phase,
        began=300.0,
        stuck=("llm",),
    )


def _untold(source: str, why: str, model: Model, **more: Any) -> Trace:
    """A hang of a server that gives no figures."""
    return _trace(
        "hang_low_power",
        "reported",
        source,
        why,
        model,
        working(model, 300, canary="answered"),
        stuck(model, 900, **more),
        began=300.0,
        stuck=("llm",),
        services=(one(metrics=False),),
    )


def _device(source: str, why: str, model: Model, **fault: Any) -> Trace:
    return _trace(
        "device_fault",
        "device",
        source,
        why,
        model,
        working(model, 200),
        stuck(model, 240, **fault),
        began=200.0,
    )


def _healthy(label: Any, source: str, why: str, model: Model, *phases: Any, **more: Any) -> Trace:
    return _trace(label, "nothing", source, why, model, *phases, **more)


def hangs() -> Iterator[Trace]:
    """Servers with figures that stood still."""
    pegged = "/health 200, 2 running, 0 tok/s, pegged at 96-100 %, about 135 W of 600 W"
    yield from _twice(_hung("vLLM #40926", pegged, RTX, watts=(133, 138), running=2), RTX)
    falls = "96 % at 16-27 W, the temperature falls; healthy it draws about 45 W, to 90 W"
    yield from _twice(_hung("spark-vllm-docker #260", falls, GB10, watts=(16, 27)), GB10)
    frozen = "frozen at 100 % and 69-72 W of 350 W"
    yield from _twice(_hung("lambdal #21", frozen, H100_PCIE, watts=(69, 72)), H100_PCIE)
    deadlock = "the scheduler is deadlocked at 0 % KV with 0 running; requests wait; not pegged"
    for source in ("vLLM #39863", "vLLM #45414"):
        yield from _twice(
            _hung(source, deadlock, H100, running=0, waiting=6, util=0.0, watts=H100.idle), H100
        )
    yield from _twice(
        _hung("vLLM #42897", "/health answers 200 while the engine hangs", A100), A100
    )
    seconds = "the last token is older than 60 s and requests run"
    yield from _twice(_hung("vLLM PR #45526", seconds, A100, running=5, waiting=0), A100)
    alive = "stuck on a real host behind a proxy for 85 min, /health 200"
    yield _hung("Fastllm-proxy #19", alive, A100, util=0.0, watts=A100.idle)
    nodes = "a stall that the engine's step counter shows; found in about 2 min in production"
    yield from _twice(_hung("gonka #1421", nodes, H100, watts=(150, 200)), H100)
    spins = "unkillable in uvm_spin_loop: it holds its requests and counts nothing"
    yield _hung("vLLM #25127", spins, A100, util=0.0, watts=A100.idle)
    loop = "its HTTP side says ok while the decode loop hangs"
    yield _hung("llama.cpp server-http.cpp", loop, L4, watts=(17, 23), running=1, waiting=1)


def hangs_that_say_they_have_no_request() -> Iterator[Trace]:
    """A wedged engine whose gauges read 0, on a card that is pegged."""
    for source in ("vLLM #46811", "vLLM #49210"):
        why = "num_requests_running reads 0 during the wedge; the card is pegged"
        trace = _hung(source, why, A100, running=0, waiting=0, watts=A100.spin)
        yield from _twice(replace(trace, label="hang_low_power", expect="reported"), A100)


def hangs_without_figures() -> Iterator[Trace]:
    """What only a canary and the power can tell of."""
    yield from _twice(
        _untold("vLLM #36960", "only a 1-token canary shows that it hangs", A100), A100
    )
    stopping = "its runner is 'Stopping...' for ever; /api/ps goes on answering"
    yield _untold("Ollama #7606", stopping, L4, watts=(31, 36))
    yield _untold("spark-vllm-docker #260", "the same without metrics: 16-27 W at 96 %", GB10)
    yield _untold("lambdal #21", "the same without metrics: 69-72 W of 350 W", H100_PCIE)
    runner = "`ollama serve` was killed, its runner holds memory and spins; no canary is answered"
    yield _untold("Ollama #5642", runner, L40S)


def pegged_and_well() -> Iterator[Trace]:
    """What 99 % for 30 s would have restarted."""
    steady = "66 min at 98 % and 490 W, 93 answers, no stall"
    yield from _twice(
        _healthy("busy", "llama.cpp #27102", steady, RTX, working(RTX, 3960, watts=(480, 500))),
        RTX,
    )
    yield _healthy(
        "busy",
        "Acme (Shanghai AI Lab), 2023-08",
        "the median card of a healthy fleet is at 97-99 %, power to 600 W on a 400 W part",
        A100,
        working(A100, 1800, watts=(250, 600)),
    )
    yield _healthy(
        "busy",
        "Modal, 2025-12",
        "a cloud's cards work above 90 degrees for months, slowed down by heat",
        H100,
        working(H100, 1800, watts=(250, 420), rate=300.0),
    )
    swing = "1-2 % more and less power over the day"
    yield _healthy(
        "busy",
        "Llama 3 405B, 2.1",
        swing,
        H100,
        *(working(H100, 300, watts=(640 - 8 * n, 670 - 8 * n)) for n in range(5)),
    )
    timeouts = "it does not answer a probe of 2 s when it is merely busy"
    silent = (working(H100, 120), working(H100, 60, state="silent"))
    yield from _twice(_healthy("busy", "gonka #1421", timeouts, H100, *silent * 4), H100)
    anew = "its counter starts at 0 with a new process"
    yield _healthy(
        "busy",
        "gonka #1421 (re-baseline)",
        anew,
        H100,
        working(H100, 200),
        working(H100, 300, new_process=True),
    )
    full = "503: server busy, maximum pending requests exceeded"
    yield _healthy(
        "busy",
        "Ollama server/sched.go",
        full,
        L4,
        working(L4, 900, canary="overloaded"),
        services=(one(metrics=False),),
    )
    lowered = "a cap was put on under load: it draws less, and no less than its cap allows"
    yield from _twice(
        _healthy(
            "busy",
            "lium-io #1229",
            lowered,
            A100,
            working(A100, 300),
            working(A100, 300, cap=200.0, watts=(150, 199)),
            working(A100, 300, watts=A100.busy),
        ),
        A100,
    )


def long_and_well() -> Iterator[Trace]:
    """Frozen tokens alone over-fire."""
    prefill = "a long prefill emits nothing and draws normal power"
    still = working(GB10, 200, rate=0.0, running=1, canary="timed_out", watts=(52, 90))
    before, after = working(GB10, 200), working(GB10, 200)
    yield from _twice(
        _healthy("long_prefill", "spark-vllm-docker #260", prefill, GB10, before, still, after),
        GB10,
    )
    dim = {**still, "watts": (40, 60)}
    known = "the same at its average of 45 W, a third of its limit, where its bands are known"
    yield replace(
        _healthy("long_prefill", "spark-vllm-docker #260", known, GB10, before, dim, after),
        learned={"idle": GB10.idle, "busy": (38, 90)},
    )
    images = "guided decoding and large multimodal prompts run long; a loop timeout was taken out"
    for seconds in (90, 180, 300):
        quiet = working(A100, seconds, rate=0.0, running=2, canary="timed_out")
        yield from _twice(
            _healthy(
                "long_prefill",
                "tenstorrent #168",
                images,
                A100,
                working(A100, 200),
                quiet,
                working(A100, 200),
            ),
            A100,
        )
    cutoff = "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS is 300: a step may take as long"
    step = working(H100, 290, rate=0.0, running=1, canary="timed_out")
    yield from _twice(
        _healthy("long_prefill", "vLLM 0.33 envs", cutoff, H100, working(H100, 60), step), H100
    )
    single = "OLLAMA_NUM_PARALLEL is 1: a canary waits behind the one answer"
    for seconds in (240, 1500):
        yield from _twice(
            _healthy(
                "long_single_request",
                "Ollama envconfig",
                single,
                L4,
                working(L4, seconds, canary="timed_out"),
                services=(one(metrics=False),),
            ),
            L4,
        )


def ghosts() -> Iterator[Trace]:
    """Pegged, and nobody there."""
    latch = "100 %, 0 MiB, no process, about 100 W after a process died in a kernel; for days"
    alone = {"for": 1800, "util": 1.0, "watts": (96, 104), "processes": 0, "memory": 0.0}
    for source in ("lium-io #1142", "lium-io PR #1140"):
        yield from _twice(
            _healthy("ghost", source, latch, B200, {**alone, "state": "down", "running": 0}), B200
        )
    again = "the restart itself latched it; the new process is idle and answers"
    idle = {"for": 1800, "util": 1.0, "watts": (96, 104), "running": 0, "canary": "answered"}
    yield _healthy(
        "ghost", "lium-io #1142", again, B200, working(B200, 120), {**idle, "new_process": True}
    )
    resumed = "100 % after a resume from suspend"
    yield _healthy(
        "ghost", "open-gpu-kernel-modules #1138", resumed, RTX, {**idle, "watts": (20, 60)}
    )


def not_serving() -> Iterator[Trace]:
    """Loading, asleep, or paused."""
    weights = "a load may take OLLAMA_LOAD_TIMEOUT, 5 min"
    yield _healthy(
        "loading",
        "Ollama envconfig",
        weights,
        L4,
        working(L4, 290, state="loading", new_process=True, rate=0.0, running=0),
        working(L4, 60, canary="answered"),
        services=(one(metrics=False),),
    )
    yield _healthy(
        "loading",
        "gonka #1421",
        "refused while it comes up",
        H100,
        working(H100, 110, state="refused", new_process=True, rate=0.0, running=0),
        working(H100, 200),
    )
    level = "sleep level 1 with requests that wait"
    yield from _twice(
        _healthy(
            "sleeping",
            "vLLM #47654",
            level + "; memory was not released",
            A100,
            working(A100, 100),
            resting(A100, 600, state="sleeping", waiting=3),
            working(A100, 100),
        ),
        A100,
    )
    yield _healthy(
        "sleeping",
        "vLLM 0.33 /pause",
        "paused on purpose, requests kept",
        A100,
        working(A100, 100),
        resting(A100, 600, state="sleeping", running=4),
        working(A100, 100),
    )


def ends_and_pauses() -> Iterator[Trace]:
    """Nothing to do, or no longer."""
    finish = "tokens are counted at the end of an answer; one takes 100 s"
    pulses = (working(L40S, 100, rate=0.0, running=1), working(L40S, 6, rate=200.0))
    yield from _twice(_healthy("busy", "TGI counters", finish, L40S, *pulses * 6), L40S)
    yield _healthy(
        "batch_end",
        "gonka #1421",
        "a failed scrape is not idle, and no requests are no stall",
        H100,
        working(H100, 200),
        resting(H100, 30, state="silent"),
        resting(H100, 600),
    )
    yield _healthy(
        "idle",
        "llama.cpp server",
        "it sleeps when idle; nothing is asked",
        L4,
        resting(L4, 900),
        services=(one(metrics=False),),
    )


def devices() -> Iterator[Trace]:
    """What the driver says."""
    bus = "Xid 79, fallen off the bus"
    yield _device("NVIDIA Xid catalogue, 79", bus, A100, fault="lost", xid=79)
    unplugged = "an H100 in passthrough is stuck in reset until it is migrated"
    yield _device("hang-and-reset 6.5 (H100)", unplugged, H100, fault="reset_required")
    for xid, source in (
        (119, "open-gpu-kernel-modules #1259"),
        (120, "NCSA Delta, SC'25 (GSP)"),
        (95, "NVIDIA Xid catalogue, 95"),
        (140, "NVIDIA Xid catalogue, 140"),
        (46, "NVIDIA Health Validation, 46"),
        (109, "NVIDIA Xid catalogue, 109"),
    ):
        why = f"Xid {xid}: the catalogue says reset; the driver does not say what it wants"
        yield _device(source, why, A100, xid=xid, recovery="unsaid")
    for action in ("reset", "drain_and_reset", "reboot"):
        why = f"NVML field 230 says {action}"
        yield _device("NVML field 230", why, H100, recovery=action)
    killed = "its watcher was killed in a driver call; the card is gone until a reboot"
    yield _device("dcgm-exporter #84", killed, A100, xid=119, recovery="reboot")


def whole_node() -> Iterator[Trace]:
    """The host or its driver."""
    services = tuple(one(f"llm{n}", (n,)) for n in range(4))
    why = "the driver hangs under load, and with it the services on all four cards"
    yield _trace(
        "node_fault",
        "escalated",
        "open-gpu-kernel-modules #971",
        why,
        A100,
        working(A100, 200),
        stuck(A100, 600),
        began=200.0,
        cards=4,
        services=services,
    )
    yield _trace(
        "node_fault",
        "escalated",
        "NVSentinel #1748",
        "calls into the driver time out under load: no card gives a reading",
        H100,
        working(H100, 200),
        stuck(H100, 600, fault="timeout"),
        began=200.0,
        cards=2,
        services=(one("llm0", (0,)), one("llm1", (1,))),
    )


GROUPS = (
    hangs,
    hangs_that_say_they_have_no_request,
    hangs_without_figures,
    pegged_and_well,
    long_and_well,
    ghosts,
    not_serving,
    ends_and_pauses,
    devices,
    whole_node,
)


def traces() -> Iterator[Trace]:
    """All of them."""
    for group in GROUPS:
        for n, trace in enumerate(group()):
            yield replace(trace, id=f"{group.__name__.replace('_', '-')}-{n:02d}")


if __name__ == "__main__":
    write(FILES[1], traces())
