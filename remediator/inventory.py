"""Labels are lookup keys into our own inventory; no match or two matches means refuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from remediator.config import Config
from remediator.store import Store
from remediator.targets import KEY_LABEL, NO_TARGET, THIS_HOST, Target
from remediator.world import World


def known_gpus(world: World) -> Mapping[str, str]:
    """Uuid to name of the cards that are ours: the configured ones, or all our exporter ever saw."""
    with world.store.reading() as tx:
        seen = tx.inventory.gpus()
    configured = world.config.gpus.inventory
    if configured == "auto":
        return seen
    return {uuid: seen.get(uuid, "") for uuid in configured}


def learn_gpus(world: World, store: Store) -> None:
    """Remember the cards that our own exporter reports.

    Raises:
        NoEvidence: the exporter did not answer.
        StorageError: they could not be kept.
    """
    with store.reading() as tx:
        seen = tx.inventory.gpus()
    new = {r.uuid: r.name for r in world.gpus.all() if r.uuid and seen.get(r.uuid) != r.name}
    if new:
        with store.transaction() as tx:
            for uuid, name in new.items():
                tx.inventory.remember_gpu(uuid, name, world.clock.now())


def kind_of(kinds: Sequence[str], labels: Mapping[str, str]) -> str:
    """The first of `kinds` whose key label the alert carries; the first one where none does."""
    return next((kind for kind in kinds if labels.get(KEY_LABEL[kind])), kinds[0])


def host_instance(config: Config) -> str:
    """What Prometheus calls this machine's exporter in the label `instance`."""
    return config.exporter.instance or urlsplit(config.exporter.url).netloc


def resolve(world: World, kind: str, labels: Mapping[str, str]) -> Target:
    """The target of an alert with these labels; NO_TARGET when it is not one of ours.

    Raises:
        NoEvidence: it cannot be told now, because the exporter does not answer.
    """
    if kind == "host":
        ours = labels.get("instance") == host_instance(world.config)
        return THIS_HOST if ours else NO_TARGET
    if kind == "service":
        name = labels.get("llm_service", "")
        return Target("service", name) if name in world.services else NO_TARGET
    uuid = labels.get("uuid", "")
    if not uuid:
        return NO_TARGET
    known = uuid in known_gpus(world)
    if not known and world.config.gpus.inventory == "auto":
        # A card that appeared a moment ago: ask our own exporter before saying that it is not ours.
        known = world.sightings.has(uuid, world.gpus, world.clock.monotonic())
    return Target("gpu", uuid) if known else NO_TARGET
