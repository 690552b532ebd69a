"""What is read of /dev/kmsg: the driver's lines in all their spellings, and how reading goes on."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.clock import SystemClock
from exporter.kernel_log import KernelLog, LogBatch, LoggedXid, pci_address
from tests.exporter.fakes import FakeClock
from tests.waiting import poll

CARD = (0, 0x17, 0)


class Sink:
    """Takes what is read."""

    def __init__(self) -> None:
        self.batches: list[LogBatch] = []
        self.unreadable: list[str] = []

    def take_log(self, batch: LogBatch) -> None:
        self.batches.append(batch)

    def log_unreadable(self, why: str) -> None:
        self.unreadable.append(why)

    @property
    def xids(self) -> list[LoggedXid]:
        return [one for batch in self.batches for one in batch.xids]

    @property
    def caught_up(self) -> bool:
        return any(batch.caught_up for batch in self.batches)


class Kmsg:
    """Gives records as the kernel does: one a read, nothing when there is none."""

    def __init__(self, *records: bytes | Exception) -> None:
        self.records: list[bytes | Exception] = list(records)

    def __call__(self, descriptor: int, size: int) -> bytes:
        if not self.records:
            raise BlockingIOError
        one = self.records.pop(0)
        if isinstance(one, Exception):
            raise one
        return one


def record(message: str, sequence: int = 1, microseconds: int = 900_000_000, priority: int = 3):
    return f"{priority},{sequence},{microseconds},-;{message}\n".encode()


@pytest.fixture
def follow(tmp_path: Path) -> Iterator[Callable[..., tuple[Sink, KernelLog]]]:
    started: list[KernelLog] = []

    def start(read: Callable[[int, int], bytes], clock=None) -> tuple[Sink, KernelLog]:
        path = tmp_path / "kmsg"
        path.touch()
        sink = Sink()
        log = KernelLog(path, sink, clock or SystemClock(), read)
        log.start()
        started.append(log)
        return sink, log

    yield start
    for one in started:
        one.stop()


def read_all(follow, *records: bytes | Exception) -> list[tuple[tuple[int, int, int], int]]:
    sink, _ = follow(Kmsg(*records))
    poll(lambda: sink.caught_up)
    return [(one.address, one.xid) for one in sink.xids]


# Of the source (kernel_rc.c, five formats), of NVIDIA's documents, and of public reports:
# open-gpu-kernel-modules 1150, NVSentinel 155, gpud's tests.
@pytest.mark.parametrize(
    ("line", "address", "xid"),
    [
        (
            "NVRM: Xid (PCI:0000:17:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
            CARD,
            79,
        ),
        ("NVRM: Xid (PCI:0000:17:00): 79, GPU has fallen off the bus.", CARD, 79),
        (
            "NVRM: Xid (PCI:0000:17:00): 119, pid=1234, name=python3, Timeout after 6s of waiting for RPC "
            "response from GPU0 GSP! Expected function 76 (GSP_RM_CONTROL) (0x2080a0d1 0x0).",
            CARD,
            119,
        ),
        (
            "NVRM: Xid (PCI:0000:DC:00): 45, pid=1818990, name=vllm, Ch 00000001 caused by previous Xid 149",
            (0, 0xDC, 0),
            45,
        ),
        (
            "NVRM: Xid (PCI:0000:17:00 GPU-I:05): 94, pid=7194, name=dcgmproftester, Ch 00000008",
            CARD,
            94,
        ),
        ("NVRM: Xid (PCI:0000:17:00 GPU-I:05 GPU-CI:00): 31, Ch 00000008", CARD, 31),
        (
            "NVRM: Xid (PCI:0000:17:00): 145, RLW_REMAP Nonfatal XC1 i0 Link 16 "
            "(0x00000004 0x00000000 0x00000000)",
            CARD,
            145,
        ),
        (
            "NVRM: Xid (PCI:0000:17:00): 154, GPU recovery action changed from 0x0 (None) to 0x1 "
            "(GPU Reset Required)",
            CARD,
            154,
        ),
        ("NVRM: Xid (0000:03:00): 14, Channel 00000001", (0, 3, 0), 14),
        ("NVRM: Xid (PCI:10000:01:00): 63, Row Remapper: New row marked", (0x10000, 1, 0), 63),
        # As the kernel escapes what a user could call a process.
        (
            "NVRM: Xid (PCI:0000:17:00): 31, pid=1, name=a\\x0aNVRM: Xid (PCI:0000:18:00): 79, x",
            CARD,
            31,
        ),
    ],
)
def test_every_spelling_of_an_xid(follow, line, address, xid) -> None:
    assert read_all(follow, record(line)) == [(address, xid)]


@pytest.mark.parametrize(
    "line",
    [
        # An NVSwitch is no GPU.
        "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 28006, Non-fatal, Link 46 MC TS crumbstore MCTO",
        "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 20034, Fatal, Link 30 LTSSM Fault Up",
        # Beside the line about Xid 79, or without any; the card itself is seen to be lost.
        "NVRM: GPU 0000:b3:00.0: GPU has fallen off the bus.",
        "NVRM: GPU at PCI:0000:b3:00: GPU-b850f46d-d5ea-c752-ddf3-c6055e1d3b0c",
        "NVRM: The NVIDIA GPU 0000:b3:00.0\\x0aNVRM: (PCI ID: 10de:26b5) installed in this system has",
        "NVRM: Xid (PCI:0000:17): 79, cut",
        "NVRM: Xid (PCI:0000:17:00): , cut",
        "NVRM: Xid (PCI:0000:17:00): 123456, no code has so many digits",
        "NVRM: Xid",
        # Names that a user chose.
        "traps: NVRM: Xid (PCI:[7] trap divide error ip:0 sp:0 error:0",
        "usb 1-1: Product: NVRM: Xid (PCI:0000:17:00): 79, GPU has fallen off the bus.",
        "",
    ],
)
def test_what_is_no_xid_of_a_gpu(follow, line) -> None:
    assert read_all(follow, record(line)) == []


def test_what_a_program_wrote_into_the_log_does_not_count(follow) -> None:
    line = "NVRM: Xid (PCI:0000:17:00): 79, GPU has fallen off the bus."
    assert read_all(follow, record(line, priority=8 + 3), record(line, priority=24 + 6)) == []
    assert read_all(follow, record(line, priority=7)) == [(CARD, 79)]


@pytest.mark.parametrize(
    "odd",
    [
        b"no header\n",
        b"3,x,5,-;NVRM: Xid (PCI:0000:17:00): 1, y\n",
        b"3;NVRM: Xid (PCI:0000:17:00): 1, y\n",
        b" SUBSYSTEM=pci;NVRM: Xid (PCI:0000:17:00): 1, y\n",
        b"\xff\xfe;\n",
        b"\n",
        b"-3,1,5,-;NVRM: Xid (PCI:0000:17:00): 1, y\n",
    ],
)
def test_an_odd_record_hides_no_other(follow, odd) -> None:
    good = (
        record("NVRM: Xid (PCI:0000:17:00): 79, x") + b" SUBSYSTEM=pci\n DEVICE=+pci:0000:17:00.0\n"
    )
    assert read_all(follow, odd, good) == [(CARD, 79)]


def test_fields_that_newer_kernels_add_do_not_matter(follow) -> None:
    line = b"3,5,900,-,caller=T77;NVRM: Xid (PCI:0000:17:00): 79, x; y\n"
    assert read_all(follow, line) == [(CARD, 79)]


def test_lines_of_before_have_the_time_of_the_kernel_and_those_that_come_have_now(follow) -> None:
    clock, kmsg = FakeClock(now=1000.0), Kmsg()
    kmsg.records = [
        record("NVRM: Xid (PCI:0000:17:00): 31, x", 1, 900_000_000),
        # The kernel's clock may be ahead of ours.
        record("NVRM: Xid (PCI:0000:17:00): 31, x", 2, 1_000_500_000),
    ]
    sink, _ = follow(kmsg, clock)
    poll(lambda: sink.caught_up)
    booted = clock.time() - clock.monotonic()
    first, second = sink.xids
    assert (first.time, second.time) == (booted + 900, booted + 1000)
    assert sink.batches[0] == LogBatch((first, second), 2, 0, history=True, caught_up=True)
    kmsg.records.append(record("NVRM: Xid (PCI:0000:17:00): 31, x", 3, 900_000_000))
    poll(lambda: len(sink.xids) == 3)
    assert sink.xids[2].time >= booted + 1000
    assert sink.batches[1].history is False


def test_what_the_kernel_overwrote_is_counted_and_reading_goes_on(follow) -> None:
    lost = OSError(errno.EPIPE, "Broken pipe")
    sink, _ = follow(
        Kmsg(record("x", 5), lost, lost, record("NVRM: Xid (PCI:0000:17:00): 79, x", 90))
    )
    poll(lambda: sink.caught_up)
    assert (sum(one.lost for one in sink.batches), sink.batches[-1].sequence) == (2, 90)
    assert [one.xid for one in sink.xids] == [79]


def test_a_storm_is_read_in_turns_and_delivered_whole(follow) -> None:
    storm = [record("NVRM: Xid (PCI:0000:17:00): 31, x", number) for number in range(5000)]
    sink, _ = follow(Kmsg(*storm), FakeClock())
    poll(lambda: sink.caught_up)
    assert [one.sequence for one in sink.xids] == list(range(5000))
    assert max(len(one.xids) for one in sink.batches) <= 2000


def test_an_error_of_the_log_ends_reading_and_is_said_once(follow) -> None:
    sink, _ = follow(Kmsg(record("x"), OSError(errno.EIO, "Input/output error")))
    poll(lambda: sink.unreadable)
    (why,) = sink.unreadable
    assert "Input/output error" in why


@pytest.mark.parametrize("error", [errno.EPERM, errno.EACCES])
def test_without_the_privilege_it_is_said_what_gives_it(follow, error) -> None:
    sink, _ = follow(Kmsg(PermissionError(error, "Operation not permitted")))
    poll(lambda: sink.unreadable)
    assert "CAP_SYSLOG" in sink.unreadable[0]
    assert "kernel-log.conf" in sink.unreadable[0]


def test_no_log_at_all_is_said(tmp_path) -> None:
    sink = Sink()
    log = KernelLog(tmp_path / "nothing", sink, SystemClock())
    log.start()
    poll(lambda: sink.unreadable)
    log.stop()
    assert "No such file" in sink.unreadable[0]


def test_a_pipe_is_read_in_any_pieces_and_also_when_its_writer_comes_and_goes(tmp_path) -> None:
    path, sink = tmp_path / "kmsg", Sink()
    os.mkfifo(path)
    log = KernelLog(path, sink, SystemClock())
    log.start()
    poll(lambda: sink.caught_up)
    text = b"".join(record(f"NVRM: Xid (PCI:0000:17:00): {xid}, x", xid) for xid in (31, 79))
    for pieces in ((text[:30], text[30:]), (text,)):
        with path.open("wb", buffering=0) as writer:
            for piece in pieces:
                writer.write(piece)
    poll(lambda: len(sink.xids) == 4)
    log.stop()
    assert [one.xid for one in sink.xids] == [31, 79, 31, 79]


def test_a_file_without_line_ends_does_not_fill_memory(follow) -> None:
    sink, log = follow(
        Kmsg(*[b"x" * 10_000] * 50, b"\n", record("NVRM: Xid (PCI:0000:17:00): 79, x"))
    )
    poll(lambda: sink.caught_up)
    assert [one.xid for one in sink.xids] == [79]
    assert len(log._rest) <= 1 << 14


def test_a_read_that_does_not_come_back_holds_up_nobody(follow) -> None:
    entered, leave = threading.Event(), threading.Event()

    def hang(descriptor: int, size: int) -> bytes:
        entered.set()
        leave.wait(30)
        raise BlockingIOError

    _, log = follow(hang)
    assert entered.wait(20)
    log.stop()
    leave.set()


@given(
    st.lists(
        st.binary(max_size=40)
        | st.sampled_from([b"3,1,2,-;", b"NVRM: Xid (PCI:0000:17:00): 79, x", b"\n", b" K=v\n"]),
        max_size=12,
    ),
    st.integers(1, 20),
)
@settings(max_examples=200, deadline=None)
def test_whatever_stands_there_in_whatever_pieces_the_same_is_found(parts, size) -> None:
    text = b"".join(parts) + b"\n"

    def found(pieces: list[bytes]) -> list[LoggedXid]:
        log = KernelLog(Path("/nothing"), Sink(), FakeClock())
        xids: list[LoggedXid] = []
        for piece in pieces:
            log._take(piece, xids)
        return xids

    assert found([text]) == found([text[at : at + size] for at in range(0, len(text), size)])


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("00000000:17:00.0", CARD),
        ("0000:17:00.0", CARD),
        ("0000:17:00", CARD),
        ("00000000:C1:00.0", (0, 0xC1, 0)),
        ("00010000:01:1F.0", (0x10000, 1, 0x1F)),
        ("", None),
        ("17:00.0", None),
        ("0000:17:00.0 ", None),
        ("GPU-1", None),
    ],
)
def test_addresses_as_each_writes_them(text, address) -> None:
    assert pci_address(text) == address


def test_the_log_of_this_machine() -> None:
    path = Path("/dev/kmsg")
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    except OSError as error:
        pytest.skip(f"{path} cannot be read here ({error.strerror}): only played ones are tried")
    sink = Sink()
    log = KernelLog(path, sink, SystemClock())
    log.start()
    poll(lambda: sink.caught_up or sink.unreadable)
    log.stop()
    assert sink.unreadable == []
    assert sink.batches[-1].sequence is not None
