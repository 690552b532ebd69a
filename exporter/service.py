"""The running exporter: worker, supervisor, store and registry put together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from exporter import xids
from exporter.backends import registry as backends
from exporter.backends.base import BackendOptions
from exporter.clock import Clock, SystemClock
from exporter.config import Config
from exporter.device_sampler import Schedule
from exporter.environment import Environment
from exporter.gpu_state import Deadlines
from exporter.heard_worker import Worker
from exporter.host import HostReader, HostReading
from exporter.inventory import Inventory
from exporter.kernel_log import KernelLog
from exporter.kernel_xids import KernelXids
from exporter.oom_kills import OomKills
from exporter.page import Page
from exporter.release import Release
from exporter.service_options import ServiceOptions
from exporter.store import Store
from exporter.supervision import Limits
from exporter.supervisor import Supervisor
from exporter.worker import WorkerOptions
from exporter.worker_process import WorkerProcess
from exporter.xid_ledger import XidLedger


class Service:
    """The exporter without its HTTP side."""

    def __init__(
        self,
        config: Config,
        options: ServiceOptions,
        limits: Limits | None = None,
        clock: Clock | None = None,
        start_worker: Callable[[WorkerOptions], Worker] = WorkerProcess,
    ) -> None:
        """Put it together; nothing is started.

        Raises:
            ConfigError: there is no such backend.
            StorageError: the state directory is not usable.
        """
        clock = clock or SystemClock()
        self._clock = clock
        name = backends.resolve(options.backend)
        deadlines = Deadlines.for_intervals(
            options.sample_interval,
            config.intervals.processes,
            config.intervals.health,
            config.intervals.fault_after,
        )
        inventory = Inventory(config.expected_gpus, options.storage_path)
        ledger = XidLedger(options.storage_path, xids.counted_from_zero())
        kernel_xids = None
        boot = Environment().boot_id()
        if options.kmsg is not None and backends.of_this_machine(name):
            kernel_xids = KernelXids(ledger, boot, clock.monotonic())
        self.store = Store(name, config.policy, deadlines, inventory, ledger, clock, kernel_xids)
        self._kernel_log = None
        self._oom_kills = OomKills(boot, self.store)
        if options.kmsg is not None and kernel_xids is not None:
            self._kernel_log = KernelLog(options.kmsg, self._oom_kills, clock)
        worker_options = _worker_options(name, config, options)
        limits = limits or Limits()
        self.release = Release(clock, limits.release, options.storage_path)

        def start() -> Worker:
            known = tuple(info.uuid for info in inventory.missing(()) if info.index is not None)
            return start_worker(replace(worker_options, expected=known))

        self._supervisor = Supervisor(start, self.store, limits, clock, self.release)
        self._host = HostReader(config.host_metrics.mountpoints, clock, options.procfs)
        enabled = config.host_metrics.enabled
        self.read_host = self._read_host if enabled else None
        self.page = Page(self.store, self._host.read if enabled else None)

    def start(self) -> None:
        """Start the worker."""
        if self._kernel_log is not None:
            self._kernel_log.start()
        self._supervisor.start()

    def stop(self) -> None:
        """Ask the worker to end."""
        self._supervisor.stop()
        if self._kernel_log is not None:
            self._kernel_log.stop()
        self.store.close()

    def _read_host(self) -> HostReading:
        return replace(self._host.read_memory(), oom_kill_log=self._oom_kills.read())

    def wait_for_first_cycle(self, timeout: float) -> bool:
        """Wait until every GPU was read once; false when `timeout` seconds were not enough."""
        never = threading.Event()
        deadline = self._clock.monotonic() + timeout
        while self.store.snapshot().not_ready or not self.store.complete():
            if self._clock.monotonic() >= deadline:
                return False
            self._clock.wait(never, 0.05)
        return True


def _worker_options(name: str, config: Config, options: ServiceOptions) -> WorkerOptions:
    return WorkerOptions(
        backend=name,
        backend_options=BackendOptions(
            simulator_url=options.simulator_url,
            replay_file=backends.replay_file(options.backend),
            pcie_throughput=config.pcie_throughput,
        ),
        schedule=Schedule(
            sample=options.sample_interval,
            processes=config.intervals.processes,
            health=config.intervals.health,
            check=config.intervals.check,
            process_limit=config.process_limit,
        ),
        procfs=str(options.procfs),
        container_socket=str(options.container_socket or ""),
    )
