"""What the certificates of a PEM file say of themselves."""

from __future__ import annotations

import datetime as dt
import ipaddress
import re
import ssl
from collections.abc import Iterator, Mapping
from typing import Any

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_VERSION, _UTC_TIME = 0xA0, 0x17


def names(certificate: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return the names of a verified certificate: its subject alternative names.

    A certificate that has none is called by its common name, as in RFC 2818.

    Args:
        certificate: as `SSLSocket.getpeercert()` gives it; None or empty where there is none.
    """
    if not certificate:
        return ()
    found = tuple(_name(kind, value) for kind, value in certificate.get("subjectAltName", ()))
    if found:
        return found
    subject = (pair for part in certificate.get("subject", ()) for pair in part)
    return tuple(value for key, value in subject if key == "commonName")


def earliest_expiry(pem: str) -> float | None:
    """Return when the first certificate of a PEM file ceases to be good (seconds since the epoch).

    None where it holds none that can be read.
    """
    ends = []
    for text in _PEM.findall(pem):
        try:
            ends.append(_not_after(ssl.PEM_cert_to_DER_cert(text)))
        except (ValueError, IndexError, StopIteration):
            continue
    return min(ends, default=None)


def _name(kind: str, value: str) -> str:
    if kind != "IP Address":
        return value
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        return value


def _not_after(der: bytes) -> float:
    """RFC 5280, 4.1: version, serial number, algorithm, issuer, validity, …."""
    ((_, certificate),) = _fields(der)
    fields = list(_fields(next(_fields(certificate))[1]))
    position = 4 if fields[0][0] == _VERSION else 3
    tag, end = list(_fields(fields[position][1]))[1]
    text = end.decode("ascii")
    form = "%y%m%d%H%M%SZ" if tag == _UTC_TIME else "%Y%m%d%H%M%SZ"
    return dt.datetime.strptime(text, form).replace(tzinfo=dt.UTC).timestamp()


def _fields(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of each of the values that stand one behind the other."""
    at = 0
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(der[at : at + size], "big"), at + size
        yield tag, der[at : at + length]
        at += length
