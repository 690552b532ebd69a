"""The worker: evaluates what is due, executes and resumes runs, keeps leases, tidies up."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from remediator.counters import Counters
from remediator.engine.emergency import EmergencyStop
from remediator.engine.evaluator import Evaluator
from remediator.engine.executor import Executor
from remediator.engine.housekeeping import Housekeeper
from remediator.engine.leases import LeaseKeeper
from remediator.engine.log_watch import LogWatch
from remediator.engine.prober import Prober
from remediator.errors import NoEvidence, RemediatorError, StorageError
from remediator.inventory import learn_gpus
from remediator.world import Service, World

log = logging.getLogger(__name__)

_TICK = 0.2
_EVERY_LEASE = 1.0
_EVERY_HOUSEKEEPING = 2.0
_EVERY_INVENTORY = 10.0
_EVERY_EMERGENCY = 1.0
# More than there are targets: a run that only waits must never keep an emergency from beginning.
_THREADS = 64
# So many episodes are looked at together: a moment's work, after which what is new is seen.
_AT_ONCE = 100


class Worker:
    """Owns the threads; everything it does is in the store first."""

    def __init__(
        self,
        world: World,
        evaluator: Evaluator,
        executor: Executor,
        leases: LeaseKeeper,
        prober: Prober,
        counters: Counters,
        log_watch: LogWatch | None = None,
    ) -> None:
        self._world = world
        self._evaluator = evaluator
        self._executor = executor
        self._leases = leases
        self._prober = prober
        self._log_watch = log_watch
        self._housekeeper = Housekeeper(world, executor)
        self._counters = counters
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="run")
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._busy: dict[tuple[str, int], object] = {}
        self._wake = threading.Event()
        self.emergency = EmergencyStop(world, evaluator, self._stop_at_once)
        self._probes: dict[str, tuple[Service, threading.Event]] = {}
        self.beat = world.clock.monotonic()

    def start(self) -> None:
        """Start every thread."""
        self._housekeeper.note_start()
        loops: list[tuple[str, Callable[[], None]]] = [
            ("worker", self._loop),
            ("leases", lambda: self._every(_EVERY_LEASE, self._leases.tick)),
            ("housekeeping", lambda: self._every(_EVERY_HOUSEKEEPING, self._housekeeper.tick)),
            ("inventory", lambda: self._every(_EVERY_INVENTORY, self._learn)),
            ("emergency", lambda: self._every(_EVERY_EMERGENCY, self.emergency.tick)),
        ]
        for name, target in loops:
            self._begin(name, target)
        self.watch_services()

    def _begin(self, name: str, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def watch_services(self) -> None:
        """Loops that probe each service as it is now configured and read its log; for no other."""
        services = dict(self._world.services)
        for name, (service, stop) in list(self._probes.items()):
            if services.get(name) is not service:
                stop.set()
                del self._probes[name]
        for name, service in services.items():
            if name not in self._probes:
                stop = threading.Event()
                self._probes[name] = (service, stop)
                self._begin(f"probe-{name}", partial(self._prober.run, service, stop))
                if self._log_watch is not None:
                    self._begin(f"log-{name}", partial(self._log_watch.run, service, stop))
        self._threads = [thread for thread in self._threads if thread.is_alive()]

    def stalled_seconds(self) -> float:
        """For how long the loop that begins all work has not come round in good order."""
        return max(0.0, self._world.clock.monotonic() - self.beat)

    def nudge(self) -> None:
        """Something new is in the store."""
        self._wake.set()

    def stop(self) -> None:
        """Let running steps end, leave waiting runs to the next start, and end every thread."""
        self._world.stopping.set()
        self._wake.set()
        for _, stop in self._probes.values():
            stop.set()
        self._executor.wake_all()
        self._pool.shutdown(wait=True)
        for thread in self._threads:
            thread.join(timeout=10.0)

    def _loop(self) -> None:
        while not self._world.stopping.is_set():
            try:
                self._dispatch()
                self.beat = self._world.clock.monotonic()
            except StorageError:
                # The loop itself is well; the store has a metric and an alert of its own.
                self.beat = self._world.clock.monotonic()
                log.exception("the store does not answer")
                self._world.clock.wait(self._world.stopping, 1.0)
            except Exception:
                log.exception("the worker could not begin what is due")
                self._counters.add("errors", "dispatch")
                self._world.clock.wait(self._world.stopping, 1.0)
            self._wake.wait(_TICK)
            self._wake.clear()

    def _dispatch(self) -> None:
        with self._world.store.reading() as tx:
            due = tx.episodes.due(self._world.clock.now())
            active = tx.runs.active()
        for run in active:
            if run.cancel_reason:
                self._executor.wake(run.id)
            if run.state != "awaiting_approval":
                self._submit(("run", run.id), partial(self._executor.execute, run.id))
        if due:
            self._submit(("due", 0), partial(self._decide, due[:_AT_ONCE]))

    def _stop_at_once(self, target: str, work: Callable[[], None]) -> None:
        """Each target by itself: a service that will not stop must not keep another card hot."""
        self._submit((f"emergency {target}", 0), work)

    def _decide(self, due: Sequence[int]) -> None:
        """Pass over what is not ours, and decide about the rest, each by itself."""
        try:
            ours = self._evaluator.pass_over(due)
        except StorageError:
            raise
        except Exception:
            log.exception("they are decided about one by one")
            self._counters.add("errors", "due")
            ours = tuple(due)
        for episode_id in ours:
            self._submit(("episode", episode_id), partial(self._evaluate, episode_id))
        if len(due) == _AT_ONCE:
            self.nudge()

    def _evaluate(self, episode_id: int) -> None:
        if self._evaluator.evaluate(episode_id) is not None:
            self.nudge()

    def _submit(self, key: tuple[str, int], work: Callable[[], None]) -> None:
        """Run `work` in the pool, unless the same work is already under way."""
        with self._lock:
            if key in self._busy or self._world.stopping.is_set():
                return
            ticket = self._busy[key] = object()
        try:
            self._pool.submit(self._guarded, key, ticket, work)
        except BaseException as error:
            # Otherwise it would count as under way for ever. The pool may have queued it all the
            # same (it could start no thread): without its ticket it does nothing there.
            with self._lock:
                self._busy.pop(key, None)
            if isinstance(error, RuntimeError) and self._world.stopping.is_set():
                # The pool was shut down meanwhile; it is done after the next start.
                return
            raise

    def _guarded(self, key: tuple[str, int], ticket: object, work: Callable[[], None]) -> None:
        with self._lock:
            if self._busy.get(key) is not ticket:
                return
        try:
            work()
        except StorageError:
            log.exception("nothing was done, the store does not answer work=%s", key)
            self._world.clock.wait(self._world.stopping, 1.0)
        except Exception:
            # A bug in one piece of work must not stop the others; it shows in the log and metric.
            log.exception("work failed work=%s", key)
            self._counters.add("errors", key[0])
            self._world.clock.wait(self._world.stopping, 5.0)
        finally:
            with self._lock:
                self._busy.pop(key, None)

    def _every(self, seconds: float, work: Callable[[], None]) -> None:
        while not self._world.stopping.is_set():
            try:
                work()
            except RemediatorError:
                log.exception("periodic work failed")
            except Exception:
                log.exception("periodic work failed")
                self._counters.add("errors", "periodic")
            self._world.clock.wait(self._world.stopping, seconds)

    def _learn(self) -> None:
        try:
            learn_gpus(self._world, self._world.store)
        except NoEvidence as error:
            log.debug("the inventory was not refreshed: %s", error)
