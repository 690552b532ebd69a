"""What a server with TLS or passwords is trusted by, and shown: the exporter, an Alertmanager."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from remediator.config import ExporterConfig
from remediator.config.secrets import read_token
from remediator.errors import ConfigError
from remediator.http import Access


class Credentials(Protocol):
    """The part of a configuration that says whom to trust and what to show."""

    @property
    def ca_file(self) -> Path | None:
        """Whom to trust."""

    @property
    def cert_file(self) -> Path | None:
        """A client's certificate."""

    @property
    def key_file(self) -> Path | None:
        """The key of that."""

    @property
    def username(self) -> str:
        """Empty for none."""

    @property
    def password_file(self) -> Path | None:
        """The password of `username`."""


def create(config: ExporterConfig) -> Access:
    """What the configuration says of the exporter.

    Raises:
        ConfigError: a file cannot be used, or one of two that belong together is missing.
    """
    return access_to(config, "exporter", {"exporter.url": config.url})


def access_to(config: Credentials, where: str, urls: Mapping[str, str]) -> Access:
    """Read the files that a part of the configuration names.

    Args:
        config: the part.
        where: what it is called, for messages.
        urls: whom it is for, by the name of the key.

    Raises:
        ConfigError: one cannot be used, or one of two that belong together is missing.
    """
    for first, second in (("username", "password_file"), ("cert_file", "key_file")):
        if bool(getattr(config, first)) != bool(getattr(config, second)):
            raise ConfigError(f"{where}.{first} and {where}.{second}: give both or neither")
    for name in ("ca_file", "cert_file", "key_file"):
        path = getattr(config, name)
        if path is not None:
            _check(f"{where}.{name}", path, urls)
    return Access(
        ca_file=config.ca_file,
        certificate=_certificate(config.cert_file, config.key_file),
        login=_login(config.username, config.password_file),
    )


def _certificate(cert: Path | None, key: Path | None) -> tuple[str, str] | None:
    return None if cert is None or key is None else (str(cert), str(key))


def _login(user: str, password: Path | None) -> tuple[str, str] | None:
    return None if password is None else (user, read_token(password, min_length=1))


def _check(where: str, path: Path, urls: Mapping[str, str]) -> None:
    for key, url in urls.items():
        if not url.startswith("https://"):
            raise ConfigError(f"{where}: has no effect unless {key} is https://…")
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise ConfigError(f"{where}: cannot read {path}: {error.strerror}") from None
