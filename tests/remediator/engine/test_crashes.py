"""SIGKILL at the worst moments, all of them at once, twice: everything ends well, nothing is done twice.

The remediator's engine runs as a real process against the simulated GPUs' own write log. The first
kill finds one card between intent and write, one between write and result, one being verified, one
capped, and a service between its start and the result. The second finds an undo between its write
and its record. The third process brings everything to its end.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from remediator.clock import SystemClock
from remediator.config.secrets import read_or_create_key
from remediator.errors import StorageError
from remediator.store import Run, Store
from tests.remediator.engine.fakes import Card
from tests.remediator.engine.processes import (
    PYTHON,
    call,
    child,
    end,
    free_port,
    simulated_gpus,
)
from tests.waiting import poll

ROOT = Path(__file__).parents[3]
CHILD = str(Path(__file__).parent / "crash_child.py")
POINTS = ("before the write", "after the write", "while verifying", "while capped")
WARNING = "GPUTemperatureWarning"
# Three lives, one after the other, are told before the first test.
pytestmark = pytest.mark.timeout(330)


class Exporter:
    """The exporter's JSON over cards whose power limit is the simulator's."""

    def __init__(self, simulator: str, cards: dict[str, Card]) -> None:
        outer = self
        self.cards = cards
        self._simulator = simulator

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                raw = json.dumps(outer.answer(self.path)).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def answer(self, path: str) -> Any:
        for one in call(self._simulator + "/api/v1/gpus")["gpus"]:
            self.cards[one["uuid"]].watts = one["power_limit_watts"]
        if path == "/api/gpus":
            return {"available": True, "gpus": [self._read(card) for card in self.cards.values()]}
        return {"available": True, "gpu": self._read(self.cards[path.rpartition("/")[2]])}

    @staticmethod
    def _read(card: Card) -> Any:
        return {**card.reading(), "timestamp": SystemClock().now() - card.age}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Story:
    """Three lives of one remediator over one state directory."""

    def __init__(self, folder: Path, simulator: str) -> None:
        self.folder = folder
        self.simulator = simulator
        uuids = [one["uuid"] for one in call(simulator + "/api/v1/gpus")["gpus"]]
        self.cards = {uuid: Card(uuid) for uuid in uuids}
        self.uuid = dict(zip(POINTS, uuids, strict=True))
        self.exporter = Exporter(simulator, self.cards)
        self.command = self._service_command(uuids[0])
        self.config = folder / "config.json"
        self.config.write_text(json.dumps(self._config()))
        (folder / "inbox").mkdir()
        self._life = 0

    def _service_command(self, uuid: str) -> list[str]:
        self.port = free_port()
        argv = [PYTHON, "-m", "simulator", "ollama", "--listen", f"127.0.0.1:{self.port}"]
        return [*argv, "--gpu-server", self.simulator, "--gpu", uuid, "--model", "m=1GB"]

    def _config(self) -> dict[str, Any]:
        restart = {
            "steps": [{"action": "restart_service"}, {"action": "wait_ready"}],
            "verify": {"signal": "service_down"},
        }
        return {
            "state_dir": str(self.folder / "state"),
            "mode": "auto",
            "allow": ["service_restart"],
            "exporter": {"url": self.exporter.url},
            "gpus": {"control": "simulated", "simulator_url": self.simulator},
            "services": [
                {
                    "name": "ollama",
                    "driver": "ollama",
                    "endpoint": f"http://127.0.0.1:{self.port}",
                    "manager": {
                        "type": "process",
                        "command": self.command,
                        "working_directory": str(ROOT),
                    },
                }
            ],
            "playbooks": {"recover-oom": {"rungs": [restart]}},
            "timing": {"hold_down": "1s"},
        }

    def tell(self) -> None:
        for point in POINTS:
            self.cards[self.uuid[point]].heat_by_power(full=84.0, capped=76.0)
        self.cards[self.uuid["while verifying"]].celsius = 84.0
        before, after = self.uuid["before the write"], self.uuid["after the write"]
        gates = {f"{before} 320000": "before", f"{after} 320000": "after", "start ollama": "after"}
        self._live(gates, self._all_at_their_points)
        # The others stay as hot as their power makes them: a cap that was cut off is still due.
        self.cards[self.uuid["while verifying"]].celsius = 70.0
        # The undo of whichever card comes first is cut off after its write.
        self._live({f"{uuid} 400000": "after" for uuid in self.cards}, self._an_undo_is_written)
        for card in self.cards.values():
            card.celsius = 70.0
        self._live({}, self._over)

    def _live(self, gates: dict[str, str], until: Callable[[], bool]) -> None:
        self._life += 1
        for mark in self.folder.glob("reached *"):
            mark.unlink()
        (self.folder / "gates.json").write_text(json.dumps(gates))
        self._fire()
        log = self.folder / f"life{self._life}.log"
        with log.open("wb") as sink:
            argv = [PYTHON, CHILD, str(self.config), str(self.folder / "gates.json")]
            with child(argv, env={"PYTHONPATH": str(ROOT)}, stderr=sink) as process:
                poll(lambda: process.poll() is not None or until(), log.read_text, seconds=100)
                assert process.poll() is None, log.read_text()
                process.kill()

    def _fire(self) -> None:
        """The same alerts in every life, as Alertmanager repeats them."""
        labels = [{"alertname": WARNING, "uuid": uuid} for uuid in self.cards]
        labels.append({"alertname": "LLMServiceDown", "llm_service": "ollama"})
        alerts = [
            {
                "status": "firing",
                "labels": one,
                "annotations": {},
                "startsAt": self._started_at(),
                "endsAt": "0001-01-01T00:00:00Z",
                "fingerprint": f"{number:016x}",
            }
            for number, one in enumerate(labels)
        ]
        payload = {"version": "4", "receiver": "remediator", "groupKey": "", "alerts": alerts}
        fresh = self.folder / "inbox" / f"{self._life}.tmp"
        fresh.write_text(json.dumps(payload))
        fresh.rename(fresh.with_suffix(".json"))

    def _started_at(self) -> str:
        born = psutil.Process().create_time()
        return datetime.fromtimestamp(born, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def reached(self) -> set[str]:
        return {mark.name.removeprefix("reached ") for mark in self.folder.glob("reached *")}

    def _all_at_their_points(self) -> bool:
        states = {run.target.name: run.state for run in self.runs()}
        return (
            len(self.reached()) == 3
            and states.get(self.uuid["while verifying"]) == "verifying"
            and states.get(self.uuid["while capped"]) == "succeeded"
        )

    def _an_undo_is_written(self) -> bool:
        runs = self.runs()
        return bool(self.reached()) and all(run.state == "succeeded" for run in runs)

    def _over(self) -> bool:
        with self.store() as store, store.reading() as tx:
            return not tx.leases.open_all()

    def store(self) -> ReadOnly:
        return ReadOnly(self.folder / "state")

    def runs(self) -> list[Run]:
        try:
            with self.store() as store, store.reading() as tx:
                return list(tx.runs.latest(100))
        except StorageError:
            return []  # the first life has not made its tables yet

    def run(self, target: str) -> Run:
        (one,) = (run for run in self.runs() if run.target.name == target)
        return one

    def events(self, run: int) -> list[str]:
        with self.store() as store, store.reading() as tx:
            return [record.record["event"] for record in tx.audit_records(run=run)]

    def watts(self, uuid: str) -> list[float]:
        writes = call(self.simulator + "/api/v1/writes")["writes"]
        return [one["watts"] for one in writes if one["uuid"] == uuid]

    def services(self) -> list[psutil.Process]:
        return [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == self.command]

    def close(self) -> None:
        self.exporter.close()
        for process in self.services():
            end(process.pid)


class ReadOnly:
    """The database as a second process sees it: only what is committed."""

    def __init__(self, state: Path) -> None:
        key = read_or_create_key(state / "audit.key")
        self._store = Store(state, key, SystemClock(), read_only=True)

    def __enter__(self) -> Store:
        return self._store

    def __exit__(self, *_: object) -> None:
        self._store.close()


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    with simulated_gpus("--gpus", str(len(POINTS))) as simulator:
        one = Story(tmp_path_factory.mktemp("crash"), simulator)
        try:
            one.tell()
            yield one
        finally:
            one.close()


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_point_a_cap_is_written_once_and_restored_once(
    story: Story, point: str
) -> None:
    uuid = story.uuid[point]
    assert story.watts(uuid) == [320.0, 400.0]
    assert story.run(uuid).state == "succeeded"
    assert story.events(story.run(uuid).id).count("run_finished") == 1


@pytest.mark.parametrize("point", POINTS)
def test_only_a_step_that_was_cut_off_is_resumed(story: Story, point: str) -> None:
    events = story.events(story.run(story.uuid[point]).id)
    assert events.count("step_started") == 1
    assert events.count("step_finished") == 1
    assert events.count("step_resumed") == int(point.endswith("the write"))


def test_a_service_whose_start_was_cut_off_is_started_once(story: Story) -> None:
    assert len(story.services()) == 1
    assert story.run("ollama").state == "succeeded"
    with story.store() as store, store.reading() as tx:
        assert tx.inventory.service("ollama").restarts == 1


def test_an_undo_that_was_cut_off_is_recorded_and_not_repeated(story: Story) -> None:
    with story.store() as store, store.reading() as tx:
        undone = [r.record for r in tx.audit_records(limit=10_000) if r.record["event"] == "undone"]
    reasons = sorted(record["reason"] for record in undone)
    assert reasons == ["already_original", "restored", "restored", "restored"]


def test_repeats_of_the_alerts_after_each_crash_began_nothing_new(story: Story) -> None:
    assert len(story.runs()) == len(POINTS) + 1


def test_the_audit_of_three_lives_is_one_chain(story: Story) -> None:
    with story.store() as store, store.reading() as tx:
        verdict = tx.verify_audit()
        started = [r for r in tx.audit_records(limit=10_000) if r.record["event"] == "started"]
    assert verdict.broken_at is None
    assert len(started) == 3
