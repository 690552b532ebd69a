"""Shares of a GPU that a server deals out to its replicas: do they come to more than its cards?

Such shares (`num_gpus` of Ray) are bookkeeping: they keep nobody from taking more memory, and a
server that was told of more cards than it has deals out more than there is.
"""

from __future__ import annotations

from remediator.services import ServiceProbe
from remediator.store import Transaction
from remediator.world import Service

# Sums of shares like 0.1 are not exact.
_ROUNDING = 1e-6


def cards_of(service: Service, tx: Transaction) -> int | None:
    """How many cards the service has; None where it has all, and none was ever reported."""
    if service.config.gpus != "all":
        return len(service.config.gpus)
    return len(tx.inventory.gpus()) or None


def overcommitted(service: Service, probe: ServiceProbe, cards: int | None) -> str | None:
    """What is to be done where its replicas are to have more than its `cards`; None where not.

    Nothing is said where either number is not known.
    """
    asked = probe.gpus_asked
    if asked is None or cards is None or asked <= cards + _ROUNDING:
        return None
    return (
        f"the replicas of {service.name} are to have {asked:.2f} GPUs, and it has {cards}: lower "
        "their shares (num_gpus) or how many they are, or correct the service's gpus"
    )
