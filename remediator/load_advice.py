"""What to change on a server that keeps running out of memory, where nothing can be changed as it runs.

No server of ours takes less load without a start: Ollama reads its parallelism and context from its
environment, vLLM, SGLang and llama.cpp from their command line. Their files are their owner's.
"""

from __future__ import annotations

import math

from remediator.errors import NoEvidence
from remediator.world import Service, World

# vLLM takes so much of a card where nobody says otherwise.
_DEFAULT_SHARE = 0.92
_STEP = 0.05
_RESERVE_SHARE, _RESERVE_BYTES = 0.05, 2**30

_SETTINGS = {
    "ollama": (
        "set OLLAMA_NUM_PARALLEL=1 and OLLAMA_CONTEXT_LENGTH to half of what it is in its "
        "environment (systemctl edit), and OLLAMA_MAX_LOADED_MODELS=1 where it has several loaded"
    ),
    "vllm": (
        "start it with --gpu-memory-utilization {share} and half of its --max-num-seqs, or with "
        "half of its --max-model-len"
    ),
    "sglang": (
        "start it with --mem-fraction-static {share} and half of its --max-running-requests, or "
        "with half of its --chunked-prefill-size"
    ),
    "llamacpp": "start it with half of its --parallel and of its --ctx-size, or with --cache-type-k q8_0",
    "triton": "halve max_batch_size, or lower count in instance_group, in its model's config.pbtxt",
    "ray_serve": (
        "halve max_ongoing_requests of its deployment, or start its engine with "
        "gpu_memory_utilization {share}"
    ),
}
_ANY = "start it with half of its parallel requests, or of its context"
_LIMITS = {
    "systemd": "raise MemoryMax= of its unit",
    "docker": "raise the memory limit of its container",
    "kubernetes": "raise resources.limits.memory of its container",
}


def advice(world: World, service: Service, where: str) -> str:
    """One sentence: the setting to change, and to what.

    Args:
        world: What is known of its cards.
        service: The server.
        where: Whose memory ran out: `host`, `gpu`, or empty where that is not known.
    """
    setting = _SETTINGS.get(service.config.driver, _ANY).format(
        share=f"{_share(world, service):.2f}"
    )
    if where == "host":
        limit = _LIMITS.get(service.manager.kind, "give it more of the host's memory")
        return f"to end it, {limit}, or {setting}"
    return f"to end it, {setting}"


def _share(world: World, service: Service) -> float:
    """The share of its fullest card that is left for the server beside others, with a reserve."""
    most = _DEFAULT_SHARE - _STEP
    try:
        readings = [one for one in world.gpus.all() if service.uses(one.uuid)]
    except NoEvidence:
        return most
    with world.store.reading() as tx:
        footprint = tx.inventory.service(service.name).footprint
    for reading in readings:
        total, used = reading.memory_total_bytes, reading.memory_used_bytes
        own = footprint.get(reading.uuid)
        if not total or used is None or own is None:
            continue
        reserve = max(_RESERVE_SHARE * total, _RESERVE_BYTES)
        left = (total - max(0.0, used - own) - reserve) / total
        most = min(most, math.floor(100 * left) / 100)
    return max(most, _STEP)
