"""Who may ask the helper, how, and what becomes of what was begun."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from remediator.clock import SystemClock
from remediator.errors import ControlError, OutcomeUnknown
from remediator.gpu_control.helper import HelperControl
from remediator.helper import server as server_module
from remediator.helper.client import Helper
from remediator.helper.ledger import Ledger
from tests.remediator.helper.support import CARD, OTHER, Cards, Running, desk_of, refused, until_end
from tests.waiting import poll

SET = json.dumps({"verb": "set_power_limit", "uuid": CARD, "milliwatts": 320_000}).encode()


def test_a_limit_is_read_set_and_read_back(helper: Running, cards: Cards) -> None:
    control = HelperControl(helper.client())
    assert control.power(CARD).limit == 400_000
    control.set_power_limit(CARD, 320_000)
    assert control.power(CARD).limit == 320_000
    assert cards.limits[OTHER] == 400_000


@pytest.mark.parametrize("milliwatts", [99_999, 400_001])
def test_the_helper_itself_looks_between_which_limits_the_card_may_be_set(
    helper: Running, cards: Cards, milliwatts: int
) -> None:
    control = HelperControl(helper.client())
    said = refused(lambda: control.set_power_limit(CARD, milliwatts))
    assert said.startswith("ControlError: the helper: ")
    assert "100000 to 400000 mW" in said
    assert not cards.begun.is_set()


def test_another_user_is_refused_before_anything_is_read(
    serve: Callable[..., Running], cards: Cards, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    helper = serve(desk_of(None, cards), uid=os.geteuid() + 1)
    said = refused(lambda: helper.client().ask("set_power_limit", CARD, 320_000))
    assert said.startswith("ControlError: ")
    assert f"uid {os.geteuid()} may not ask" in said
    assert not cards.begun.is_set()
    assert f"refused pid={os.getpid()} uid={os.geteuid()}" in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_process_of_another_user_is_refused_by_what_the_kernel_says_of_it(
    helper: Running, cards: Cards, tmp_path: Path
) -> None:
    os.chown(helper.socket, 65534, -1)
    # The folders above it are not for that user: it is in it before it becomes him.
    script = (
        "import os, socket\n"
        "one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)\n"
        "os.setresgid(65534, 65534, 65534)\n"
        "os.setresuid(65534, 65534, 65534)\n"
        "one.connect('helper.sock')\n"
        "print(one.recv(4096).decode())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=helper.socket.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "uid 65534 may not ask" in done.stdout, done.stderr
    assert not cards.begun.is_set()


@pytest.mark.parametrize(
    "data",
    [
        b"\n",
        SET + b"\n" + SET + b"\n",
        SET + b"\nx",
        b"\x00" * 100 + b"\n",
        b"x" * 513,
        b"x" * 100_000,
        SET[:-1] + b', "argv": ["/bin/sh"]}\n',
    ],
)
def test_what_is_no_request_is_answered_and_does_nothing(
    helper: Running, cards: Cards, data: bytes
) -> None:
    with helper.raw() as one:
        try:
            one.sendall(data)
        except BrokenPipeError:
            return
        answer = until_end(one)
    assert not answer or json.loads(answer)["outcome"] == "refused"
    assert not cards.begun.is_set()


def test_half_a_line_is_not_waited_for_for_ever(
    helper: Running, cards: Cards, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert helper.say(SET, end=True)["said"] == "the line has no end"
    monkeypatch.setattr(server_module, "_REQUEST_WITHIN", 0.1)
    assert "sent at once" in helper.say(SET)["said"]
    assert not cards.begun.is_set()


def test_a_crowd_that_says_nothing_keeps_nobody_out_for_long(
    helper: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_REQUEST_WITHIN", 0.3)
    silent = []
    for _ in range(60):
        one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        one.connect(str(helper.socket))
        silent.append(one)
    said = [json.loads(until_end(one, b"\n")) for one in silent]
    assert {"error": "too many calls at once"} in said
    poll(lambda: refused(lambda: helper.client().about()) == "it was done")
    for one in silent:
        one.close()


def test_a_flood_hides_nothing_in_the_log(
    helper: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for _ in range(200):
        helper.client().about()
    helper.client().ask("set_power_limit", CARD, 320_000)
    helper.close()
    lines = [record.getMessage() for record in caplog.records]
    assert sum("verb=about" in one for one in lines) == server_module._LINES_PER_MINUTE
    number = "number=320000"
    assert [one.split(" ")[0] for one in lines if number in one] == ["asked", "answered"]
    assert any(f"pid={os.getpid()} uid={os.geteuid()}" in one for one in lines if number in one)


def test_one_card_is_written_by_one_at_a_time_and_two_cards_at_once(
    helper: Running, cards: Cards
) -> None:
    clients = [HelperControl(helper.client()) for _ in range(6)]
    threads = [
        threading.Thread(target=one.set_power_limit, args=(CARD, 300_000 + n))
        for n, one in enumerate(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert cards.most_at_once == 1
    assert 300_000 <= cards.limits[CARD] <= 300_005
    cards.go_on.clear()
    threads = [
        threading.Thread(target=clients[0].set_power_limit, args=(uuid, 200_000))
        for uuid in (CARD, OTHER)
    ]
    for thread in threads:
        thread.start()
    poll(lambda: cards.at_once == 2)
    cards.go_on.set()
    for thread in threads:
        thread.join(20)


def test_a_client_that_goes_away_in_the_middle_ends_nothing_and_the_next_one_is_told(
    helper: Running, cards: Cards, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    cards.go_on.clear()
    with helper.raw() as one:
        one.sendall(SET + b"\n")
        assert cards.begun.wait(20)
    cards.go_on.set()
    poll(lambda: cards.limits[CARD] == 320_000)
    with helper.raw() as one:
        one.sendall(b'{"verb": "power_limit", "uuid": "%s"}\n' % CARD.encode())
        earlier = json.loads(until_end(one))["earlier"]
    assert (earlier["verb"], earlier["outcome"]) == ("set_power_limit", "done")
    read = b'{"verb": "power_limit", "uuid": "%s"}\n' % CARD.encode()
    poll(lambda: "earlier" not in helper.say(read))
    poll(lambda: "client=gone" in caplog.text)


def test_a_client_that_has_gone_before_its_turn_changes_nothing(
    helper: Running, cards: Cards
) -> None:
    cards.go_on.clear()
    first = threading.Thread(target=helper.client().ask, args=("set_power_limit", CARD, 320_000))
    first.start()
    assert cards.begun.wait(20)
    with helper.raw() as one:
        one.sendall(SET.replace(b"320000", b"100000") + b"\n")
        poll(lambda: len(helper.server._busy) == 2)
    cards.go_on.set()
    first.join(20)
    helper.close()
    assert cards.limits[CARD] == 320_000


def test_a_stop_waits_for_the_verb_that_is_under_way(helper: Running, cards: Cards) -> None:
    cards.go_on.clear()
    done: list[object] = []
    asking = threading.Thread(
        target=lambda: done.append(helper.client().ask("set_power_limit", CARD, 320_000))
    )
    asking.start()
    assert cards.begun.wait(20)
    helper.server.stop()
    helper.thread.join(0.1)
    assert helper.thread.is_alive()
    cards.go_on.set()
    asking.join(20)
    helper.thread.join(20)
    assert done == [{}]
    assert not helper.thread.is_alive()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ControlError("no"), "ControlError: the helper: no"),
        (OutcomeUnknown("who knows"), "OutcomeUnknown: the helper: who knows"),
        (RuntimeError("a bug"), "OutcomeUnknown: the helper: an error inside the helper"),
    ],
)
def test_what_became_of_a_write_is_said_as_it_is(
    helper: Running, cards: Cards, error: Exception, expected: str
) -> None:
    cards.error = error
    assert refused(lambda: helper.client().ask("set_power_limit", CARD, 320_000)).startswith(
        expected
    )


def test_a_helper_that_may_do_nothing_says_why_and_stays(
    serve: Callable[..., Running],
) -> None:
    helper = serve("the helper can do nothing: helper.yml: unknown key 'alow'", uid=None)
    said = refused(lambda: helper.client().ask("set_power_limit", CARD, 320_000))
    assert said.startswith("ControlError: ")
    assert "unknown key 'alow'" in said


def test_a_helper_without_clients_ends_by_itself(tmp_path: Path, cards: Cards) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        desk = desk_of(tmp_path, cards)
        one = server_module.Server(listener, desk, os.geteuid(), SystemClock(), idle_exit=0.05)
        thread = threading.Thread(target=one.run)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()


# the client


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[Callable[..., Helper]]:
    """A helper that says these lines, whatever it is asked, and goes."""
    listeners: list[socket.socket] = []

    def start(*answers: bytes, listen: bool = True) -> Helper:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listeners.append(listener)
        path = tmp_path / f"stand-in-{len(listeners)}"
        listener.bind(str(path))
        if listen:
            listener.listen()

        def serve() -> None:
            one, _ = listener.accept()
            with one:
                one.sendall(answers[0])
                for answer in answers[1:]:
                    one.recv(1024)
                    one.sendall(answer)

        if answers:
            threading.Thread(target=serve, daemon=True).start()
        return Helper(path, 0.3)

    yield start
    for listener in listeners:
        listener.close()


HELLO = b'{"helper": 1}\n'


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ((), "did not answer in time"),
        ((b"",), "ended before it answered"),
        ((b'{"error": "go away"}\n',), "go away"),
        ((b'{"helper": 2}\n',), "another version"),
        ((b"hello\n",), "no answer of the helper"),
        ((b"x" * 100_000,), "no answer of the helper"),
    ],
)
def test_a_write_that_was_never_asked_for_is_refused_and_not_unknown(
    stand_in: Callable[..., Helper], answers: tuple[bytes, ...], words: str
) -> None:
    said = refused(lambda: stand_in(*answers).ask("set_power_limit", CARD, 1))
    assert said.startswith("ControlError: the helper at ")
    assert words in said


@pytest.mark.parametrize("answer", [b"", b"{}\n", b'{"outcome": "done"', b"x" * 100_000])
def test_a_write_that_was_asked_for_and_is_not_answered_is_unknown_and_a_read_is_not(
    stand_in: Callable[..., Helper], answer: bytes
) -> None:
    write = stand_in(HELLO, answer)
    assert refused(lambda: write.ask("set_power_limit", CARD, 1)).startswith("OutcomeUnknown: ")
    read = stand_in(HELLO, answer)
    assert refused(lambda: read.ask("power_limit", CARD)).startswith("ControlError: ")


def test_who_is_not_there_is_named_with_what_to_do(
    stand_in: Callable[..., Helper], tmp_path: Path
) -> None:
    nobody = Helper(tmp_path / "nobody", 1.0)
    assert "install gpu-remediator-helper.socket" in refused(nobody.about)
    deaf = stand_in(listen=False)
    assert "systemctl start gpu-remediator-helper.socket" in refused(deaf.about)
    long = Helper(tmp_path / ("x" * 200), 1.0)
    assert "too long" in refused(long.about)


def test_the_socket_is_the_users_alone(helper: Running) -> None:
    assert helper.socket.stat().st_mode & 0o777 == 0o600


# the ledger


def test_what_a_dead_helper_had_begun_is_told_by_the_next_one_once(
    serve: Callable[..., Running], cards: Cards, tmp_path: Path
) -> None:
    Ledger(tmp_path, SystemClock()).begin("reset", CARD)
    helper = serve(desk_of(tmp_path, cards))
    read = b'{"verb": "power_limit", "uuid": "%s"}\n' % CARD.encode()
    earlier = helper.say(read)["earlier"]
    assert (earlier["verb"], earlier["outcome"]) == ("reset", "unknown")
    assert earlier["said"] == "the helper ended before this did"
    poll(lambda: "earlier" not in helper.say(read))
    poll(lambda: Ledger(tmp_path, SystemClock()).untold(CARD) is None)
    assert "earlier" not in serve(desk_of(tmp_path, cards)).say(read)


def test_half_a_line_of_the_ledger_costs_that_line_only(tmp_path: Path) -> None:
    first = Ledger(tmp_path, SystemClock())
    first.begin("reset", CARD)
    with (tmp_path / "writes.jsonl").open("a") as file:
        file.write('{"number": 2, "ti')
    Ledger(tmp_path, SystemClock()).begin("reset", CARD)
    assert Ledger(tmp_path, SystemClock()).resets_today(CARD) == 2


def test_the_ledger_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remediator.helper.ledger._COMPACT_ABOVE", 2000)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    ledger = Ledger(tmp_path, SystemClock())
    for _ in range(30):
        ledger.end(ledger.begin("reset", CARD), "done", "")
    assert (tmp_path / "writes.jsonl").stat().st_size < 10_000
    assert Ledger(tmp_path, SystemClock()).resets_today(CARD) == 30


def test_a_card_is_not_written_to_without_end(
    serve: Callable[..., Running], cards: Cards, tmp_path: Path
) -> None:
    helper = serve(desk_of(tmp_path, cards, writes_per_minute=3))
    for _ in range(3):
        helper.client().ask("set_power_limit", CARD, 320_000)
    said = refused(lambda: helper.client().ask("set_power_limit", CARD, 310_000))
    assert "3 times within a minute" in said
    assert cards.limits[CARD] == 320_000
    helper.client().ask("set_power_limit", OTHER, 310_000)


def test_the_peer_is_read_as_the_kernel_writes_it() -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with one, other:
        peer = server_module._peer(one)
    assert (peer.pid, peer.uid) == (os.getpid(), os.geteuid())
    assert server_module._CREDENTIALS.size == struct.calcsize("iII")
