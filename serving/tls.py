"""`tls_server_config` as an `ssl.SSLContext`, and who may come in with which certificate."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.certificate import earliest_expiry, names
from serving.config import CIPHER_SUITES, TlsSettings
from serving.errors import ConfigError

_SECTION = "tls_server_config"
_VERSIONS: Mapping[str, ssl.TLSVersion] = {
    "TLS12": ssl.TLSVersion.TLSv1_2,
    "TLS13": ssl.TLSVersion.TLSv1_3,
}
_CURVES = {
    "CurveP256": "prime256v1",
    "CurveP384": "secp384r1",
    "CurveP521": "secp521r1",
    "X25519": "X25519",
}
_VERIFIED: Mapping[str, ssl.VerifyMode] = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
# Python's ssl verifies each certificate that it asks for, so these cannot be had.
_UNVERIFIED: Mapping[str, str] = {
    "RequestClientCert": "NoClientCert (it lets in the same clients) or VerifyClientCertIfGiven",
    "RequireAnyClientCert": "RequireAndVerifyClientCert (any certificate is no protection)",
    "RequireClientCert": "RequireAndVerifyClientCert (any certificate is no protection)",
}


@dataclass(frozen=True, slots=True)
class TlsOffer:
    """What a new connection is offered.

    Attributes:
        allowed_sans: names of which the client's certificate must have one; empty takes all.
        expires: when the first of the server's certificates ceases to be good (seconds since the
            epoch); None where it cannot be told.
    """

    context: ssl.SSLContext
    allowed_sans: tuple[str, ...]
    expires: float | None


def build(settings: TlsSettings) -> TlsOffer:
    """Read the certificates and make what new connections are served with.

    Raises:
        ConfigError: a file cannot be used, or what is asked for cannot be had.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _choose_versions(context, settings)
    _choose_algorithms(context, settings)
    _load_certificate(context, settings)
    _choose_clients(context, settings)
    context.set_alpn_protocols(["http/1.1"])
    # Each connection shows its certificate anew: what was revoked does not live on in a ticket.
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.num_tickets = 0
    return TlsOffer(context, settings.client_allowed_sans, _expiry(settings))


def is_welcome(certificate: Mapping[str, Any] | None, allowed: tuple[str, ...]) -> bool:
    """Tell whether the verified certificate of a client has one of the names.

    Args:
        certificate: as `SSLSocket.getpeercert()` gives it; None or empty where there is none.
        allowed: `client_allowed_sans`; without one every client is.
    """
    if not allowed or not certificate:
        return True
    has_names = "subjectAltName" in certificate
    return has_names and any(name in allowed for name in names(certificate))


def _choose_versions(context: ssl.SSLContext, settings: TlsSettings) -> None:
    for key in ("min_version", "max_version"):
        if getattr(settings, key) not in _VERSIONS:
            raise ConfigError(
                f"{_SECTION}.{key}: TLS 1.0 and 1.1 are not served (RFC 8996); choose TLS12 or TLS13"
            )
    least, most = _VERSIONS[settings.min_version], _VERSIONS[settings.max_version]
    if settings.cipher_suites and not _old_suites(settings):
        least = ssl.TLSVersion.TLSv1_3
    if least > most:
        raise ConfigError(
            f"{_SECTION}.max_version: {settings.max_version} leaves no version to speak with this "
            "min_version and these cipher_suites"
        )
    context.minimum_version, context.maximum_version = least, most


def _choose_algorithms(context: ssl.SSLContext, settings: TlsSettings) -> None:
    suites = _old_suites(settings)
    try:
        if suites:
            context.set_ciphers(":".join(suites))
        if settings.curve_preferences:
            context.set_ecdh_curve(_CURVES[_only_curve(settings.curve_preferences)])
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(f"{_SECTION}: OpenSSL here refuses the suites or the curve") from error
    if settings.prefer_server_cipher_suites:
        context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    else:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE


def _only_curve(curves: tuple[str, ...]) -> str:
    if len(curves) > 1:
        raise ConfigError(
            f"{_SECTION}.curve_preferences: Python's ssl can be told one curve; give one, or leave "
            "the key out for OpenSSL's own choice"
        )
    return curves[0]


def _old_suites(settings: TlsSettings) -> list[str]:
    return [CIPHER_SUITES[name] for name in settings.cipher_suites if CIPHER_SUITES[name]]


def _load_certificate(context: ssl.SSLContext, settings: TlsSettings) -> None:
    with ExitStack() as stack:
        cert = settings.cert_file or stack.enter_context(_in_memory("cert", settings.cert))
        key = settings.key_file or stack.enter_context(_in_memory("key", settings.key))
        for name, path in (("cert_file", settings.cert_file), ("key_file", settings.key_file)):
            _check_readable(name, path)
        try:
            # Without a password of its own OpenSSL would ask for one on the terminal, and wait.
            context.load_cert_chain(cert, key, password=lambda: b"")
        except (ssl.SSLError, ValueError) as error:
            raise ConfigError(
                f"{_SECTION}: certificate and key cannot be used ({_reason(error)}); both must be "
                "PEM, belong together, and the key have no password"
            ) from error


def _expiry(settings: TlsSettings) -> float | None:
    if settings.cert_file is None:
        return earliest_expiry(settings.cert)
    return earliest_expiry(settings.cert_file.read_text("utf-8", "replace"))


def _choose_clients(context: ssl.SSLContext, settings: TlsSettings) -> None:
    wanted = settings.client_auth_type
    if wanted in _UNVERIFIED:
        raise ConfigError(
            f"{_SECTION}.client_auth_type: {wanted} cannot be served here; "
            f"choose {_UNVERIFIED[wanted]}"
        )
    context.verify_mode = _VERIFIED[wanted]
    has_ca = settings.client_ca or settings.client_ca_file
    if context.verify_mode is ssl.CERT_NONE:
        for key, given in (
            ("client_ca_file", has_ca),
            ("client_allowed_sans", settings.client_allowed_sans),
        ):
            if given:
                raise ConfigError(
                    f"{_SECTION}.{key}: has no effect without client_auth_type; "
                    "RequireAndVerifyClientCert is the one that protects"
                )
        return
    if not has_ca:
        # As in Go, where no CA means those of the system.
        context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
        return
    _load_ca(context, settings)


def _load_ca(context: ssl.SSLContext, settings: TlsSettings) -> None:
    _check_readable("client_ca_file", settings.client_ca_file)
    try:
        context.load_verify_locations(
            cafile=settings.client_ca_file, cadata=settings.client_ca or None
        )
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"{_SECTION}.client_ca_file: holds no certificate in PEM ({_reason(error)})"
        ) from error
    # In Go what stands there is trusted as it is; it need not lead to a root.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN


@contextmanager
def _in_memory(name: str, text: str) -> Iterator[str]:
    # OpenSSL reads files; a key that stands in the configuration must not reach another disk.
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
    with open(descriptor, "wb") as file:  # noqa: PTH123  there is no path
        file.write(text.encode())
        file.flush()
        yield f"/proc/self/fd/{descriptor}"


def _check_readable(name: str, path: Path | None) -> None:
    if path is None:
        return
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise ConfigError(f"{_SECTION}.{name}: cannot read {path}: {error.strerror}") from error


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or "not PEM"
    return str(reason).lower().replace("_", " ")
