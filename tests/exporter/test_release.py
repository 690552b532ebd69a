"""Letting go of the driver: decisions, the store's picture of it, and the endpoint."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable

import pytest

from exporter.errors import ConfigError, ReleaseError
from exporter.frames import BackendFrame, FaultFrame, HeartbeatFrame
from exporter.inventory import Inventory
from exporter.page import Page
from exporter.readings import BackendReason, FaultReason
from exporter.release import FILE_NAME, Grant, Move, Release
from exporter.web.app import ExporterApp
from exporter.web.release import ReleaseEndpoint, read_token
from tests.exporter.fakes import Bench, FakeClock, info
from tests.exporter.supervisor_stage import LIMITS, Stage

TOKEN = "let-go-of-all-the-cards"


class Asking(threading.Thread):
    """Somebody who asks and waits for the answer."""

    def __init__(self, ask: Callable[[], Grant | None]) -> None:
        super().__init__(daemon=True)
        self.answer: Grant | None = None
        self.refusal = ""
        self._ask = ask
        self.start()

    def run(self) -> None:
        try:
            self.answer = self._ask()
        except ReleaseError as error:
            self.refusal = str(error)


def asked(stage: Stage, seconds: float = 120.0) -> Asking:
    """Ask, and let supervision run until there is an answer."""
    asking = Asking(lambda: stage.release.ask(seconds))
    settle(stage, asking)
    return asking


def settle(stage: Stage, asking: Asking) -> None:
    rounds = 0
    while asking.is_alive():
        # Time stands still until the asking has arrived, which is not this thread's doing.
        asking.join(0.01)
        if not stage.release.may_start():
            stage.supervisor.step()
        rounds += 1
        assert rounds < 1000


@pytest.fixture
def stage() -> Stage:
    made = Stage()
    made.run(1)
    return made


def test_it_is_granted_only_when_the_worker_is_gone_and_ends_by_itself(stage) -> None:
    asking = asked(stage, 120)
    assert stage.workers[0].orders == ["let go"]
    assert asking.answer.until == pytest.approx(stage.clock.time() + 120, abs=1)
    assert stage.sink.released == [True]
    assert stage.release.grant() == asking.answer
    stage.run(118)
    assert len(stage.workers) == 1
    stage.run(3)
    assert stage.sink.released == [True, False]
    assert len(stage.workers) == 2
    assert stage.release.grant() is None
    assert stage.sink.errors == []


def test_it_is_asked_back_at_once(stage) -> None:
    asked(stage)
    back = Asking(stage.release.take_back)
    settle(stage, back)
    stage.run(1)
    assert stage.sink.released == [True, False]
    assert len(stage.workers) == 2
    # Nothing is let go, so nothing is taken back.
    stage.release.take_back()
    assert len(stage.workers) == 2


def test_a_worker_that_does_not_let_go_in_time_is_told_to_go_on(stage) -> None:
    stage.workers[0].obeys = False
    asking = asked(stage)
    assert asking.answer is None
    assert "did not let go within 6 s" in asking.refusal
    assert stage.workers[0].orders == ["let go", "keep"]
    assert not stage.workers[0].asked
    assert stage.sink.released == []
    stage.workers[0].obeys = True
    assert asked(stage).answer is not None


@pytest.mark.parametrize(
    ("what", "seconds", "refused"),
    [("GPU-1", 4, True), ("GPU-1", 1, False), ("enumeration", 4, False)],
)
def test_a_call_that_does_not_come_back_is_an_answer_at_once(stage, what, seconds, refused) -> None:
    since = stage.clock.now
    stage.clock.now += seconds
    stage.workers[0].obeys = False
    asking = Asking(lambda: stage.release.ask(60))
    while stage.release.may_start():
        asking.join(0.01)
    # What it told before does not count: that call may have come back.
    stage.run(0.5, HeartbeatFrame(stage.clock.now - 1, {what: since}))
    assert stage.workers[0].orders == ["let go"]
    stage.run(0.5, HeartbeatFrame(stage.clock.now, {what: since}))
    assert (stage.workers[0].orders == ["let go", "keep"]) is refused
    if refused:
        asking.join(10)
        assert "a driver call about GPU-1 has not come back" in asking.refusal
    stage.release.close()


def test_a_worker_that_was_left_alone_in_the_driver_still_holds_it(stage) -> None:
    stage.workers[0].obeys = False
    stage.run(16)
    assert stage.sink.worker.abandoned == 1
    asking = asked(stage)
    assert "stuck in a driver call" in asking.refusal
    stage.workers[0].code = 0
    stage.run(1)
    assert asked(stage).answer is not None


def test_between_two_workers_nothing_holds_the_driver(stage) -> None:
    stage.workers[0].code = 1
    stage.run(0.5)
    assert asked(stage).answer is not None
    stage.run(20)
    assert len(stage.workers) == 1


def test_asking_again_sets_the_time_anew(stage) -> None:
    asked(stage, 60)
    stage.run(50)
    assert stage.release.ask(60) == Grant(stage.clock.time() + 60, 60)
    stage.run(50)
    assert len(stage.workers) == 1
    stage.release.ask(1)
    stage.run(2)
    assert len(stage.workers) == 2


def test_who_asks_while_it_is_asked_back_hears_that_it_is_not_let_go(stage) -> None:
    stage.workers[0].obeys = False
    asking = Asking(lambda: stage.release.ask(60))
    while stage.release.may_start():
        asking.join(0.01)
    stage.supervisor.step()
    settle(stage, Asking(stage.release.take_back))
    asking.join(10)
    assert "asked back" in asking.refusal
    assert stage.workers[0].orders == ["let go", "keep"]
    assert stage.sink.released == []


def test_nobody_waits_for_an_exporter_that_ends(stage) -> None:
    asking = Asking(lambda: stage.release.ask(60))
    while stage.release.may_start():
        asking.join(0.01)
    stage.release.close()
    asking.join(10)
    assert "stopping" in asking.refusal


def granted(tmp_path, clock: FakeClock, seconds: float = 120.0) -> Release:
    release = Release(clock, LIMITS.release, tmp_path)
    asking = Asking(lambda: release.ask(seconds))
    while asking.is_alive():
        release.next_move(held=False, stuck="")
        asking.join(0.01)
    return release


def test_with_a_directory_it_survives_a_restart_and_then_ends(tmp_path) -> None:
    clock = FakeClock()
    granted(tmp_path, clock)
    clock.now += 100
    again = Release(clock, LIMITS.release, tmp_path)
    assert again.grant() is not None
    assert not again.may_start()
    clock.now += 21
    assert again.next_move(held=False, stuck="") is Move.TAKE_BACK
    assert again.may_start()
    assert not (tmp_path / FILE_NAME).exists()


def test_what_was_let_go_before_a_restart_is_not_taken_back_sooner(tmp_path) -> None:
    clock = FakeClock()
    granted(tmp_path, clock, 30)
    stage = Stage(Release(clock, LIMITS.release, tmp_path), clock)
    stage.run(29)
    assert stage.workers == []
    stage.run(2)
    assert len(stage.workers) == 1


@pytest.mark.parametrize(
    "written",
    [
        '{"until": 1700000999.0, "seconds": 120}',
        '{"until": 1700002000.0, "seconds": 120}',
        '{"until": 1700002000.0, "seconds": 1e9}',
        '{"until": NaN, "seconds": 120}',
        '{"until": 1700001100.0}',
        "[]",
        "{",
    ],
    ids=["over", "clock set back", "for ever", "no time", "half", "a list", "damaged"],
)
def test_what_cannot_be_trusted_after_a_restart_keeps_nothing_from_being_read(
    tmp_path, written
) -> None:
    (tmp_path / FILE_NAME).write_text(written)
    release = Release(FakeClock(), LIMITS.release, tmp_path)
    assert release.grant() is None
    assert release.may_start()


def test_a_directory_that_cannot_be_written_does_not_keep_it_from_letting_go(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    assert granted(tmp_path / "file", FakeClock()).grant() is not None


def view(bench: Bench, uuid: str = "GPU-0") -> tuple[bool, str | None, bool]:
    gpu = bench.gpu(uuid)
    return gpu.up, gpu.fault and str(gpu.fault), gpu.sample is not None


@pytest.fixture
def bench() -> Bench:
    made = Bench(gpus=2)
    made.sample("GPU-0")
    made.sample("GPU-1")
    made.health("GPU-0")
    return made


def test_released_cards_are_down_and_without_readings_but_no_backend_is(bench) -> None:
    bench.store.apply(FaultFrame("GPU-1", 0, "sample", "lost", FaultReason.LOST))
    bench.store.set_released(released=True)
    page = Page(bench.store).render()[0].decode()
    for index in range(2):
        assert f'gpu_up{{gpu="{index}",uuid="GPU-{index}"}} 0.0' in page
        assert f'gpu_fault{{gpu="{index}",reason="released",uuid="GPU-{index}"}} 1.0' in page
        assert view(bench, f"GPU-{index}") == (False, "released", False)
    assert 'gpu_exporter_backend_up{backend="nvml"} 1.0' in page
    assert 'gpu_temperature_threshold_celsius{gpu="0",level="warning"' in page
    for absent in (
        "gpu_exporter_backend_fault{",
        "gpu_devices_visible ",
        "gpu_temperature_celsius{",
    ):
        assert absent not in page
    bench.advance(500)
    assert view(bench) == (False, "released", False)
    assert bench.store.snapshot().not_ready == ""
    assert (bench.gpu().verdict.health, bench.gpu().verdict.error) == ("unknown", "none")


def test_a_card_is_back_when_it_answers_and_lost_when_it_does_not(bench) -> None:
    bench.store.set_released(released=True)
    bench.advance(120)
    bench.store.set_released(released=False)
    assert view(bench) == (False, "released", False)
    bench.advance(6)
    assert view(bench) == (False, "released", False)
    bench.sample("GPU-0")
    assert view(bench) == (True, None, True)
    bench.advance(10)
    assert view(bench, "GPU-1") == (False, "timeout", False)
    bench.enumerate(info(0))
    assert view(bench, "GPU-1") == (False, "lost", False)


def test_a_driver_that_does_not_come_back_is_a_fault_of_the_driver(bench) -> None:
    bench.store.set_released(released=True)
    bench.store.set_released(released=False)
    gone = BackendReason.DRIVER_NOT_LOADED
    bench.store.apply(BackendFrame("nvml", up=False, reason=gone, message="gone"))
    assert view(bench) == (False, None, False)
    assert bench.store.snapshot().backend.reason == gone
    bench.advance(500)
    bench.store.apply(BackendFrame("nvml", up=True))
    bench.sample("GPU-0")
    assert view(bench) == (True, None, True)


def test_a_card_that_was_only_expected_is_released_too(tmp_path) -> None:
    Inventory("auto", tmp_path).saw([info(0)])
    bench = Bench(gpus=0, inventory=Inventory("auto", tmp_path))
    bench.store.set_released(released=True)
    assert view(bench) == (False, "released", False)
    assert bench.store.snapshot().not_ready == ""


class Door:
    """A release that opens at once, or says why not."""

    def __init__(self) -> None:
        self.granted: Grant | None = None
        self.refusal = ""

    def grant(self) -> Grant | None:
        return self.granted

    def ask(self, seconds: float) -> Grant:
        if self.refusal:
            raise ReleaseError(self.refusal)
        self.granted = Grant(1000.0 + seconds, seconds)
        return self.granted

    def take_back(self) -> None:
        self.granted = None


class Client:
    def __init__(self, bench: Bench, endpoint: ReleaseEndpoint | None) -> None:
        self.app = ExporterApp(bench.store, Page(bench.store), release=endpoint)

    def call(self, method: str, body: bytes = b"", authorization: str | None = f"Bearer {TOKEN}"):
        environ = {
            "REQUEST_METHOD": method,
            "PATH_INFO": "/-/release",
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.input": io.BytesIO(body),
        }
        if authorization is not None:
            environ["HTTP_AUTHORIZATION"] = authorization
        seen = {}

        def start(status, head):
            seen.update(status=int(status[:3]), headers=dict(head))

        answer = b"".join(self.app(environ, start))
        kind = seen["headers"]["Content-Type"]
        return seen["status"], json.loads(answer) if kind == "application/json" else answer


@pytest.fixture
def door() -> Door:
    return Door()


@pytest.fixture
def client(bench, door) -> Client:
    return Client(bench, ReleaseEndpoint(door, TOKEN))


def test_the_answers_are_those_of_the_document(client, door) -> None:
    held = (200, {"released": False, "until": None})
    assert client.call("GET") == held
    assert client.call("POST") == (200, {"released": True, "until": 1120.0})
    assert client.call("GET") == (200, {"released": True, "until": 1120.0})
    assert client.call("POST", b'{"seconds": 30}') == (200, {"released": True, "until": 1030.0})
    assert client.call("DELETE") == held
    assert client.call("DELETE") == held
    door.refusal = "worker 7 is stuck"
    assert client.call("POST") == (409, {"error": "worker 7 is stuck"})
    assert client.call("PUT")[0] == 405


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        f"Bearer {TOKEN}x",
        f"Basic {TOKEN}",
        TOKEN,
        "Bearer \u00e9",
        f"Bearer  {TOKEN[:-1]}",
    ],
)
def test_without_the_token_nothing_is_let_go_nor_taken_back(
    client, door, method, authorization
) -> None:
    door.ask(60)
    before = door.granted
    status, body = client.call(method, authorization=authorization)
    assert status == 401
    assert "--web.release-token-file" in body["error"]
    assert door.granted is before


@pytest.mark.parametrize(
    "body",
    [
        b"x",
        b"[]",
        b"120",
        b"null",
        b'{"second": 1}',
        b'{"seconds": 0}',
        b'{"seconds": 601}',
        b'{"seconds": NaN}',
        b'{"seconds": true}',
        b'{"seconds": "60"}',
        b'{"seconds": null}',
        b"\xff",
        b" " * 2000,
    ],
)
def test_what_is_not_understood_lets_nothing_go(client, door, body) -> None:
    status, answer = client.call("POST", body)
    assert status == 400
    assert answer["error"]
    assert door.granted is None


def test_without_a_token_file_there_is_no_such_endpoint(bench) -> None:
    client = Client(bench, None)
    for method in ("GET", "POST", "DELETE"):
        status, body = client.call(method)
        assert status == 404
        assert "--web.release-token-file" in body["error"]


def test_a_token_is_one_long_line(tmp_path) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    assert read_token(path) == TOKEN
    for wrong in ("", "short\n", "two words that are long\n", f"{TOKEN}\n{TOKEN}\n", "\u00e9" * 20):
        path.write_text(wrong)
        with pytest.raises(ConfigError, match="release-token-file"):
            read_token(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(tmp_path / "none")
