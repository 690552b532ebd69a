"""What of the kernel log counts: once, for the right card, beside the driver and over restarts."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from exporter import options
from exporter.config import Config
from exporter.environment import Environment
from exporter.frames import BackendFrame, HeartbeatFrame
from exporter.gpu_state import Deadlines
from exporter.inventory import Inventory
from exporter.kernel_log import LogBatch, LoggedXid
from exporter.kernel_xids import KernelXids
from exporter.page import Page
from exporter.policy import Policy
from exporter.readings import BackendReason
from exporter.service import Service, ServiceOptions
from exporter.store import Store
from exporter.xid_ledger import FILE_NAME, LogPosition, XidLedger
from tests.exporter.fakes import Bench, info
from tests.nvml_standin import Driver
from tests.waiting import poll

# As in fakes.info: GPU-0 is 00000000:00:00.0, GPU-1 00000000:01:00.0.
CARD = (0, 0, 0)


class Host(Bench):
    """A store beside a kernel log, which can be started again over the same directory."""

    def __init__(self, directory: Path | None = None, boot: str = "boot-1", now: float = 1000.0):
        super().__init__(gpus=0)
        self.clock.now = now
        self.directory = directory
        self.boot = boot
        self.sequences = count(100)
        self.start()

    def start(self) -> None:
        self.ledger = XidLedger(self.directory, (48, 79))
        log = KernelXids(self.ledger, self.boot, self.clock.monotonic())
        deadlines = Deadlines.for_intervals(1.0, 15.0, 30.0, 5.0)
        inventory = Inventory("auto", self.directory)
        self.store = Store("nvml", Policy(), deadlines, inventory, self.ledger, self.clock, log)

    def line(self, xid: int = 79, ago: float = 0.0, address=CARD) -> LoggedXid:
        return LoggedXid(address, xid, self.clock.time() - ago, next(self.sequences))

    def history(self, *lines: LoggedXid, last: int = 99) -> None:
        last = max([last, *(one.sequence for one in lines)])
        self.store.take_log(LogBatch(lines, last, history=True, caught_up=True))

    def logs(self, xid: int = 79, address=CARD) -> LoggedXid:
        line = self.line(xid, address=address)
        self.store.take_log(LogBatch((line,), line.sequence))
        return line

    def restart(self, *missed: LoggedXid) -> None:
        """End as a service does, and begin with what the kernel still has."""
        self.store.close()
        self.start()
        self.enumerate(info(0), info(1))
        self.history(*missed)

    def counts(self, uuid: str = "GPU-0") -> dict[int, int] | None:
        found = self.gpu(uuid).xids
        return None if found is None else {one.xid: one.count for one in found if one.count}

    @property
    def errors(self) -> dict[str, int]:
        found = self.store.snapshot().errors
        return {reason: n for (where, reason), n in found.items() if where == "kernel_log"}


@pytest.fixture
def host() -> Host:
    """One that keeps nothing; its log is read and has nothing in it."""
    one = Host()
    one.enumerate(info(0), info(1))
    one.history()
    return one


def test_a_line_counts_for_its_card(host) -> None:
    host.logs(79)
    host.logs(79)
    host.logs(31, address=(0, 1, 0))
    assert (host.counts("GPU-0"), host.counts("GPU-1")) == ({79: 2}, {31: 1})


def test_the_driver_and_the_log_telling_of_the_same_is_one(host) -> None:
    host.logs(79)
    host.xid("GPU-0", 79)
    assert host.counts() == {79: 1}
    host.advance(40)
    host.xid("GPU-0", 79)
    host.advance(29)
    host.logs(79)
    assert host.counts() == {79: 2}


def test_of_a_storm_the_greater_number_counts(host) -> None:
    for _ in range(5):
        host.logs(31)
    for _ in range(3):
        host.xid("GPU-0", 31)
    assert host.counts() == {31: 5}
    for _ in range(4):
        host.xid("GPU-0", 31)
    assert host.counts() == {31: 7}


def test_another_card_another_code_or_another_time_is_another(host) -> None:
    host.logs(79)
    host.xid("GPU-1", 79)
    host.xid("GPU-0", 48)
    host.advance(31)
    host.xid("GPU-0", 79)
    assert (host.counts("GPU-0"), host.counts("GPU-1")) == ({48: 1, 79: 2}, {79: 1})


def test_where_the_driver_tells_nothing_the_log_does(host) -> None:
    host.enumerate(info(0), info(2, pci_bus_id=""), watched=[])
    assert {one.xid: one.count for one in host.gpu("GPU-0").xids} == {48: 0, 79: 0}
    assert host.counts("GPU-2") is None
    host.store.log_unreadable("gone")
    assert host.counts("GPU-0") is None


def test_a_card_that_is_known_later_gets_what_was_logged_of_it() -> None:
    host = Host()
    host.history(host.line(79, ago=10))
    host.logs(79)
    assert host.errors == {"unknown_card": 2}
    host.enumerate(info(0))
    assert host.counts() == {79: 2}


def test_a_card_that_fell_off_before_the_start_is_known_from_the_inventory(tmp_path) -> None:
    host = Host(tmp_path)
    host.enumerate(info(0), info(1))
    host.history()
    host.start()
    host.history(host.line(79, address=(0, 1, 0)))
    reason = BackendReason.UNKNOWN
    host.store.apply(BackendFrame("nvml", up=False, reason=reason, message="no way in"))
    assert host.counts("GPU-1") == {79: 1}


def test_an_address_is_the_cards_that_is_there_not_the_one_that_it_replaced(host) -> None:
    for uuid in ("GPU-a", "GPU-z"):
        host.enumerate(info(0, uuid=uuid), info(1))
        host.logs(79)
        assert host.counts(uuid) == {79: 1}
        host.advance(60)


def test_lines_of_unknown_cards_do_not_fill_memory(host) -> None:
    for number in range(80):
        for _ in range(80):
            host.logs(79, address=(1, number, 0))
    parked = host.store._xids._kernel_log._parked
    assert len(parked) == 64
    assert sum(len(lines) for lines in parked.values()) == 64 * 64


def test_no_count_is_shown_before_the_lines_of_before_are_in_it() -> None:
    host = Host()
    host.enumerate(info(0))
    assert host.gpu().xids is None
    host.history(host.line(79, ago=200))
    assert host.counts() == {79: 1}


def test_a_log_that_cannot_be_read_or_does_not_come_back_keeps_nobody_waiting() -> None:
    host = Host()
    host.enumerate(info(0))
    host.store.log_unreadable("no CAP_SYSLOG")
    assert host.counts() == {}
    host = Host()
    host.enumerate(info(0))
    host.advance(6)
    assert host.counts() == {}


def test_at_the_very_first_start_all_that_the_kernel_has_counts(tmp_path) -> None:
    host = Host(tmp_path, now=10_000)
    host.history(host.line(13, ago=9000), host.line(13, ago=9000), host.line(79, ago=60))
    host.enumerate(info(0))
    assert host.counts() == {13: 2, 79: 1}
    when = {one.xid: one.last_at for one in host.gpu().xids}
    assert when[13] == pytest.approx(host.clock.time() - 9000)


def test_after_a_restart_no_line_counts_again_and_none_that_was_missed_is_lost(tmp_path) -> None:
    host = Host(tmp_path)
    host.enumerate(info(0))
    before = host.line(79, ago=50)
    host.history(before)
    live = host.logs(31)
    host.advance(100)
    host.restart(before, live)
    assert host.counts() == {31: 1, 79: 1}
    missed = host.line(79)
    host.restart(before, live, missed)
    host.restart(before, live, missed)
    assert host.counts() == {31: 1, 79: 2}


def test_what_the_driver_told_of_before_a_stop_is_not_counted_again_from_the_log(tmp_path) -> None:
    host = Host(tmp_path)
    host.enumerate(info(0))
    host.history()
    # Stopped between the driver's word and the line.
    host.xid("GPU-0", 79)
    line = host.line(79)
    host.restart(line)
    assert host.counts() == {79: 1}


def test_a_new_boot_is_read_from_its_beginning_and_the_counts_go_on(tmp_path) -> None:
    host = Host(tmp_path)
    host.enumerate(info(0))
    host.history(last=5000)
    host.logs(79)
    host.boot, host.sequences = "boot-2", count(3)
    host.advance(600)
    host.restart(host.line(79, ago=100))
    assert host.counts() == {79: 2}
    assert host.ledger.log_position == LogPosition("boot-2", 99)


@pytest.mark.parametrize("keeps", [True, False], ids=["first time", "nothing kept"])
def test_where_nothing_says_what_was_counted_old_lines_do_not_look_new(tmp_path, keeps) -> None:
    host = Host(tmp_path if keeps else None, now=5000)
    host.enumerate(info(0))
    host.store.log_unreadable("not yet")
    host.xid("GPU-0", 48)
    host.advance(1000)
    old, recent = host.line(48, ago=1001), host.line(79, ago=20)
    host.restart(old, host.line(31, ago=301), recent)
    assert host.counts() == ({48: 1, 79: 1} if keeps else {79: 1})


def test_a_log_that_can_be_read_from_one_start_on_brings_nothing_old(tmp_path) -> None:
    host = Host(tmp_path, now=10_000)
    old = host.line(79, ago=9000)
    host.enumerate(info(0))
    host.store.log_unreadable("no CAP_SYSLOG")
    assert host.counts() == {}
    host.restart(old)
    assert host.counts() == {}
    assert host.ledger.log_position == LogPosition("boot-1", old.sequence)


def test_a_log_that_could_not_be_read_for_a_while_brings_nothing_twice(tmp_path) -> None:
    host = Host(tmp_path)
    host.enumerate(info(0))
    host.history()
    host.restart()
    lines = []
    for _ in range(3):
        host.start()
        host.enumerate(info(0))
        host.store.log_unreadable("no CAP_SYSLOG")
        lines.append(host.line(79))
        host.xid("GPU-0", 79)
        host.store.close()
        host.advance(400)
    host.restart(*lines)
    assert host.counts() == {79: 3}


def test_the_position_is_written_with_the_counts_and_not_with_every_line(tmp_path) -> None:
    host = Host(tmp_path)
    host.enumerate(info(0))
    host.history(last=7)
    file = tmp_path / FILE_NAME

    def saved() -> dict:
        host.store.apply(HeartbeatFrame(0))
        return json.loads(file.read_text())["kernel_log"]

    assert saved() == {"boot": "boot-1", "sequence": 7}
    file.unlink()
    host.store.take_log(LogBatch((), 50))
    host.store.apply(HeartbeatFrame(0))
    assert not file.exists()
    line = host.logs(79)
    assert saved() == {"boot": "boot-1", "sequence": line.sequence}


def test_a_kernel_that_does_not_name_its_boot_is_trusted_with_recent_lines_only(tmp_path) -> None:
    host = Host(tmp_path, boot="")
    host.enumerate(info(0))
    host.history(host.line(79, ago=10))
    host.restart(host.line(31, ago=301))
    assert host.counts() == {79: 1}
    assert host.ledger.log_position is None


def test_lost_records_are_counted(host) -> None:
    host.store.take_log(LogBatch(lost=3))
    assert host.errors == {"overrun": 3}


def test_the_boot_has_a_name(tmp_path) -> None:
    assert len(Environment().boot_id()) == 36
    assert Environment(tmp_path).boot_id() == ""


def test_lines_of_before_that_come_when_counts_are_shown_already_must_be_recent(tmp_path) -> None:
    host = Host(tmp_path, now=10_000)
    host.enumerate(info(0))
    host.advance(6)
    assert host.counts() == {}
    host.history(host.line(31, ago=301), host.line(79, ago=299))
    assert host.counts() == {79: 1}


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_told_by_whom_and_stops_when_each_error_counts_once(tmp_path, seed) -> None:
    draw = random.Random(seed)
    host = Host(tmp_path / str(seed))
    host.enumerate(info(0))
    host.history()
    host.store.apply(HeartbeatFrame(0))
    kernel: list[LoggedXid] = []
    happened, running, shown = 0, True, 0
    for _ in range(60):
        host.advance(draw.uniform(61, 200))
        if draw.random() < 0.3:
            running = not running
            if running:
                host.start()
                host.enumerate(info(0))
                host.history(*kernel)
            elif draw.random() < 0.5:
                host.store.close()
            # Else it was killed: what the last heartbeat did not write is read again.
            continue
        happened += 1
        kernel.append(host.line(79))
        told = [lambda: host.store.take_log(LogBatch((kernel[-1],), kernel[-1].sequence))]
        if draw.random() < 0.7:
            told.append(lambda: host.xid("GPU-0", 79))
        draw.shuffle(told)
        for tell in told if running else ():
            host.advance(draw.uniform(0, 14))
            tell()
        if draw.random() < 0.5 and running:
            host.store.apply(HeartbeatFrame(0))
        if running:
            count_now = (host.counts() or {}).get(79, 0)
            assert count_now == happened
            assert count_now >= shown
            shown = count_now
    assert happened > 20


def test_only_an_exporter_that_serves_its_own_machine_reads_the_log(tmp_path) -> None:
    def kmsg(*words: str, **environ: str) -> Path | None:
        return options.parse(words, environ).service_options().kmsg

    assert kmsg("serve") == Path("/dev/kmsg")
    assert kmsg("serve", "--path.kmsg=/host/kmsg") == Path("/host/kmsg")
    assert kmsg("serve", "--path.kmsg=") is None
    assert kmsg("serve", GPU_EXPORTER_PATH_KMSG="") is None
    assert kmsg("dump") is None
    assert kmsg("check") is None
    simulated = Service(Config(), ServiceOptions("simulated", "http://127.0.0.1:9", kmsg=tmp_path))
    assert simulated._kernel_log is None


@pytest.fixture
def start(tmp_path, monkeypatch) -> Iterator[Callable[[], Service]]:
    """Starts the whole exporter on the stand-in driver, beside a kernel log that a test writes."""
    driver = Driver(tmp_path / "driver", gpus=2)
    for name, value in driver.env().items():
        monkeypatch.setenv(name, value)
    (tmp_path / "kmsg").touch()
    settings = ServiceOptions(
        "nvml", sample_interval=0.2, storage_path=tmp_path / "state", kmsg=tmp_path / "kmsg"
    )
    started: list[Service] = []

    def begin() -> Service:
        started.append(Service(Config(), settings))
        started[-1].start()
        assert started[-1].wait_for_first_cycle(30)
        return started[-1]

    yield begin
    for one in started:
        one.stop()


def test_the_whole_exporter_counts_each_line_once_also_when_it_is_killed(start, tmp_path) -> None:
    first = start()
    cards = [view.info for view in first.store.snapshot().gpus]
    bus = cards[1].pci_bus_id.lower()[4:].rpartition(".")[0]
    numbers = count(1)

    def happens() -> None:
        message = f"NVRM: Xid (PCI:{bus}): 79, pid='<unknown>', GPU has fallen off the bus."
        with (tmp_path / "kmsg").open("a") as log:
            log.write(f"3,{next(numbers)},{time.monotonic_ns() // 1000},-;{message}\n")

    def counted(one: Service, gpu: int) -> str:
        series = f'gpu_xid_errors_total{{gpu="{gpu}",uuid="{cards[gpu].uuid}",xid="79"}} '
        page = Page(one.store).render()[0].decode()
        return next((row for row in page.splitlines() if row.startswith(series)), "")[len(series) :]

    happens()
    poll(lambda: counted(first, 1) == "1.0")
    assert counted(first, 0) == "0.0"
    state = tmp_path / "state" / FILE_NAME
    poll(lambda: state.exists() and '"79"' in state.read_text())
    # As after a kill: nobody told the first one that it is over.
    second = start()
    poll(lambda: counted(second, 1) == "1.0")
    happens()
    poll(lambda: counted(second, 1) == "2.0")


def test_after_an_xid_of_the_log_alone_the_health_of_this_card_is_read_at_once(
    start, tmp_path
) -> None:
    service = start()
    driver = Driver(tmp_path / "driver", gpus=2)
    for gpu in (0, 1):
        driver.set(gpu, recovery_action=1)

    def actions() -> dict[int, str]:
        views = service.store.snapshot().gpus
        return {view.info.index: view.health.recovery_action for view in views}

    assert actions() == {0: "none", 1: "none"}, "it is read every 30 s"
    bus = service.store.snapshot().gpus[1].info.pci_bus_id.lower()[4:].rpartition(".")[0]
    with (tmp_path / "kmsg").open("a") as log:
        log.write(f"3,1,{time.monotonic_ns() // 1000},-;NVRM: Xid (PCI:{bus}): 79, GPU lost\n")
    poll(lambda: actions()[1] == "reset")
    assert actions()[0] == "none"
