"""The `docker` manager over a stand-in engine that can refuse, be silent and lie."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remediator import managers
from remediator.clock import SystemClock
from remediator.errors import ConfigError, ManagerError
from remediator.managers import ProcessIdentity
from tests.remediator.drivers.standin_engine import Container, Engine, serve

NAME = "vllm"
STARTED = f"POST /containers/{1:064x}/start"
STOPPED = f"POST /containers/{1:064x}/stop?t=45"


def make(url: str, **options: Any) -> managers.ProcessManager:
    context = managers.Context(SystemClock(), dict, lambda identity: None)
    raw = {"type": "docker", "container": NAME, "url": url, "timeout": "30s"}
    return managers.create(raw | options, "vllm", context)


@pytest.fixture
def url() -> Iterator[str]:
    """A socket in a folder with a short path, as Unix sockets need."""
    with tempfile.TemporaryDirectory() as folder:
        yield f"unix://{folder}/d.sock"


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = Engine()
    engine.containers.append(Container(NAME))
    with serve(engine, Path(url.removeprefix("unix://"))):
        yield engine


@pytest.fixture
def container(engine: Engine) -> Container:
    return engine.containers[0]


@pytest.fixture
def manager(engine: Engine, url: str) -> managers.ProcessManager:
    return make(url)


def test_starts_once_and_stops_by_the_containers_id(
    engine: Engine, manager: managers.ProcessManager
) -> None:
    assert manager.status() == managers.ProcessStatus("stopped", None, "created")
    identity = manager.start(5)
    assert manager.status() == managers.ProcessStatus("running", identity, "running")
    assert manager.start(5) == identity
    manager.stop(identity, 5)
    assert manager.status().state == "stopped"
    manager.stop(identity, 5)
    assert engine.writes == [STARTED, STOPPED]


def test_a_stop_meant_for_the_old_process_spares_the_new_one(
    engine: Engine, container: Container, manager: managers.ProcessManager
) -> None:
    old = manager.start(5)
    container.end(1)
    new = manager.start(5)
    manager.stop(old, 5)
    manager.stop(ProcessIdentity(new.pid, new.started_at - 60), 5)
    assert manager.status().identity == new
    assert engine.writes == [STARTED, STARTED]


def test_a_container_made_anew_under_the_same_name_is_not_hit(
    engine: Engine, manager: managers.ProcessManager
) -> None:
    identity = manager.start(5)
    anew = Container(NAME, number=2)
    anew.up()
    # Between the look and the request somebody runs `compose up` again.
    engine.before_write = lambda: engine.containers.__setitem__(0, anew)
    manager.stop(identity, 5)
    assert anew.state["Running"]
    assert manager.status().identity is not None


def test_what_the_engine_is_about_to_start_again_is_starting_and_spared(
    engine: Engine, container: Container, manager: managers.ProcessManager
) -> None:
    old = manager.start(5)
    container.put(Status="restarting", Restarting=True, Pid=0, ExitCode=1)
    container.retries = 2
    status = manager.status()
    assert (status.state, status.identity) == ("starting", None)
    assert "restarted 2 times by the engine" in status.detail
    manager.stop(old, 5)
    with pytest.raises(ManagerError, match=r"did not start within 0.2 s: restarting"):
        manager.start(0.2)
    assert engine.writes == [STARTED]
    manager.stop(None, 5)
    assert engine.writes == [STARTED, STOPPED]


ALWAYS = {"Name": "always", "MaximumRetryCount": 0}
UNLESS = {"Name": "unless-stopped", "MaximumRetryCount": 0}
THRICE = {"Name": "on-failure", "MaximumRetryCount": 3}
ONCE = {"Name": "on-failure", "MaximumRetryCount": 1}
NO: dict[str, Any] = {"Name": "no", "MaximumRetryCount": 0}


@pytest.mark.parametrize(
    ("code", "policy", "more", "state"),
    [
        # The engine would have started it again: a person stopped it.
        (1, ALWAYS, {}, "stopped"),
        (137, ALWAYS, {}, "stopped"),
        (0, UNLESS, {}, "stopped"),
        (137, THRICE, {}, "stopped"),
        # The engine gave up.
        (137, ONCE, {}, "failed"),
        (1, ONCE, {}, "failed"),
        # No policy says more than the code does.
        (0, NO, {}, "stopped"),
        (0, THRICE, {}, "stopped"),
        (143, NO, {}, "stopped"),
        (137, NO, {}, "unknown"),
        (137, NO, {"OOMKilled": True}, "failed"),
        (0, NO, {"OOMKilled": True}, "stopped"),
        (1, NO, {}, "failed"),
        (139, NO, {}, "failed"),
        (128, ALWAYS, {"Error": "no such device"}, "failed"),
    ],
)
def test_how_it_ended(
    container: Container,
    manager: managers.ProcessManager,
    code: int,
    policy: dict[str, Any],
    more: dict[str, Any],
    state: str,
) -> None:
    container.up()
    container.end(code, ago=60)
    container.put(**more)
    container.policy, container.retries = policy, 1
    status = manager.status()
    assert (status.state, status.identity) == (state, None)
    assert f"ended with code {code}" in status.detail
    assert more.get("Error", "") in status.detail


def test_right_after_an_end_its_policy_may_still_start_it_again(
    container: Container, manager: managers.ProcessManager
) -> None:
    container.policy = ALWAYS
    container.up()
    container.end(1)
    assert manager.status().state == "unknown", "nobody can tell yet that a person stopped it"


@pytest.mark.parametrize(
    ("name", "code", "state"),
    [
        ("SIGINT", 130, "stopped"),
        ("QUIT", 131, "stopped"),
        ("2", 130, "stopped"),
        ("SIGINT", 143, "failed"),
        ("SIGNONE", 143, "stopped"),
    ],
)
def test_the_containers_own_stop_signal_is_a_stop(
    container: Container, manager: managers.ProcessManager, name: str, code: int, state: str
) -> None:
    container.stop_signal = name
    container.up()
    container.end(code, ago=60)
    assert manager.status().state == state


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("removing", "stopping"),
        ("stopping", "stopping"),
        ("dead", "failed"),
        ("initialized", "stopped"),
        ("wondrous", "unknown"),
    ],
)
def test_every_other_state(
    container: Container, manager: managers.ProcessManager, status: str, state: str
) -> None:
    container.put(Status=status)
    assert manager.status().state == state


def test_what_was_created_and_could_not_start_has_failed(
    container: Container, manager: managers.ProcessManager
) -> None:
    container.put(Error="could not select device driver")
    status = manager.status()
    assert (status.state, status.detail) == ("failed", "created: could not select device driver")


def test_a_paused_container_was_paused_on_purpose_and_can_be_stopped(
    engine: Engine, container: Container, manager: managers.ProcessManager
) -> None:
    identity = manager.start(5)
    container.put(Status="paused", Paused=True)
    status = manager.status()
    assert status == managers.ProcessStatus("stopped", identity, "paused by somebody")
    with pytest.raises(ManagerError, match="is paused by somebody: unpause it"):
        manager.start(5)
    manager.stop(identity, 5)
    assert not container.state["Running"]
    assert engine.writes == [STARTED, STOPPED]


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (409, "removal of container is already in progress"),
        (500, "container state improper"),
        (403, "Forbidden by the proxy"),
        (404, "no such container"),
    ],
)
def test_a_refusal_is_an_error_with_the_engines_words(
    engine: Engine, manager: managers.ProcessManager, status: int, message: str
) -> None:
    engine.refusal = (status, message)
    words = f"refused to start vllm: HTTP {status}, {message}"
    with pytest.raises(ManagerError, match=words):
        manager.start(5)


def test_a_container_removed_while_it_is_stopped_is_gone(
    engine: Engine, manager: managers.ProcessManager
) -> None:
    identity = manager.start(5)
    engine.before_write = engine.containers.clear
    manager.stop(identity, 5)
    with pytest.raises(ManagerError, match="there is no container vllm"):
        manager.status()


def test_an_engine_that_lies_is_found_out(
    engine: Engine, container: Container, manager: managers.ProcessManager
) -> None:
    identity = manager.start(5)
    engine.ignores = True
    with pytest.raises(ManagerError, match=r"vllm did not stop within 0.2 s"):
        manager.stop(identity, 0.2)
    container.end(1)
    with pytest.raises(ManagerError, match="did not stay up: ended with code 1"):
        manager.start(0.2)


def test_a_start_that_ends_at_once_says_how(
    engine: Engine, manager: managers.ProcessManager
) -> None:
    engine.dies_with = 127
    with pytest.raises(ManagerError, match="did not stay up: ended with code 127"):
        manager.start(5)


def test_an_engine_that_does_not_answer_is_an_error_that_names_it(engine: Engine, url: str) -> None:
    one = make(url, timeout="100ms")
    engine.silent.clear()
    with pytest.raises(ManagerError, match=f"{url} did not answer within 0.1 s"):
        one.status()


def test_a_request_that_is_answered_too_late_counts_by_what_became_of_it(
    engine: Engine, container: Container, manager: managers.ProcessManager
) -> None:
    def late() -> None:
        container.up() if not container.state["Running"] else container.end(143)
        engine.silent.clear()
        engine.silent.wait(0.4)
        engine.silent.set()

    engine.before_write = late
    identity = manager.start(0.2)
    assert identity.pid == container.next_pid
    manager.stop(identity, 0.2)
    assert not container.state["Running"]


def test_a_start_that_is_not_answered_and_not_done_did_not_start_in_time(
    engine: Engine, container: Container, manager: managers.ProcessManager
) -> None:
    container.up()
    container.end(1, ago=60)
    engine.ignores = True
    engine.before_write = lambda: threading.Event().wait(0.3)
    with pytest.raises(ManagerError, match=r"did not start within 0.1 s: ended with code 1"):
        manager.start(0.1)


def test_no_engine_and_no_such_container_are_errors_that_say_so(
    engine: Engine, manager: managers.ProcessManager, tmp_path: Path
) -> None:
    absent = make(f"unix://{tmp_path}/none.sock")
    for ask in (absent.status, lambda: absent.start(1), lambda: absent.stop(None, 1)):
        with pytest.raises(ManagerError, match=f"the engine at unix://{tmp_path}/none.sock"):
            ask()
    engine.containers.clear()
    for ask in (manager.status, lambda: manager.start(1), lambda: manager.stop(None, 1)):
        with pytest.raises(ManagerError, match="there is no container vllm: is its name right"):
            ask()


@pytest.mark.parametrize("garbage", [b"", b"hello", b"[]", b"{}", b'{"Id": "x", "State": null}'])
def test_an_answer_of_something_else_is_an_error(
    engine: Engine, manager: managers.ProcessManager, garbage: bytes
) -> None:
    engine.garbage = garbage
    with pytest.raises(ManagerError, match="is not one of a container engine"):
        manager.status()


def test_plan_shows_the_requests_and_sends_none(url: str) -> None:
    one = make(url, stop_timeout="2m")
    stop, start = "POST /containers/vllm/stop?t=120", "POST /containers/vllm/start"
    assert one.describe("restart") == f"{stop}, then {start}"
    assert (one.describe("stop"), one.describe("start")) == (stop, start)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"container": "../images/prune"}, "manager.container must be a container's name"),
        ({"container": "a?b"}, "manager.container"),
        ({"container": ""}, "manager.container"),
        ({"container": "-f"}, "manager.container"),
        ({"url": "/var/run/docker.sock"}, "manager.url must be unix://"),
        ({"url": "unix://docker.sock"}, "manager.url"),
        ({"url": "http://127.0.0.1"}, "manager.url"),
        ({"url": "http://127.0.0.1:x"}, "manager.url"),
        ({"url": "http://["}, "manager.url"),
        ({"url": "http://me:secret@127.0.0.1:2375"}, "manager.url"),
        ({"stop_timeout": "0s"}, "manager.stop_timeout must be longer than 0s"),
    ],
)
def test_a_wrong_block_is_told_what_is_right(url: str, options: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        make(**{"url": url, **options})
    assert "secret" not in str(caught.value)
