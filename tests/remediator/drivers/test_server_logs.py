"""Servers' logs, as each process manager keeps them: read in pages, once, and never for long."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from remediator import managers
from remediator.clock import SystemClock
from remediator.errors import ManagerError
from remediator.managers import ServerLog
from remediator.managers._server_log import LONGEST_LINE, PAGE_BYTES
from tests.remediator.drivers import standin_journalctl, standin_systemctl
from tests.remediator.drivers.standin_engine import Container, Engine, serve
from tests.remediator.engine.processes import PYTHON, supervisord
from tests.waiting import poll

T = 1_763_760_000.0


class Follower:
    """Reads on from where it was, as the watch does."""

    def __init__(self, log: ServerLog, since: float = T) -> None:
        self.log, self.since = log, since
        self.position: dict[str, Any] = {}
        self.skipped = False

    def page(self) -> list[str]:
        page = self.log.read(self.position, self.since)
        # Kept as JSON, so it has to survive that.
        self.position = json.loads(json.dumps(page.position))
        self.skipped = page.skipped
        return [line.text for line in page.lines]


def manager_of(raw: dict[str, Any]) -> Any:
    return managers.create(raw, "llm", managers.Context(SystemClock(), dict, lambda one: None))


# A plain process: its log_file.


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "server.log"


def of_file(file: Path) -> Follower:
    raw = {"type": "process", "command": ["/bin/true"], "log_file": str(file)}
    return Follower(manager_of(raw).log())


def test_a_file_is_read_from_its_end_on_and_each_line_once(file: Path) -> None:
    file.write_text("old\n")
    one = of_file(file)
    assert one.page() == []
    with file.open("a") as out:
        out.write("first\nhalf")
        out.flush()
        assert one.page() == ["first"]
        out.write(" a line\n")
        out.flush()
        assert one.page() == ["half a line"]
    assert one.page() == []


def test_a_file_that_comes_later_or_is_replaced_is_read_from_its_beginning(file: Path) -> None:
    one = of_file(file)
    assert one.page() == []
    file.write_text("first\n")
    assert one.page() == ["first"]
    file.rename(file.with_suffix(".1"))
    file.write_text("a longer second one\n")
    assert one.page() == ["a longer second one"]
    file.write_text("cut\n")
    assert one.page() == ["cut"]


def test_a_file_that_grows_too_fast_is_skipped_in_part_and_never_read_whole(file: Path) -> None:
    file.write_text("")
    one = of_file(file)
    one.page()
    file.write_bytes(b"x" * 10 * PAGE_BYTES + b"\nlast\n")
    assert one.page() == ["x" * LONGEST_LINE, "last"]
    assert one.skipped


def test_a_file_in_pages_without_an_end_of_line_is_passed_over(file: Path) -> None:
    file.write_text("")
    one = of_file(file)
    one.page()
    file.write_bytes(b"x" * (PAGE_BYTES + 10) + b"\nlast\n")
    assert one.page() == ["x" * LONGEST_LINE]
    assert one.page()[-1] == "last"


def test_a_file_that_may_not_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(ManagerError, match="cannot read"):
        of_file(tmp_path).page()


def test_a_process_without_a_log_file_has_none() -> None:
    assert manager_of({"type": "process", "command": ["/bin/true"]}).log() is None


# A unit of systemd: the journal.


class JournalFolder:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: list[dict[str, Any]] = []
        self.put()

    def put(self, *entries: dict[str, Any]) -> None:
        self.entries += entries
        text = "".join(json.dumps(one) + "\n" for one in self.entries)
        (self.folder / "journal.jsonl").write_text(text)

    def says(self, at: float, message: Any, unit: str = "vllm.service") -> None:
        stamp = str(round(at * 1e6))
        self.put({"__REALTIME_TIMESTAMP": stamp, "MESSAGE": message, "_SYSTEMD_UNIT": unit})

    def mode(self, mode: str) -> None:
        (self.folder / "mode").write_text(mode)

    def follow(self, timeout: str = "10s") -> Follower:
        systemctl = str(self.folder / "systemctl")
        raw = {"type": "systemd", "unit": "vllm.service", "systemctl": systemctl}
        return Follower(manager_of({**raw, "timeout": timeout}).log())


@pytest.fixture
def journal(install_program: Callable[[ModuleType, str], Path], tmp_path: Path) -> JournalFolder:
    install_program(standin_systemctl, "systemctl")
    install_program(standin_journalctl, "journalctl")
    return JournalFolder(tmp_path)


def test_the_journal_of_a_unit_holds_what_its_processes_wrote(journal: JournalFolder) -> None:
    journal.says(T - 1, "too old")
    journal.says(T + 1, "first")
    journal.says(T + 1.5, "another unit's", unit="ollama.service")
    journal.says(T + 2, [0x68, 0x69, 0xFF])
    journal.says(T + 2.5, None)
    one = journal.follow()
    assert one.page() == ["first", "hi�", ""]
    assert one.page() == []
    journal.says(T + 3, "next")
    assert one.page() == ["next"]
    argv = json.loads((journal.folder / "argv.log").read_text().splitlines()[-1])
    assert argv[-1] == "_SYSTEMD_UNIT=vllm.service"
    assert argv[-2] == f"--since=@{T + 2.5:.6f}"


def test_a_page_of_the_journal_ends_at_its_limit_and_the_next_goes_on(
    journal: JournalFolder,
) -> None:
    count = 3 * PAGE_BYTES // 1000
    stamped = ((str(round((T + 1 + n / 1000) * 1e6)), n) for n in range(count))
    journal.put(
        *(
            {
                "__REALTIME_TIMESTAMP": stamp,
                "MESSAGE": f"{n} " + "x" * 900,
                "_SYSTEMD_UNIT": "vllm.service",
            }
            for stamp, n in stamped
        )
    )
    one = journal.follow()
    pages = [one.page() for _ in range(4)]
    assert all(len("".join(page)) <= PAGE_BYTES for page in pages)
    seen = [int(line.split()[0]) for page in pages for line in page]
    assert seen == list(range(count))


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("denied", "the group systemd-journal"),
        ("broken", "Input/output error"),
        ("hang", "did not end within"),
    ],
)
def test_a_journal_that_cannot_be_read_is_said(
    journal: JournalFolder, mode: str, words: str
) -> None:
    journal.mode(mode)
    with pytest.raises(ManagerError, match=words):
        journal.follow("300ms").page()


# A container: its engine.


@pytest.fixture
def container(tmp_path: Path) -> Iterator[tuple[Engine, Container, Follower]]:
    engine, one = Engine(), Container("llm")
    engine.containers.append(one)
    one.up()
    with tempfile.TemporaryDirectory() as folder, serve(engine, Path(folder) / "d.sock"):
        raw = {"type": "docker", "container": "llm", "url": f"unix://{folder}/d.sock"}
        yield engine, one, Follower(manager_of(raw).log())


@pytest.mark.parametrize("terminal", [False, True])
def test_a_containers_log_is_read_without_its_frames_and_each_line_once(
    container: tuple[Engine, Container, Follower], terminal: bool
) -> None:
    _, one, follower = container
    one.terminal = terminal
    one.written += [(T - 5, 1, "old"), (T + 0.2, 1, "out"), (T + 0.3, 2, "error: ü")]
    assert follower.page() == ["out", "error: ü"]
    assert follower.page() == []
    one.written.append((T + 0.4, 2, "within the same second"))
    assert follower.page() == ["within the same second"]


def test_a_containers_log_that_grows_too_fast_in_one_second_does_not_hold_up(
    container: tuple[Engine, Container, Follower],
) -> None:
    _, one, follower = container
    one.written += [(T + 0.1 + n / 1e5, 1, "x" * 1000) for n in range(3 * PAGE_BYTES // 1000)]
    one.written.append((T + 2, 2, "later"))
    pages = [follower.page() for _ in range(6)]
    assert "later" in pages[-1] + pages[-2] + pages[-3] + pages[-4]


def test_a_log_that_the_engine_does_not_give_is_said(
    container: tuple[Engine, Container, Follower],
) -> None:
    engine, _, follower = container
    engine.refusal = (501, "configured logging driver does not support reading")
    with pytest.raises(ManagerError, match="does not support reading"):
        follower.page()


# A program of supervisord: both of its files, over the real daemon.

_SERVER = """
import pathlib, sys, time
here = pathlib.Path(__file__).parent
seen = 0
while True:
    try:
        lines = (here / "say").read_bytes().splitlines()
    except OSError:
        lines = []
    for line in lines[seen:]:
        stream = sys.stderr if line.startswith(b"E") else sys.stdout
        stream.buffer.write(line + b"\\n")
        stream.buffer.flush()
    seen = max(seen, len(lines))
    time.sleep(0.02)
"""


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[tuple[Path, Follower]]:
    """What the program is to say, and who reads it."""
    server = tmp_path / "server.py"
    server.write_text(_SERVER)
    command = f"[program:llm]\ncommand={PYTHON} -IS -u {server}\nstartsecs=0\nautorestart=false\n"
    with supervisord(command) as url:
        one = manager_of({"type": "supervisord", "url": url, "process": "llm"})
        poll(lambda: one.status().running)
        yield tmp_path / "say", Follower(one.log())


def test_a_program_of_supervisord_is_read_on_both_its_streams(
    supervised: tuple[Path, Follower],
) -> None:
    said, one = supervised
    assert one.page() == []
    said.write_bytes("out ü\nError \x1b[31mred\x1b[0m\n".encode())
    lines: list[str] = []
    poll(lambda: lines.extend(one.page()) or len(lines) >= 2)
    assert sorted(lines) == ["Error  [31mred [0m", "out ü"]
    with said.open("ab") as out:
        out.write(b"no \xff text\nafter it\n")
    poll(lambda: one.page() or one.skipped)
    with said.open("ab") as out:
        out.write(b"last\n")
    seen: list[str] = []
    poll(lambda: seen.extend(one.page()) or "last" in seen)


def test_a_supervisord_that_is_gone_is_said() -> None:
    raw = {"type": "supervisord", "url": "unix:///nowhere/s.sock", "process": "llm"}
    with pytest.raises(ManagerError, match="supervisord at"):
        manager_of(raw).log().read({}, T)
