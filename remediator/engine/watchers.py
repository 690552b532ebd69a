"""What each probe of a service shows, and the contract of what learns from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from remediator.managers import ProcessStatus
from remediator.services import ServiceProbe
from remediator.world import Service


@dataclass(frozen=True)
class ServiceView:
    """What was last seen of a service. `up` is None when it cannot be told.

    For `loading_seconds` it had said without a break that it comes up: 0 where it says anything else,
    None where it did not answer.
    """

    probe: ServiceProbe
    status: ProcessStatus | None
    up: bool | None
    seen_at: float
    loading_seconds: float | None = None


class Watcher(Protocol):
    """Looks at every view of every service, in that service's own probing thread."""

    def saw(self, service: Service, view: ServiceView) -> None:
        """Learn from a new view.

        Raises:
            StorageError: what was learned could not be kept; the next view is looked at anyway.
        """
