"""`helper.yml`: what the helper may do at all, and for whom. It belongs to root, and says no by default."""

from __future__ import annotations

import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from remediator.config.loader import read_yaml
from remediator.config.strict import Seconds, Uuid, build
from remediator.errors import ConfigError
from remediator.helper.protocol import UUID, Permission

DEFAULT_FILE = Path("/etc/gpu-remediator/helper.yml")
_MOST_SECONDS = 600.0


@dataclass(frozen=True)
class Policy:
    """The whole file; durations are seconds.

    `user` is the one who may ask, by name or number. `cards: all` means those that the driver reports.
    """

    user: str | int = "gpu-remediator"
    allow: tuple[Permission, ...] = ()
    cards: Literal["all"] | tuple[Uuid, ...] = "all"
    control: Literal["nvml", "nvidia-smi"] = "nvml"
    nvidia_smi: Path = Path("/usr/bin/nvidia-smi")
    reset_allow_consumer: bool = False
    timeout: Seconds = 15.0
    reset_within: Seconds = 120.0
    resets_per_day: int = 2
    writes_per_minute: int = 30

    def lets(self, uuid: str) -> bool:
        """Whether the card is one of those that may be touched."""
        return self.cards == "all" or uuid in self.cards

    @property
    def uid(self) -> int:
        """The number of the user.

        Raises:
            ConfigError: there is no such user.
        """
        if isinstance(self.user, int):
            return self.user
        try:
            return pwd.getpwnam(self.user).pw_uid
        except KeyError:
            raise ConfigError(f"user: there is no user {self.user!r} on this machine") from None


def load(path: Path) -> Policy:
    """The policy in the file at `path`.

    Raises:
        ConfigError: it cannot be read, others may change it, or it says something that is not allowed.
    """
    _ours_alone(path)
    policy = build(Policy, read_yaml(path), "")
    if not policy.nvidia_smi.is_absolute():
        raise ConfigError("nvidia_smi must be an absolute path")
    _ours_alone(policy.nvidia_smi, may_be_missing=True)
    for uuid in () if policy.cards == "all" else policy.cards:
        if not UUID.fullmatch(uuid):
            raise ConfigError(f"cards: {uuid!r} is not a GPU uuid; `gpu-exporter check` shows them")
    if policy.control == "nvidia-smi" and policy.cards == "all":
        raise ConfigError("control nvidia-smi needs cards: a list of uuids")
    for name in ("timeout", "reset_within"):
        if not 0 < getattr(policy, name) <= _MOST_SECONDS:
            raise ConfigError(f"{name} must be between 1ms and 10m")
    for name in ("resets_per_day", "writes_per_minute"):
        if getattr(policy, name) < 0:
            raise ConfigError(f"{name} must not be negative")
    if isinstance(policy.user, int) and policy.user < 0:
        raise ConfigError("user must be a name or a number from 0 on")
    return policy


def _ours_alone(path: Path, *, may_be_missing: bool = False) -> None:
    """Refuse what somebody other than root and this user could have changed, or could exchange."""
    for folder in {path.parent, path.resolve().parent}:
        if folder.exists():
            _belongs_to_us(folder)
    if path.exists() or not may_be_missing:
        _belongs_to_us(path)


def _belongs_to_us(path: Path) -> None:
    try:
        found = path.stat()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX:
        # As in /tmp: others may add files there, and not exchange ours.
        others = 0
    if found.st_uid not in (0, os.geteuid()) or others:
        raise ConfigError(f"{path} must belong to root, and nobody else may write to it")
