"""Who may do what: three roles, each by bearer token, by user and password, or by certificate.

`operate` may read too; what has the role `webhook` can do nothing else.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import wraps
from typing import Any, ParamSpec

from flask import current_app, request

from remediator.config import WebConfig
from remediator.config.doors import Role, Roles
from remediator.config.secrets import read_token
from remediator.errors import ConfigError
from serving.auth import BasicAuth, Verdict, user_of
from serving.channel import CLIENT_NAMES
from serving.config import WebConfig as WebFile
from serving.errors import ConfigError as FileError
from serving.errors import ServingError
from serving.live import LiveConfig

P = ParamSpec("P")
_ROLES: tuple[Role, ...] = ("webhook", "read", "operate")
_REALM = "gpu-remediator"


class Judgement(Enum):
    """What is known of who asks for something that a role may do."""

    GRANTED = "granted"
    UNKNOWN = "unknown"
    FORBIDDEN = "forbidden"
    BUSY = "busy"


@dataclass(frozen=True)
class Tokens:
    """The token of each role; None where none is configured, so that nobody has the role."""

    webhook: str | None = None
    read: str | None = None
    operate: str | None = None

    def roles_of(self, presented: str) -> frozenset[Role] | None:
        """The roles of who presents that, None where no token is that; in constant time."""
        given = presented.encode("utf-8", "replace")
        matches = [
            role
            for role in _ROLES
            if hmac.compare_digest(given, (getattr(self, role) or "").encode()) and given
        ]
        return frozenset(matches) if matches else None


class Identities:
    """Everybody who has a role.

    A request that shows an `Authorization` is judged by it alone, another one by the certificate
    with which it came.
    """

    def __init__(
        self, tokens: Tokens, roles: Roles | None = None, live: LiveConfig | None = None
    ) -> None:
        """Whoever `tokens`, `roles` and the users in `live` say."""
        self.tokens = tokens
        self.live = live
        self._roles = roles or Roles()
        self._auth = BasicAuth()

    def has_anybody(self, role: Role) -> bool:
        """Whether somebody has that very role."""
        return getattr(self.tokens, role) is not None or self._roles.of(role).has_anybody

    def judge(self, role: Role, environ: Mapping[str, Any]) -> Judgement:
        """Whether who sent the request of that WSGI environment has `role`."""
        header = environ.get("HTTP_AUTHORIZATION", "")
        scheme, _, rest = header.partition(" ")
        roles: frozenset[Role] | None = None
        if not header:
            names = environ.get(CLIENT_NAMES, ())
            roles = self._roles.of_certificate(names) if names else None
        elif scheme.lower() == "bearer":
            roles = self.tokens.roles_of(rest.strip())
        elif scheme.lower() == "basic" and (users := self._users()):
            verdict = self._auth.check(users, header, environ.get("REMOTE_ADDR", ""))
            if verdict is Verdict.BUSY:
                return Judgement.BUSY
            if verdict is Verdict.GRANTED:
                roles = self._roles.of_user(user_of(header))
        if roles is None:
            return Judgement.UNKNOWN
        may = role in roles or (role == "read" and "operate" in roles)
        return Judgement.GRANTED if may else Judgement.FORBIDDEN

    def challenges(self) -> list[str]:
        """What a client may show, as `WWW-Authenticate` says it."""
        basic = [f'Basic realm="{_REALM}", charset="UTF-8"'] if self._users() else []
        return [f'Bearer realm="{_REALM}"', *basic]

    def _users(self) -> Mapping[str, str]:
        return {} if self.live is None else self.live.current().config.users


def load_identities(config: WebConfig) -> Identities:
    """Everybody whom the configuration and the files that it names give a role.

    Raises:
        ConfigError: a file cannot be used, or somebody is named whom nothing can identify.
    """
    tokens = load_tokens(config)
    if config.config_file is None:
        return Identities(tokens, config.roles)
    try:
        live = LiveConfig(config.config_file, _check_file)
    except ServingError as error:
        raise ConfigError(f"web.config_file: {error}") from None
    _check_known(config.roles, live.current().config)
    return Identities(tokens, config.roles, live)


def load_tokens(config: WebConfig) -> Tokens:
    """The tokens in the configured files.

    Raises:
        ConfigError: a file cannot be read or holds no usable token.
    """
    files = config.tokens
    tokens = Tokens(
        webhook=read_token(files.webhook) if files.webhook else None,
        read=read_token(files.read) if files.read else None,
        operate=read_token(files.operate) if files.operate else None,
    )
    if tokens.webhook is not None and tokens.webhook in (tokens.read, tokens.operate):
        raise ConfigError(
            "web.tokens.webhook holds the token of another role, so whoever delivers alerts "
            "could use it: give it a token of its own"
        )
    if tokens.read is not None and tokens.read == tokens.operate:
        raise ConfigError("web.tokens.read and web.tokens.operate hold the same token")
    return tokens


def requires(role: Role) -> Callable[[Callable[P, Any]], Callable[P, Any]]:
    """A view that only `role` may call: 401 of who is unknown, 403 of who has another role."""

    def decorate(view: Callable[P, Any]) -> Callable[P, Any]:
        @wraps(view)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> Any:
            identities: Identities = current_app.extensions["identities"]
            judgement = identities.judge(role, request.environ)
            if judgement is Judgement.GRANTED:
                return view(*args, **kwargs)
            return _refuse(judgement, role, identities)

        return guarded

    return decorate


def may(role: Role) -> bool:
    """Whether who sent this request has `role`; for what is open, and says more to some."""
    identities: Identities = current_app.extensions["identities"]
    return identities.judge(role, request.environ) is Judgement.GRANTED


def _refuse(judgement: Judgement, role: Role, identities: Identities) -> Any:
    if judgement is Judgement.BUSY:
        # Not 429: Alertmanager forgets what is answered so, and tries again after a 503.
        return {"error": "too many passwords are being checked; try again"}, 503
    if judgement is Judgement.FORBIDDEN:
        return {"error": f"who asks is known, but does not have the role {role}"}, 403
    others = ", or one of its users or certificates" if identities.live is not None else ""
    error = {"error": f"this needs the bearer token of the role {role}{others}"}
    return error, 401, {"WWW-Authenticate": identities.challenges()}


def _check_file(file: WebFile) -> None:
    if file.rate_limit is not None:
        raise FileError(
            "rate_limit: is for scrapes; Alertmanager would lose the alerts that are over it"
        )


def _check_known(roles: Roles, file: WebFile) -> None:
    """What is named must be one that the web configuration file can identify."""
    for role in _ROLES:
        members = roles.of(role)
        for user in members.users:
            if user not in file.users:
                raise ConfigError(f"web.roles.{role}.users: {user} is not in basic_auth_users")
        verified = file.tls is not None and file.tls.client_auth_type != "NoClientCert"
        if members.certificates and not verified:
            raise ConfigError(
                f"web.roles.{role}.certificates: no certificate is asked for; set client_auth_type "
                "and client_ca_file in tls_server_config of web.config_file"
            )
