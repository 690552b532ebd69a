"""The web configuration file of Prometheus's exporter-toolkit: strict YAML into values.

Every scalar is taken as the text that stands there, as the toolkit does: a user called `0123` is not
the number 83.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.errors import ConfigError

# What a header may say; None is anything. The toolkit allows these and no others.
_HEADERS: Mapping[str, tuple[str, ...] | None] = {
    "Strict-Transport-Security": None,
    "X-Content-Type-Options": ("nosniff",),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-XSS-Protection": None,
    "Content-Security-Policy": None,
}
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_BCRYPT = re.compile(r"\$2[aby]\$(0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{53}")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """`tls_server_config`, as the file says it.

    Attributes:
        cert: PEM text; either this or `cert_file`, and so for the key and the CA.
        client_auth_type: the name that Go's crypto/tls has for it.
        cipher_suites: names as Go has them.
    """

    cert: str = ""
    cert_file: Path | None = None
    key: str = field(default="", repr=False)
    key_file: Path | None = None
    client_ca: str = ""
    client_ca_file: Path | None = None
    client_auth_type: str = "NoClientCert"
    client_allowed_sans: tuple[str, ...] = ()
    cipher_suites: tuple[str, ...] = ()
    curve_preferences: tuple[str, ...] = ()
    min_version: str = "TLS12"
    max_version: str = "TLS13"
    prefer_server_cipher_suites: bool = True

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it names."""
        named = (self.cert_file, self.key_file, self.client_ca_file)
        return tuple(path for path in named if path is not None)


@dataclass(frozen=True, slots=True)
class RateLimit:
    """`rate_limit`: one more request every `interval` seconds, at most `burst` at once."""

    interval: float
    burst: int


@dataclass(frozen=True, slots=True)
class WebConfig:
    """The whole file.

    Attributes:
        tls: None serves plain HTTP.
        headers: added to every answer.
        users: bcrypt hash by user; empty asks for no password.
    """

    tls: TlsSettings | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    users: Mapping[str, str] = field(default_factory=dict, repr=False)
    rate_limit: RateLimit | None = None


class _Section:
    """A mapping of the file that knows its path, for messages."""

    def __init__(self, value: Any, path: str, known: tuple[str, ...]) -> None:
        self._value: Mapping[str, Any] = _mapping(value, path)
        self._path = path
        for key in self._value:
            if key not in known:
                raise ConfigError(f"{self.at(key)}: unknown key{_nearest(key, known)}")

    def __bool__(self) -> bool:
        return bool(self._value)

    def at(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key

    def get(self, key: str) -> Any:
        return self._value.get(key, "")

    def text(self, key: str, default: str = "") -> str:
        value = self._value.get(key, "")
        if not isinstance(value, str):
            raise ConfigError(f"{self.at(key)}: expected text, not a list or a mapping")
        return value or default

    def choice(self, key: str, default: str, known: tuple[str, ...]) -> str:
        return self._known(self.text(key, default), self.at(key), known)

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._value.get(key) or []
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise ConfigError(f"{self.at(key)}: expected a list of texts")
        return tuple(value)

    def choices(self, key: str, known: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(self._known(one, self.at(key), known) for one in self.texts(key))

    def boolean(self, key: str, default: bool) -> bool:
        value = self.text(key, str(default)).lower()
        if value not in _BOOLEANS:
            raise ConfigError(f"{self.at(key)}: expected true or false, not '{value}'")
        return _BOOLEANS[value]

    def path(self, key: str, folder: Path) -> Path | None:
        value = self.text(key)
        return folder / value if value else None

    @staticmethod
    def _known(value: str, path: str, known: tuple[str, ...]) -> str:
        if value not in known:
            raise ConfigError(f"{path}: there is no '{value}'{_nearest(value, known)}")
        return value


VERSIONS = ("TLS10", "TLS11", "TLS12", "TLS13")
CLIENT_AUTH_TYPES = (
    "NoClientCert",
    "RequestClientCert",
    "RequireAnyClientCert",
    "RequireClientCert",
    "VerifyClientCertIfGiven",
    "RequireAndVerifyClientCert",
)
CURVES = ("CurveP256", "CurveP384", "CurveP521", "X25519")
# Go's name: OpenSSL's, or none where a suite is of TLS 1.3, which cannot be chosen there either.
CIPHER_SUITES: Mapping[str, str] = {
    "TLS_AES_128_GCM_SHA256": "",
    "TLS_AES_256_GCM_SHA384": "",
    "TLS_CHACHA20_POLY1305_SHA256": "",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
}
_TLS_KEYS = tuple(TlsSettings.__dataclass_fields__)


def parse(text: bytes, folder: Path) -> WebConfig:
    """Turn the file into values; paths in it are relative to `folder`.

    Raises:
        ConfigError: with the path of the key. No message repeats a secret.
    """
    # Only here: where there is no such file, YAML need not be loaded.
    from serving.text_yaml import load  # noqa: PLC0415

    document = load(text)
    known = ("tls_server_config", "http_server_config", "basic_auth_users", "rate_limit")
    root = _Section(document or {}, "", known)
    return WebConfig(
        tls=_tls(_Section(root.get(known[0]) or {}, known[0], _TLS_KEYS), folder),
        headers=_headers(_Section(root.get(known[1]) or {}, known[1], ("http2", "headers"))),
        users=_users(root.get(known[2]) or {}),
        rate_limit=_rate_limit(_Section(root.get(known[3]) or {}, known[3], ("interval", "burst"))),
    )


def _tls(section: _Section, folder: Path) -> TlsSettings | None:
    if not section:
        return None
    settings = TlsSettings(
        cert=section.text("cert"),
        cert_file=section.path("cert_file", folder),
        key=section.text("key"),
        key_file=section.path("key_file", folder),
        client_ca=section.text("client_ca"),
        client_ca_file=section.path("client_ca_file", folder),
        client_auth_type=section.choice("client_auth_type", "NoClientCert", CLIENT_AUTH_TYPES),
        client_allowed_sans=section.texts("client_allowed_sans"),
        cipher_suites=section.choices("cipher_suites", tuple(CIPHER_SUITES)),
        curve_preferences=section.choices("curve_preferences", CURVES),
        min_version=section.choice("min_version", "TLS12", VERSIONS),
        max_version=section.choice("max_version", "TLS13", VERSIONS),
        prefer_server_cipher_suites=section.boolean("prefer_server_cipher_suites", True),
    )
    for key in ("cert", "key", "client_ca"):
        given = [bool(section.get(name)) for name in (key, f"{key}_file")]
        if all(given):
            raise ConfigError(f"{section.at(key)}: give this or {key}_file, not both")
        if key != "client_ca" and not any(given):
            raise ConfigError(f"{section.at(f'{key}_file')}: is missing; TLS needs it")
    return settings


def _headers(section: _Section) -> Mapping[str, str]:
    # Serving is HTTP/1.1; whether http2 is wanted changes nothing, but it must be a boolean.
    section.boolean("http2", True)
    headers = _Section(section.get("headers") or {}, section.at("headers"), tuple(_HEADERS))
    found: dict[str, str] = {}
    for name, allowed in _HEADERS.items():
        value = headers.text(name)
        if not value:
            continue
        if allowed is not None and value not in allowed:
            raise ConfigError(f"{headers.at(name)}: expected {' or '.join(allowed)}, not '{value}'")
        if not value.isprintable() or not value.isascii():
            raise ConfigError(f"{headers.at(name)}: holds what no header can")
        found[name] = value
    return found


def _users(value: Any) -> Mapping[str, str]:
    users = _mapping(value, "basic_auth_users")
    for name, hashed in users.items():
        path = f"basic_auth_users.{name}"
        if not isinstance(hashed, str) or not _BCRYPT.fullmatch(hashed):
            raise ConfigError(
                f'{path}: expected a bcrypt hash such as htpasswd -nBC 10 "" makes, $2y$10$…'
            )
        if ":" in name or not name:
            raise ConfigError(f"{path}: a user's name is not empty and has no colon")
    return dict(users)


def _rate_limit(section: _Section) -> RateLimit | None:
    interval = _seconds(section.text("interval", "0"), section.at("interval"))
    burst = section.text("burst", "0")
    if not burst.isdecimal():
        raise ConfigError(f"{section.at('burst')}: expected a count, not '{burst}'")
    if interval and burst == "0":
        raise ConfigError(f"{section.at('burst')}: must be 1 or more, or no request is answered")
    return RateLimit(interval, int(burst)) if interval else None


def _seconds(text: str, path: str) -> float:
    if text == "0":
        return 0.0
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ConfigError(f"{path}: expected a duration such as 1s or 100ms, not '{text}'")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def _mapping(value: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{path or 'the file'}: expected a mapping of keys and values")
    return value


def _nearest(name: str, known: tuple[str, ...]) -> str:
    # Only here: most files have no such mistake.
    from difflib import get_close_matches  # noqa: PLC0415

    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else f"; known here: {', '.join(known)}"
