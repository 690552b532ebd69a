"""Secrets come from files, are checked when they are read, and are never printed."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from remediator.errors import ConfigError

MIN_LENGTH = 16


def read_token(path: Path, min_length: int = MIN_LENGTH) -> str:
    """The token in the file at `path` (one line, at least `min_length` characters).

    Raises:
        ConfigError: it cannot be read, is empty or is too short to be a secret.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        what_to_do = (
            "put the token there, on one line: a random one, or the one that its server was given"
            if isinstance(error, FileNotFoundError)
            else "this user must be able to read it"
        )
        raise ConfigError(
            f"cannot read the token file {path}: {error.strerror}; {what_to_do}"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"the token file {path} is not text") from None
    if len(text) < min_length or any(not 33 <= ord(ch) < 127 for ch in text):
        raise ConfigError(
            f"the token file {path} must hold one line of at least {min_length} printable "
            "characters without spaces"
        )
    return text


def read_or_create_key(path: Path) -> bytes:
    """The audit key in `path`; a new random one (mode 0600) where there is no file yet.

    Raises:
        ConfigError: the file cannot be read or created, or holds too little.
    """
    try:
        if not path.exists():
            _create_key(path)
        key = path.read_text(encoding="ascii").strip().encode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot use the audit key {path}: {error}") from None
    if len(key) < 2 * MIN_LENGTH:
        raise ConfigError(f"the audit key {path} is too short; remove it only with the database")
    return key


def _create_key(path: Path) -> None:
    """Whole or not at all: a crash must not leave a file that is too short to be a key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32) + "\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        # Unlike a rename it never replaces a key that another process has just made.
        os.link(fresh, path)
    except FileExistsError:
        return
    finally:
        fresh.unlink()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
