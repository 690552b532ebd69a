"""What the helper lacks is said when the remediator starts; what can be seen without it, by check-config."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remediator.preflight import concerns
from remediator.store import Store
from tests.remediator.edge.conftest import cli, exporter, store
from tests.remediator.edge.support import ExporterStandIn, in_process, write_config
from tests.remediator.helper.support import Cards, Running, desk_of

__all__ = ["cli", "exporter", "store"]

Said = Callable[..., list[str]]


@pytest.fixture
def said(tmp_path: Path, exporter: ExporterStandIn) -> Said:
    def ask(socket: Path, control: str = "helper", **over: Any) -> list[str]:
        token = tmp_path / "release.token"
        token.write_text("r" * 32)
        address = {"url": exporter.url, "release_token_file": str(token)}
        gpus = {"control": control, "helper_socket": str(socket), "timeout": "5s"}
        with in_process(tmp_path, exporter=address, gpus=gpus, **over) as made:
            return list(concerns(made.remediator.world, made.remediator.playbooks))

    return ask


@pytest.mark.parametrize(
    ("allow", "over", "lacks"),
    [
        (("power_limit",), {"mode": "auto"}, []),
        ((), {"mode": "observe"}, []),
        ((), {"mode": "auto"}, ["power_limit"]),
        ((), {"playbooks": {"throttle-gpu": {"mode": "approve"}}}, ["power_limit"]),
        (("power_limit",), {"allow": ["gpu_reset"]}, ["reset"]),
        (("power_limit",), {"mode": "auto", "control": "jetson"}, ["jetson"]),
    ],
)
def test_what_helper_yml_does_not_allow_is_named(
    said: Said,
    serve: Callable[..., Running],
    cards: Cards,
    allow: tuple[str, ...],
    over: dict[str, Any],
    lacks: list[str],
) -> None:
    socket = serve(desk_of(None, cards, allow=allow)).socket
    found = said(socket, **({"mode": "observe"} | over))
    wanted = [f"the helper will refuse: allow in its helper.yml lacks {one}" for one in lacks]
    assert found == wanted


def test_a_helper_that_is_not_there_is_named_with_what_to_do(said: Said, tmp_path: Path) -> None:
    (sentence,) = said(tmp_path / "absent", mode="auto")
    assert "install gpu-remediator-helper.socket" in sentence
    assert said(tmp_path / "absent", mode="observe") == []


def test_a_helper_for_somebody_else_is_named(
    said: Said, serve: Callable[..., Running], cards: Cards
) -> None:
    socket = serve(desk_of(None, cards), uid=os.geteuid() + 1).socket
    (sentence,) = said(socket, mode="auto")
    assert f"uid {os.geteuid()} may not ask" in sentence


def test_a_reset_by_the_helper_needs_no_root_here(
    said: Said,
    serve: Callable[..., Running],
    cards: Cards,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = desk_of(None, cards, allow=("power_limit", "reset"))
    socket = serve(desk).socket
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert said(socket, allow=["gpu_reset"], mode="auto") == []


def test_check_config_says_where_the_helper_listens_and_asks_nobody(
    cli: Callable[..., tuple[int, str, str]], tmp_path: Path, helper: Running
) -> None:
    for socket, here in ((tmp_path / "absent", False), (helper.socket, True)):
        gpus = {"control": "helper", "helper_socket": str(socket)}
        path = write_config(tmp_path, gpus=gpus)
        code, out, _ = cli("check-config", f"--config.file={path}")
        assert code == 0
        assert f"the helper listens on {socket}" in out
        assert (f"note: {socket} is not here" in out) is not here


def test_check_says_what_the_helper_lacks(
    cli: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    store: Store,
    exporter: ExporterStandIn,
    helper: Running,
) -> None:
    for socket, words, expected in (
        (tmp_path / "absent", "install gpu-remediator-helper.socket", 1),
        (helper.socket, "", 0),
    ):
        gpus = {"control": "helper", "helper_socket": str(socket)}
        path = write_config(tmp_path, gpus=gpus, mode="auto", exporter={"url": exporter.url})
        code, out, _ = cli("check", f"--config.file={path}")
        assert (code, "the helper" in out) == (expected, bool(words)), out
        assert words in out
    # Its last line is written while this test's standard error is still there.
    helper.close()


def test_a_socket_by_a_relative_path_is_a_mistake(
    cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    path = write_config(tmp_path, gpus={"control": "helper", "helper_socket": "helper.sock"})
    code, _, said = cli("check-config", f"--config.file={path}")
    assert (code, "gpus.helper_socket must be an absolute path" in said) == (1, True)
