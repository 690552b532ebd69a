"""A backend that is open, with a thread for each GPU and one for what the driver tells itself."""

from __future__ import annotations

from collections.abc import Iterable

from exporter.backends.base import Backend
from exporter.device_sampler import DeviceSampler
from exporter.event_watch import EventWatcher
from exporter.roster import Roster
from exporter.version_asker import VersionAsker


class Session:
    """The backend opened once, and the threads over it."""

    def __init__(
        self,
        backend: Backend,
        roster: Roster,
        samplers: Iterable[DeviceSampler],
        events: EventWatcher | None,
        versions: VersionAsker | None,
    ) -> None:
        self.roster = roster
        self._backend = backend
        self._samplers = tuple(samplers)
        self._events = events
        self._versions = versions

    def resume(self) -> None:
        """Start every thread that is not running."""
        for sampler in self._samplers:
            sampler.resume()
        if self._versions is not None:
            self._versions.resume()
        if self._events is not None:
            self._events.resume()

    def heard_xid(self, uuid: str) -> None:
        """Take that a GPU had an Xid error."""
        for sampler in self._samplers:
            if sampler.uuid == uuid:
                sampler.heard_xid()

    def backend_gone(self) -> bool:
        """Tell whether a thread found that the whole backend is gone."""
        if self._events is not None and self._events.backend_gone.is_set():
            return True
        return any(sampler.backend_gone.is_set() for sampler in self._samplers)

    def needs_reopening(self) -> bool:
        """Tell whether a GPU is down, or was: what was read of it when it was opened is old."""
        return any(sampler.faulted or sampler.recovered for sampler in self._samplers)

    def anyone_well(self) -> bool:
        """Tell whether there is a GPU that is read."""
        return any(sampler.well for sampler in self._samplers)

    def close(self, timeout: float) -> bool:
        """End all threads and close the backend.

        Returns:
            False when a call did not come back in `timeout` seconds: then nothing is closed,
            because closing under a running call is not safe.
        """
        # First what takes longest to stop: the GPUs are read meanwhile.
        if self._events is not None and not self._events.stop():
            return False
        threads: list[DeviceSampler | VersionAsker] = [*self._samplers]
        if self._versions is not None:
            threads.append(self._versions)
        for thread in threads:
            thread.stop()
        if not all(thread.join(timeout) for thread in threads):
            return False
        self._backend.close()
        return True
