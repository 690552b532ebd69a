"""What the helper may do belongs to root, is strict, and is nothing unless said."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from remediator.clock import SystemClock
from remediator.errors import ConfigError
from remediator.helper import command
from remediator.helper.desk import Desk
from remediator.helper.ledger import Ledger
from remediator.helper.policy import Policy, load
from remediator.helper.protocol import VERBS
from tests.remediator.helper.support import CARD, OTHER, Cards, Running, desk_of, refused


def written(folder: Path, policy: str) -> Path:
    path = folder / "helper.yml"
    path.write_text(policy)
    path.chmod(0o644)
    return path


def test_an_empty_file_allows_nothing(
    tmp_path: Path, serve: Callable[..., Running], cards: Cards
) -> None:
    policy = load(written(tmp_path, ""))
    assert policy.allow == ()
    helper = serve(desk_of(tmp_path, cards, allow=policy.allow))
    for name, verb in VERBS.items():
        if verb.permission:
            said = refused(lambda: helper.client().ask(name, CARD, 200))  # noqa: B023
            assert said == f"ControlError: the helper: helper.yml does not allow {verb.permission}"
    assert cards.listed == 0
    assert not cards.begun.is_set()


@pytest.mark.parametrize(
    ("allow", "free"), [("power_limit", "power_limit"), ("reset", "reset_checks")]
)
def test_one_permission_gives_no_other(
    tmp_path: Path, serve: Callable[..., Running], cards: Cards, allow: str, free: str
) -> None:
    helper = serve(desk_of(tmp_path, cards, allow=(allow,)))
    for name, verb in VERBS.items():
        if verb.permission and verb.permission != allow:
            assert "does not allow" in refused(lambda: helper.client().ask(name, CARD, 200))  # noqa: B023
    assert "does not allow" not in refused(lambda: helper.client().ask(free, CARD))


def test_a_card_that_the_file_does_not_name_is_left_alone(
    tmp_path: Path, serve: Callable[..., Running], cards: Cards
) -> None:
    helper = serve(desk_of(tmp_path, cards, only=(OTHER,)))
    said = refused(lambda: helper.client().ask("set_power_limit", CARD, 320_000))
    assert said == "ControlError: the helper: helper.yml does not name this card"
    helper.client().ask("set_power_limit", OTHER, 320_000)
    assert cards.limits == {CARD: 400_000, OTHER: 320_000}


def test_a_card_that_the_driver_does_not_report_is_refused_and_not_asked_for_again_and_again(
    helper: Running, cards: Cards
) -> None:
    for number in range(5):
        unknown = f"GPU-ffffffff-0000-0000-0000-00000000000{number}"
        said = refused(lambda: helper.client().ask("power_limit", unknown))  # noqa: B023
        assert said == "ControlError: the helper: the driver reports no such card"
    assert cards.listed == 1


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("alow: [reset]", "did you mean 'allow'"),
        ("allow: [shell]", "must be one of power_limit, reset, jetson"),
        ("allow: [reset]\nallow: [power_limit]", "stands twice"),
        ("cards: [all the cards]", "is not a GPU uuid"),
        ("control: nvidia-smi", "needs cards: a list of uuids"),
        ("nvidia_smi: nvidia-smi", "absolute path"),
        ("timeout: 0s", "between 1ms and 10m"),
        ("reset_within: 1h", "between 1ms and 10m"),
        ("resets_per_day: -1", "must not be negative"),
        ("user: -1", "from 0 on"),
        ("[", "is not YAML"),
    ],
)
def test_a_mistake_is_told(tmp_path: Path, policy: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(written(tmp_path, policy))


def test_a_user_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no user 'nobody-of-this-name'"):
        load(written(tmp_path, "user: nobody-of-this-name")).uid  # noqa: B018
    assert load(written(tmp_path, "user: 12345")).uid == 12345


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_file_that_others_may_write_to_is_not_believed(tmp_path: Path, mode: int) -> None:
    path = written(tmp_path, "allow: [reset]")
    path.chmod(mode)
    with pytest.raises(ConfigError, match="nobody else may write to it"):
        load(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_somebody_else_is_not_believed(tmp_path: Path) -> None:
    path = written(tmp_path, "allow: [reset]")
    os.chown(path, 65534, 65534)
    with pytest.raises(ConfigError, match="must belong to root"):
        load(path)


def test_a_program_that_others_may_write_to_is_not_run(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o777)
    with pytest.raises(ConfigError, match=r"nvidia-smi must belong to root"):
        load(written(tmp_path, f"nvidia_smi: {program}"))


@pytest.mark.parametrize("what", ["policy", "program", "program that is not there yet"])
def test_a_folder_in_which_others_may_exchange_the_file_is_not_believed(
    tmp_path: Path, what: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    program = folder / "nvidia-smi"
    if what == "program":
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    named = "" if what == "policy" else f"nvidia_smi: {program}"
    path = written(folder if what == "policy" else tmp_path, named)
    load(path)
    folder.chmod(0o775)
    with pytest.raises(ConfigError, match=r"folder must belong to root, and nobody else"):
        load(path)
    # As in /tmp: others may add files, and not exchange ours.
    folder.chmod(0o1777)
    load(path)


def test_a_socket_that_its_folders_owner_exchanges_gives_no_other_file_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, shadow = tmp_path / "helper.sock", tmp_path / "shadow"
    shadow.write_text("root:*:\n")
    given: list[Path] = []

    def chown(one: str, *_: int, follow_symlinks: bool = True) -> None:
        given.append(Path(one).resolve() if follow_symlinks else Path(one))

    monkeypatch.setattr(os, "chown", chown)
    bind = command.socket.socket.bind

    class Socket(command.socket.socket):
        def bind(self, address: str) -> None:  # type: ignore[override]
            bind(self, address)
            path.unlink()
            path.symlink_to(shadow)

    monkeypatch.setattr(command.socket, "socket", Socket)
    command._bind(path, 12345).close()
    assert given == [path]


def test_without_a_folder_for_what_was_begun_no_card_is_reset(
    serve: Callable[..., Running], cards: Cards
) -> None:
    policy = Policy(user=os.geteuid(), allow=("reset",), cards=(CARD,))
    helper = serve(Desk(policy, Ledger(None, SystemClock()), SystemClock()))
    assert "--state-dir" in refused(lambda: helper.client().ask("reset", CARD))
