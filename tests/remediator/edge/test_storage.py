"""A disk that is full or read-only: 503, nothing kept, and all is well again when it is."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from remediator.app import open_store
from remediator.config import load
from remediator.errors import StorageError
from remediator.store import Draft, Store
from remediator.store.schema import MIGRATIONS
from remediator.store.state_lock import StateLock
from tests.remediator.edge.support import (
    KEY,
    FakeClock,
    InProcess,
    RealServer,
    alert,
    body,
    command,
    in_process,
    write_config,
)
from tests.waiting import poll


def metric(server: RealServer, name: str) -> str:
    lines = server.call("GET", "/metrics").body.decode().splitlines()
    return next(line.rpartition(" ")[2] for line in lines if line.startswith(name + " "))


def episodes(server: RealServer) -> list[tuple[object, ...]]:
    return server.rows("SELECT fingerprint, heartbeats FROM episodes ORDER BY id")


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RealServer]:
    running = RealServer(tmp_path)
    yield running
    running.stop()


def test_a_full_disk_is_503_and_nothing_is_kept_until_it_is_not_full(
    own_server: RealServer,
) -> None:
    server = own_server
    first, second = alert(uuid="GPU-first"), alert(uuid="GPU-second")
    assert server.post(body(first)).status == 202
    before = episodes(server)

    server.limit_file_size(server.database.with_name("remediator.db-wal").stat().st_size)
    replies = [server.post(body(second)) for _ in range(3)]
    assert [reply.status for reply in replies] == [503, 503, 503]
    assert "send it again" in replies[0].error
    assert episodes(server) == before
    assert metric(server, "remediator_storage_failing") == "1.0"
    assert server.call("GET", "/-/ready").status == 503
    assert server.call("GET", "/-/healthy").status == 200

    server.limit_file_size(-1)
    assert server.post(body(second)).status == 202
    poll(lambda: metric(server, "remediator_storage_failing") == "0.0", "storage works again")
    assert episodes(server) == [*before, (second["fingerprint"], 0)]
    assert server.call("GET", "/-/ready").status == 200
    audit = command("audit", "verify", f"--config.file={server.config}")
    assert audit.returncode == 0, audit.stdout


def test_a_full_database_is_503_and_nothing_of_the_batch_is_kept(remediator: InProcess) -> None:
    assert remediator.deliver(alert(uuid="GPU-first")).status_code == 202
    database = remediator.store._db
    pages = database.execute("PRAGMA page_count").fetchone()[0]
    database.execute(f"PRAGMA max_page_count = {pages}")
    many = [alert(uuid=f"GPU-{n}", note="x" * 1000) for n in range(60)]
    reply = remediator.deliver(*many)
    assert reply.status_code == 503
    assert "full" in reply.json["error"]
    assert remediator.store.failing
    with remediator.store.reading() as tx:
        assert len(tx.episodes.open_all()) == 1
        assert tx.audit_count() == 1

    database.execute(f"PRAGMA max_page_count = {pages + 1000}")
    assert remediator.deliver(*many).json == {"accepted": 60, "episodes": 60}
    assert not remediator.store.failing
    with remediator.store.reading() as tx:
        assert tx.verify_audit().broken_at is None


def test_what_was_counted_is_only_what_was_stored(remediator: InProcess) -> None:
    remediator.store._db.execute("PRAGMA query_only = ON")
    assert remediator.deliver(alert()).status_code == 503
    assert remediator.remediator.counters.get("alerts") == {}
    assert remediator.remediator.intake.last_delivery is None
    remediator.store._db.execute("PRAGMA query_only = OFF")
    assert remediator.deliver(alert()).status_code == 202
    assert remediator.remediator.intake.last_delivery == remediator.clock.now()


def test_a_database_that_another_process_holds_is_503(remediator: InProcess) -> None:
    remediator.store._db.execute("PRAGMA busy_timeout = 20")
    with contextlib.closing(sqlite3.connect(remediator.store.path)) as other:
        other.execute("BEGIN IMMEDIATE")
        reply = remediator.deliver(alert())
        assert (reply.status_code, "locked" in reply.json["error"]) == (503, True)
        other.execute("ROLLBACK")
    assert remediator.deliver(alert()).status_code == 202


def test_an_error_within_a_transaction_leaves_nothing(remediator: InProcess) -> None:
    def broken() -> None:
        with remediator.store.transaction() as tx:
            tx.audit(Draft("never", "never"))
            tx.set_meta("never", "1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    with remediator.store.reading() as tx:
        assert (tx.audit_count(), tx.get_meta("never")) == (0, None)


def test_the_database_is_durable_before_it_is_fast(tmp_path: Path) -> None:
    config = load(write_config(tmp_path))
    with contextlib.closing(open_store(config, FakeClock())) as store:
        database = store._db
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert database.execute("PRAGMA synchronous").fetchone() == (2,), "FULL"
        assert store.path.stat().st_mode & 0o077 == 0


def test_a_database_of_a_newer_version_is_not_touched(tmp_path: Path) -> None:
    Store(tmp_path, KEY, FakeClock()).close()
    with contextlib.closing(sqlite3.connect(tmp_path / "remediator.db")) as raw:
        raw.execute("PRAGMA user_version = 99")
    with pytest.raises(StorageError, match=r"99.*newer"):
        Store(tmp_path, KEY, FakeClock())


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """The state directory of the version before, with a run and a lease that are open."""
    with contextlib.closing(sqlite3.connect(tmp_path / "remediator.db")) as raw:
        for script in MIGRATIONS[:3]:
            raw.executescript(script)
        raw.execute("PRAGMA user_version = 3")
        raw.execute(
            "INSERT INTO runs (playbook, weight, destructive, safe, trigger, target_kind, target_name, "
            "state, plan, created_at, updated_at, boot_id) "
            "VALUES ('throttle-gpu', 10, 0, 0, 'x', 'gpu', 'GPU-1', 'running', '[]', 1, 1, 'b')"
        )
        raw.execute(
            "INSERT INTO leases (uuid, knob, control, original, value, written, run_id, created_at, "
            "updated_at, state) VALUES ('GPU-1', 'power_limit', 'nvml', 1, 2, '[2]', 1, 1, 1, 'active')"
        )
        raw.commit()
    return tmp_path


def test_a_database_of_the_version_before_goes_on_with_what_is_open(older: Path) -> None:
    with contextlib.closing(Store(older, KEY, FakeClock())) as store, store.reading() as tx:
        (run,), (lease,) = tx.runs.active(), tx.leases.open_all()
        assert (run.created_monotonic, run.boot_id) == (None, "b")
        assert (run.ended_monotonic, run.ended_boot_id) == (None, "")
        assert (lease.created_monotonic, lease.boot_id) == (None, "")


def test_who_only_looks_changes_no_older_database_and_says_what_does(older: Path) -> None:
    before = (older / "remediator.db").read_bytes()
    with pytest.raises(StorageError, match="gpu-remediator serve of this version"):
        Store(older, KEY, FakeClock(), read_only=True)
    assert (older / "remediator.db").read_bytes() == before


def test_a_file_that_is_no_database_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "remediator.db").write_text("this is not a database" * 100)
    with pytest.raises(StorageError, match="not a database"):
        Store(tmp_path, KEY, FakeClock())


def _one_line(done: object) -> str:
    said = done.stderr.decode()  # type: ignore[attr-defined]
    lines = [line for line in said.splitlines() if line.startswith("gpu-remediator: ")]
    assert "Traceback" not in said
    assert len(lines) == 1, said
    return lines[0]


def test_a_read_only_state_directory_is_a_clear_start_error(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    state = tmp_path / "state"
    state.mkdir(mode=0o500)
    done = command("serve", f"--config.file={config}", obey_modes=True)
    assert done.returncode == 1
    assert "state directory" in _one_line(done)
    assert str(state) in _one_line(done)
    assert list(state.iterdir()) == []


def test_a_read_only_database_is_a_clear_start_error(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    state = tmp_path / "state"
    Store(state, KEY, FakeClock()).close()
    (state / "lock").touch(mode=0o600)
    (state / "audit.key").write_bytes(KEY)
    (state / "remediator.db").chmod(0o400)
    state.chmod(0o500)
    done = command("serve", f"--config.file={config}", obey_modes=True)
    assert done.returncode == 1
    assert str(state / "remediator.db") in _one_line(done)


@pytest.mark.parametrize("arguments", [("runs",), ("plan", "--alert=GPUHang"), ("serve",)])
def test_a_state_directory_of_somebody_else_is_a_clear_error(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    config = write_config(tmp_path)
    Store(tmp_path / "state", KEY, FakeClock()).close()
    (tmp_path / "state").chmod(0o000)
    done = command(*arguments, f"--config.file={config}", obey_modes=True)
    assert done.returncode == 1
    assert "Permission denied" in _one_line(done)


def test_a_secret_that_this_user_may_not_read_is_a_clear_start_error(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    (tmp_path / "webhook.token").chmod(0o000)
    done = command("serve", f"--config.file={config}", obey_modes=True)
    assert done.returncode == 1
    assert "webhook.token: Permission denied" in _one_line(done)
    assert not (tmp_path / "state").exists()


def test_a_state_directory_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "what? #1 100% é"
    Store(folder, KEY, FakeClock()).close()
    assert (folder / "remediator.db").exists()


def test_the_log_tells_what_the_audit_keeps_and_nothing_that_was_not_committed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path, KEY, FakeClock())
    caplog.set_level("INFO", "remediator.store")
    with store.transaction() as tx:
        tx.audit(Draft("decision", "it acts", alertname="GPUHang", target="gpu:GPU-1"))
        tx.audit(Draft("run_finished", "it broke", severity="critical", run=7))
    with pytest.raises(ZeroDivisionError), store.transaction() as tx:  # noqa: PT012
        tx.audit(Draft("decision", "never committed"))
        raise ZeroDivisionError
    store.close()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "decision alertname=GPUHang target=gpu:GPU-1: it acts"),
        ("WARNING", "run_finished run=7: it broke"),
    ]


def test_a_crowd_that_asks_whether_it_is_ready_costs_one_write_a_second(
    remediator: InProcess,
) -> None:
    client = remediator.client()

    def ready() -> int:
        return client.get("/-/ready").status_code

    assert ready() == 200
    before = remediator.store._db.total_changes
    assert [ready() for _ in range(20)] == [200] * 20
    assert remediator.store._db.total_changes == before
    remediator.clock.seconds += 2
    assert ready() == 200
    assert remediator.store._db.total_changes > before
    # Whatever was found a moment ago: a store that fails is not ready, nor is who shuts down.
    remediator.store.failing = True
    before = remediator.store._db.total_changes
    assert ready() == 200
    assert remediator.store._db.total_changes > before
    remediator.remediator.world.stopping.set()
    assert ready() == 503


def test_a_heat_alert_that_is_answered_503_reaches_the_emergency_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with in_process(tmp_path) as running:
        said = []
        worker = running.remediator.worker
        monkeypatch.setattr(worker.emergency, "_told", {})
        real = type(running.store).transaction

        def fails(*_: object) -> object:
            running.store.failing = True
            raise StorageError("the disk is full")

        monkeypatch.setattr(type(running.store), "transaction", fails)
        for name in ("GPUTemperatureShutdown", "LLMServiceDown"):
            reply = running.deliver(alert(name, uuid="GPU-1"))
            said.append(reply.status_code)
        monkeypatch.setattr(type(running.store), "transaction", real)
        told = [episode.alertname for _, episode in worker.emergency._told.values()]
        assert said == [503, 503]
        assert told == ["GPUTemperatureShutdown"], "only a stop for heat does not wait"


def test_a_state_directory_that_is_none_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(StorageError, match=r"cannot use the state directory .*state.*state_dir"):
        StateLock(tmp_path / "state").acquire()
