"""Who may come in at the HTTP side, and how the command line does."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from remediator.errors import ConfigError
from serving.address import parse_address
from serving.errors import ConfigError as AddressError

if TYPE_CHECKING:
    from remediator.config.model import WebConfig

Role = Literal["webhook", "read", "operate"]


@dataclass(frozen=True)
class Members:
    """Who has a role, beside who has its token.

    `users` are of `basic_auth_users`, `certificates` names in a client's verified certificate.
    """

    users: tuple[str, ...] = ()
    certificates: tuple[str, ...] = ()

    @property
    def has_anybody(self) -> bool:
        """Whether somebody is named."""
        return bool(self.users or self.certificates)


@dataclass(frozen=True)
class Roles:
    """Who has which role, by the web configuration file."""

    webhook: Members = field(default_factory=Members)
    read: Members = field(default_factory=Members)
    operate: Members = field(default_factory=Members)

    def of(self, role: Role) -> Members:
        """Who has `role`."""
        members: Members = getattr(self, role)
        return members

    def of_user(self, user: str) -> frozenset[Role]:
        """The roles of a user whose password was right."""
        return frozenset(role for role in _ROLES if user in self.of(role).users)

    def of_certificate(self, names: Iterable[str]) -> frozenset[Role]:
        """The roles of who showed a verified certificate with these names."""
        shown = set(names)
        return frozenset(role for role in _ROLES if shown & set(self.of(role).certificates))


@dataclass(frozen=True)
class ClientConfig:
    """How the commands that operate reach the server, where that is not by the operate token.

    The files and `username` are as in `exporter`. Without a `url` it is the listen address.
    """

    url: str = ""
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    username: str = ""
    password_file: Path | None = None


_ROLES: tuple[Role, ...] = ("webhook", "read", "operate")


def host_and_port(text: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`; an empty host means every interface.

    Raises:
        ConfigError: it is not of that form.
    """
    try:
        return parse_address(text)
    except AddressError as error:
        raise ConfigError(f"web.listen_address: {error}") from None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a socket that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check(web: WebConfig) -> None:
    """Check what can be seen without reading another file.

    Raises:
        ConfigError: everybody could come in, or somebody is named whom nothing could identify.
    """
    host, _ = host_and_port(web.listen_address)
    if (
        not is_loopback(host)
        and web.tokens.webhook is None
        and not web.roles.of("webhook").has_anybody
    ):
        raise ConfigError(
            f"web.listen_address {web.listen_address} can be reached from other machines: set "
            "web.tokens.webhook to a file with a token, or name who delivers alerts in "
            "web.roles.webhook, or listen on 127.0.0.1"
        )
    for kind in ("users", "certificates"):
        owner: dict[str, Role] = {}
        for role in _ROLES:
            for name in getattr(web.roles.of(role), kind):
                if name in owner:
                    raise ConfigError(
                        f"web.roles: {name!r} stands under {kind} of {owner[name]} and of {role}; "
                        "each has one role (operate may read too)"
                    )
                owner[name] = role
        if owner and web.config_file is None:
            raise ConfigError(
                f"web.roles: {kind} have no effect without web.config_file, which identifies them"
            )
