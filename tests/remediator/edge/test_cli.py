"""The command line: what it says, what it leaves alone, and its exit status."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remediator.cli import operate
from remediator.store import Draft, Store
from remediator.targets import Target
from tests.remediator.edge.support import (
    GPU,
    SERVICE,
    ExporterStandIn,
    RealServer,
    add_lease,
    alert,
    body,
    command,
    start_serve,
    token_files,
    write_config,
)
from tests.waiting import poll

Cli = Callable[..., tuple[int, str, str]]
HOSTILE = "\x1b[2Jowned\r\nforged\u202e"


def content(folder: Path) -> dict[str, bytes]:
    """Every file but the index of the write-ahead log, which a reader has to make."""
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith("-shm")
    }


def add_run(store: Store, *, sentence: str = "done", state: str = "succeeded") -> int:
    target = Target("gpu", GPU)
    with store.transaction() as tx:
        run = tx.runs.create(
            episode_id=None,
            playbook="throttle-gpu",
            weight=10,
            trigger="GPUTemperatureWarning",
            target=target,
            locks=(target,),
            state="reserved",
            plan=[],
            now=store._clock.now(),
            boot_id="boot",
            expires_at=None,
        )
        tx.runs.end(run.id, state, "verified", sentence, store._clock.now())
        tx.audit(Draft("run_finished", sentence, run=run.id, target=target.key))
    return int(run.id)


def test_check_config_says_what_may_be_done_to_what(cli: Cli, config: Path, tmp_path: Path) -> None:
    code, out, err = cli("check-config", f"--config.file={config}")
    assert (code, err) == (0, "")
    assert "mode auto; allowed: service_restart" in out
    assert GPU in out
    assert "service ollama: ollama at http://127.0.0.1:9, process unit ollama" in out
    restart = "may SIGTERM, then run: /bin/false --no-such-process"
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ")}
    assert "cap_power" in lines["throttle-gpu"]
    assert "refused" not in lines["cool-down"]
    assert "    rung 1: stop_service is refused: allow lacks service_stop" in out.splitlines()
    may = {"cool-down", "recover-hang", "recover-oom", "reset-session"}
    assert out.count(restart) == len(may)
    assert {name for name in lines if "restart_service" in lines[name]} == may
    assert not (tmp_path / "state").exists(), "a check leaves nothing behind"


def test_check_config_says_what_a_server_cannot_do(cli: Cli, tmp_path: Path) -> None:
    ray = {**SERVICE, "name": "llm", "driver": "ray_serve"}
    config = write_config(tmp_path, services=[SERVICE, ray])
    code, out, _ = cli("check-config", f"--config.file={config}")
    assert code == 0
    of_ollama, of_ray = out.partition("service llm")[::2]
    assert re.search(r"^  free memory: +yes +keep_alive 0", of_ollama, re.MULTILINE)
    assert re.search(r"^  progress: +no +Ollama has no metrics", of_ollama, re.MULTILINE)
    assert re.search(r"^  free memory: +no ", of_ray, re.MULTILINE)
    assert re.search(r"^  demand: +no +options.metrics_url is not set", of_ray, re.MULTILINE)
    assert re.search(r"^  stop, start: +yes +by its manager \(process\)", of_ray, re.MULTILINE)


def test_check_config_says_whether_a_servers_log_can_be_read(cli: Cli, tmp_path: Path) -> None:
    nowhere = tmp_path / "no.sock"
    managers: dict[str, Any] = {
        "none": SERVICE["manager"],
        "file": SERVICE["manager"] | {"log_file": str(tmp_path / "log")},
        "engine": {"type": "docker", "container": "llm", "url": f"unix://{nowhere}"},
    }
    services = [{**SERVICE, "name": name, "manager": one} for name, one in managers.items()]
    services.append({**SERVICE, "name": "off", "watch_log": False})
    code, out, _ = cli("check-config", f"--config.file={write_config(tmp_path, services=services)}")
    assert code == 0
    said = [line.strip() for line in out.splitlines() if "its log" in line]
    assert said[0] == "its log is not read: its manager keeps none"
    assert said[1] == f"its log is read: {tmp_path / 'log'}"
    assert said[2].startswith("note: its log (container llm) cannot be read: the engine at")
    assert said[3] == "its log is not read: watch_log is false"


def test_check_config_names_a_card_of_a_service_that_is_not_in_the_inventory(
    cli: Cli, tmp_path: Path
) -> None:
    other = GPU.replace("1", "2")
    for ours, lacks in (([other], True), ([GPU], False), ("auto", False)):
        gpus = {"control": "nvml", "inventory": ours}
        path = write_config(tmp_path, services=[SERVICE], gpus=gpus)
        code, out, _ = cli("check-config", f"--config.file={path}")
        assert (code, f"note: gpus.inventory lacks {GPU}" in out) == (0, lacks)
        assert f"GPUs: {ours if ours == 'auto' else ours[0]}, written by nvml" in out


def test_check_config_says_that_nobody_can_deliver_without_a_token(
    cli: Cli, tmp_path: Path
) -> None:
    code, out, _ = cli("check-config", f"--config.file={write_config(tmp_path, web={})}")
    assert code == 0
    assert "every delivery is refused with 401" in out


def test_plan_says_what_would_be_done_and_does_nothing(
    cli: Cli, config: Path, tmp_path: Path, exporter: ExporterStandIn
) -> None:
    exporter.gpu["temperature"] = 84.0
    flags = (f"--uuid={GPU}", f"--config.file={config}")
    code, out, err = cli("plan", "--alert=GPUTemperatureWarning", *flags)
    assert (code, err) == (0, "")
    assert f"GPUTemperatureWarning -> throttle-gpu on gpu:{GPU}" in out
    assert "decision: run (" in out
    assert f"cap the power of {GPU} to 80 % of its default" in out
    assert "if it were accepted" not in out
    assert out.endswith("nothing was run\n")
    assert exporter.limit_watts == 400.0
    assert not any("PUT" in line for line in exporter.asked)
    assert not (tmp_path / "state").exists(), "a plan makes no database"


def test_plan_of_a_healthy_card_is_refuted(cli: Cli, config: Path) -> None:
    flags = (f"--uuid={GPU}", f"--config.file={config}")
    code, out, _ = cli("plan", "--alert=GPUTemperatureWarning", *flags)
    assert code == 0
    decision, heading, first = out.splitlines()[1:4]
    assert decision.startswith("decision: refute (")
    assert (heading, first[:5]) == ("would be, if it were accepted:", "  1. ")


def test_plan_without_an_exporter_says_that_there_is_no_evidence(cli: Cli, tmp_path: Path) -> None:
    config = write_config(tmp_path, mode="auto")
    flags = (f"--uuid={GPU}", f"--config.file={config}")
    code, out, _ = cli("plan", "--alert=GPUTemperatureWarning", *flags)
    assert code == 0
    assert "decision: defer (" in out
    assert "did not answer" in out


def test_plan_reads_a_delivery_and_leaves_the_database_as_it_is(
    cli: Cli, config: Path, tmp_path: Path, store: Store, exporter: ExporterStandIn
) -> None:
    exporter.gpu["temperature"] = 84.0
    add_run(store)
    delivery = tmp_path / "delivery.json"
    delivery.write_bytes(
        body(alert(), alert(uuid="GPU-other"), alert("Unknown"), alert(HOSTILE, uuid=HOSTILE))
    )
    before = content(tmp_path / "state")
    code, out, err = cli("plan", f"--file={delivery}", f"--config.file={config}")
    assert (code, err) == (0, "")
    assert content(tmp_path / "state") == before
    decisions = [
        line.split("(")[1].split(")")[0] for line in out.splitlines() if "decision:" in line
    ]
    assert decisions[1:] == ["not_in_inventory", "no_playbook", "no_playbook"]
    assert "\x1b" not in out
    assert "\nforged" not in out


def test_plan_reads_standard_input(config: Path) -> None:
    done = command("plan", "--file=-", f"--config.file={config}", stdin=body(alert("Unknown")))
    assert (done.returncode, b"notify (no_playbook)" in done.stdout) == (0, True)


@pytest.mark.parametrize(("data", "named"), [(b"{", "not JSON"), (None, "cannot read")])
def test_plan_of_no_delivery_is_one_line(
    cli: Cli, config: Path, tmp_path: Path, data: bytes | None, named: str
) -> None:
    delivery = tmp_path / "delivery.json"
    if data is not None:
        delivery.write_bytes(data)
    code, _, err = cli("plan", f"--file={delivery}", f"--config.file={config}")
    assert (code, err.count("\n"), named in err) == (1, 1, True)


@pytest.mark.parametrize(
    "arguments", [("runs",), ("audit", "verify"), ("audit", "tail"), ("check",)]
)
def test_without_a_database_it_is_said(cli: Cli, config: Path, arguments: tuple[str, ...]) -> None:
    code, _, err = cli(*arguments, f"--config.file={config}")
    assert (code, err.count("\n"), "has `serve` ever run?" in err) == (1, 1, True)


def test_runs_are_lines_that_cannot_be_forged(cli: Cli, config: Path, store: Store) -> None:
    add_run(store, sentence="first")
    add_run(store, sentence=HOSTILE, state="failed")
    code, out, _ = cli("runs", f"--config.file={config}")
    lines = out.splitlines()
    assert (code, len(lines)) == (0, 2)
    assert "run 2" in lines[0]
    assert "failed" in lines[0]
    assert "\x1b" not in out
    _, out, _ = cli("runs", "--limit=1", f"--config.file={config}")
    assert len(out.splitlines()) == 1


def test_one_run_with_its_story(cli: Cli, config: Path, store: Store) -> None:
    add_run(store, sentence=HOSTILE)
    code, out, _ = cli("runs", "1", f"--config.file={config}")
    document, end = json.JSONDecoder().raw_decode(out)
    assert code == 0
    assert (document["id"], document["target"], document["sentence"]) == (1, f"gpu:{GPU}", HOSTILE)
    assert "run_finished" in out[end:]
    assert "\x1b" not in out
    code, _, err = cli("runs", "7", f"--config.file={config}")
    assert (code, err) == (1, "there is no run 7\n")


@pytest.mark.parametrize("number", ["0", "-1", "x", "1.5", "9" * 30, "²"])
def test_a_number_that_cannot_be_is_a_wrong_call(
    cli: Cli, config: Path, number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (
        ("runs", number),
        ("audit", "tail", f"--limit={number}"),
        ("approve", number),
    ):
        with pytest.raises(SystemExit) as caught:
            cli(*arguments, f"--config.file={config}")
        assert caught.value.code == 2
        assert "Traceback" not in capsys.readouterr().err


def test_check_counts_what_is_wrong(
    cli: Cli, config: Path, store: Store, exporter: ExporterStandIn
) -> None:
    exporter.gpu["temperature"] = None
    code, out, _ = cli("check", f"--config.file={config}")
    assert code == 2, "the service refuses connections"
    assert "service ollama: refused" in out
    assert f"({GPU}): healthy, ?" in out, "what could not be read is not zero"
    assert "recoveries: none under way" in out


def test_check_of_a_good_machine_is_0_and_of_an_open_undo_1(
    cli: Cli, tmp_path: Path, store: Store, exporter: ExporterStandIn
) -> None:
    config = write_config(tmp_path, exporter={"url": exporter.url})
    assert cli("check", f"--config.file={config}")[0] == 0
    add_lease(store)
    code, out, _ = cli("check", f"--config.file={config}")
    assert code == 1
    assert "capped at 320 W, will be restored to 400 W" in out


@pytest.mark.parametrize(
    "arguments", [("check",), ("plan", "--alert=LLMServiceDown", "--service=ollama")]
)
def test_to_find_a_process_that_nobody_remembered_is_not_to_adopt_it(
    cli: Cli, tmp_path: Path, store: Store, exporter: ExporterStandIn, arguments: tuple[str, ...]
) -> None:
    argv = [sys.executable, "-c", "import time; time.sleep(60)", str(tmp_path)]
    with subprocess.Popen(argv) as process:
        try:
            service = {**SERVICE, "manager": {"type": "process", "command": argv}}
            config = write_config(tmp_path, services=[service], exporter={"url": exporter.url})
            before = content(tmp_path / "state")
            _, out, err = cli(*arguments, f"--config.file={config}")
            assert err == ""
            assert str(process.pid) in out or "LLMServiceDown -> recover-oom" in out
            assert content(tmp_path / "state") == before
        finally:
            process.terminate()


def test_undo_without_a_server_restores_what_was_capped(
    cli: Cli, config: Path, store: Store, exporter: ExporterStandIn
) -> None:
    add_lease(store)
    exporter.limit_watts = 320.0
    code, out, _ = cli("undo", "--all", f"--config.file={config}")
    assert (code, out) == (0, f"{GPU}: restored\n")
    assert exporter.limit_watts == 400.0
    with store.reading() as tx:
        assert tx.leases.open_all() == ()
        assert [r.record["event"] for r in tx.audit_records()][-1] == "undone"
        assert tx.verify_audit().broken_at is None
    assert cli("undo", "--all", f"--config.file={config}")[:2] == (0, "nothing to undo\n")


@pytest.mark.parametrize(
    "what", [{"temperature": 84.0}, {"temperature": None}, {"age_seconds": 60.0}, {"up": False}]
)
def test_undo_without_cool_and_fresh_evidence_restores_nothing(
    cli: Cli,
    config: Path,
    store: Store,
    exporter: ExporterStandIn,
    monkeypatch: pytest.MonkeyPatch,
    what: dict[str, Any],
) -> None:
    monkeypatch.setattr(operate, "_UNDO_SECONDS", 0.05)
    add_lease(store)
    exporter.limit_watts = 320.0
    exporter.gpu.update(what)
    code, out, _ = cli("undo", "--all", f"--config.file={config}")
    assert (code, "not restored" in out) == (1, True)
    assert exporter.limit_watts == 320.0
    with store.reading() as tx:
        assert len(tx.leases.open_all()) == 1


def test_undo_leaves_what_somebody_else_set(
    cli: Cli, config: Path, store: Store, exporter: ExporterStandIn
) -> None:
    add_lease(store)
    exporter.limit_watts = 250.0
    cli("undo", GPU, f"--config.file={config}")
    assert exporter.limit_watts == 250.0
    with store.reading() as tx:
        assert tx.leases.open_all() == ()


@pytest.mark.parametrize("arguments", [(), (GPU, "--all")])
def test_undo_never_guesses_which_card(
    cli: Cli, config: Path, store: Store, arguments: tuple[str, ...]
) -> None:
    code, _, err = cli("undo", *arguments, f"--config.file={config}")
    assert (code, "say which card" in err) == (2, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("pause",),
        ("resume",),
        ("approve", "1"),
        ("acknowledge", "1"),
        ("hold", "ollama"),
        ("release", "ollama"),
    ],
)
def test_without_a_server_nothing_is_operated(
    cli: Cli, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    web = {"listen_address": "127.0.0.1:9", "tokens": token_files(tmp_path)}
    code, _, err = cli(*arguments, f"--config.file={write_config(tmp_path, web=web)}")
    assert (code, "no gpu-remediator listens on 127.0.0.1:9" in err) == (1, True)


def test_without_an_operate_token_nobody_may(cli: Cli, tmp_path: Path) -> None:
    code, _, err = cli("pause", f"--config.file={write_config(tmp_path, web={})}")
    assert (code, "web.tokens.operate is not set" in err) == (1, True)


def test_a_running_server_is_operated_from_here(cli: Cli, server: RealServer) -> None:
    flag = f"--config.file={server.config}"
    assert cli("pause", "new cooler", flag)[0] == 0
    assert b"remediator_paused 1.0" in server.call("GET", "/metrics").body
    assert cli("resume", flag)[0] == 0
    assert b"remediator_paused 0.0" in server.call("GET", "/metrics").body
    assert cli("undo", "--all", flag)[:2] == (0, "nothing to undo\n")
    code, _, err = cli("hold", "no-such-service", flag)
    assert (code, "there is no service no-such-service" in err) == (1, True)
    code, _, err = cli("approve", "7", flag)
    assert (code, "there is no run 7" in err) == (1, True)
    assert cli("audit", "verify", flag)[0] == 0
    events = [line.split()[2] for line in cli("audit", "tail", flag)[1].splitlines()]
    assert "resumed" in events


def test_a_service_is_held_and_released_from_here(cli: Cli, tmp_path: Path) -> None:
    server = RealServer(tmp_path, services=[SERVICE])
    held = b'llm_service_held{llm_service="ollama"}'
    try:
        flag = f"--config.file={server.config}"
        code, out, _ = cli("hold", "ollama", "new model", flag)
        assert (code, "`gpu-remediator release ollama`" in out) == (0, True)
        assert held + b" 1.0" in server.call("GET", "/metrics").body
        code, out, _ = cli("release", "ollama", flag)
        assert (code, out) == (0, "ollama is released: it should be up again\n")
        assert held + b" 0.0" in server.call("GET", "/metrics").body
        assert cli("release", "ollama", flag)[:2] == (0, "ollama is not held\n")
    finally:
        server.stop()


def test_the_wrong_operate_token_is_said(cli: Cli, server: RealServer, tmp_path: Path) -> None:
    web = {"listen_address": f"127.0.0.1:{server.port}", "tokens": token_files(tmp_path)}
    config = write_config(tmp_path, web=web)
    (tmp_path / "operate.token").write_text("another-token-that-is-long")
    code, _, err = cli("pause", f"--config.file={config}")
    assert (code, "bearer token of the role operate" in err) == (1, True)
    assert "another-token" not in err


def test_a_port_in_use_is_one_line_and_nothing_is_left_running(
    server: RealServer, tmp_path: Path
) -> None:
    web = {"listen_address": f"127.0.0.1:{server.port}", "tokens": token_files(tmp_path)}
    done = command("serve", f"--config.file={write_config(tmp_path, web=web)}")
    assert done.returncode == 1
    assert done.stderr.decode().count("\n") == 1
    assert f":{server.port} is in use" in done.stderr.decode()
    assert "--web.listen-address" in done.stderr.decode()


def test_a_second_server_on_the_same_state_is_refused(server: RealServer) -> None:
    before = server.rows("SELECT count(*) FROM audit")
    done = command("serve", f"--config.file={server.config}", "--web.listen-address=127.0.0.1:0")
    assert done.returncode == 1
    assert done.stderr.decode().count("\n") == 1
    assert "another gpu-remediator uses" in done.stderr.decode()
    assert server.rows("SELECT count(*) FROM audit") == before
    assert server.call("GET", "/-/ready").status == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_asked_for_end_is_clean(tmp_path: Path, number: signal.Signals) -> None:
    running = RealServer(tmp_path)
    try:
        assert running.post(body(alert())).status == 202
        running.process.send_signal(number)
        assert running.process.wait(20) == 0
        said = running.log.read_text()
        assert "Traceback" not in said
        assert "stopping" in said
        assert running.rows("SELECT count(*) FROM episodes") == [(1,)]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", running.port), timeout=5)
    finally:
        running.stop()


def test_what_was_answered_202_survives_a_kill(tmp_path: Path) -> None:
    running = RealServer(tmp_path)
    try:
        for number in range(5):
            assert running.post(body(alert(uuid=f"GPU-{number}"))).status == 202
        running.process.kill()
        running.process.wait()
        assert running.rows("SELECT count(*) FROM episodes") == [(5,)]
        assert command("audit", "verify", f"--config.file={running.config}").returncode == 0
        with (tmp_path / "again.txt").open("wb") as log:
            again = start_serve(running.config, stderr=log)
        try:
            poll(
                lambda: (
                    running.rows("SELECT count(*) FROM audit WHERE record LIKE '%\"started\"%'")
                    == [(2,)]
                ),
                "the second start is audited",
            )
        finally:
            again.send_signal(signal.SIGTERM)
            assert again.wait(20) == 0
    finally:
        running.stop()


def test_a_reader_that_has_seen_enough_is_no_failure(server: RealServer) -> None:
    argv = [sys.executable, "-m", "remediator", "audit", "export", f"--config.file={server.config}"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        err = process.stderr.read()
        assert process.wait(20) == 0
    assert b"Traceback" not in err


def test_an_unknown_command_is_a_wrong_call(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli("reboot")
    assert caught.value.code == 2
    assert "check-config" in capsys.readouterr().err
