"""Alertmanager's webhook payload, version 4, and its API's alert groups as values. No IO.

Strict on structure, lenient on unknown fields: Alertmanager adds fields between minor versions
(source: notify/webhook/webhook.go, 0.25 to 0.34; see docs of the webhook contract).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from remediator.errors import PayloadError

MAX_LABELS = 64
MAX_TEXT = 1024
MAX_ANNOTATION = 16 * 1024
MAX_ALERTS = 10_000

_FINGERPRINT = re.compile(r"[0-9a-f]{1,64}")
_LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
# Go writes up to nine digits of a second; datetime takes six.
_FRACTION = re.compile(r"(\.\d{1,6})\d*")


@dataclass(frozen=True)
class Alert:
    """One alert of a notification.

    `starts_at` and `ends_at` are Unix seconds; `ends_at` is None while it fires (Alertmanager
    sends the year 1 then). `fingerprint` identifies the label set, not the episode.
    """

    fingerprint: str
    status: Literal["firing", "resolved"]
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    starts_at: float
    ends_at: float | None

    @property
    def name(self) -> str:
        """The `alertname` label; empty when there is none."""
        return self.labels.get("alertname", "")


@dataclass(frozen=True)
class Notification:
    """One delivery: its alerts, and how many Alertmanager cut off."""

    receiver: str
    group_key: str
    truncated: int
    alerts: tuple[Alert, ...]
    digest: str


@dataclass(frozen=True)
class Listed:
    """A firing alert as Alertmanager's API lists it for one receiver.

    `hidden` says that it is kept from the receiver: silenced, inhibited, muted, or not dealt with
    yet. `updated_at` (Unix seconds) is when Alertmanager was last told of it.
    """

    alert: Alert
    receiver: str
    hidden: bool
    updated_at: float


@dataclass(frozen=True)
class Listing:
    """What one Alertmanager lists; `unreadable` alerts are left out of it."""

    alerts: tuple[Listed, ...]
    unreadable: int = 0


def parse(body: bytes) -> Notification:
    """The notification in `body` (UTF-8 JSON).

    Raises:
        PayloadError: it is not JSON or not a version 4 payload; the message names the field.
    """
    document = _load(body)
    if document.get("version") != "4":
        raise PayloadError(
            'this is not an Alertmanager webhook payload: "version" must be "4"; '
            "leave the webhook's payload template at its default"
        )
    alerts = document.get("alerts")
    if not isinstance(alerts, list):
        raise PayloadError('"alerts" must be a list')
    if len(alerts) > MAX_ALERTS:
        raise PayloadError(f'"alerts" holds {len(alerts)} alerts, more than {MAX_ALERTS}')
    truncated = document.get("truncatedAlerts", 0)
    if not isinstance(truncated, int) or isinstance(truncated, bool) or not 0 <= truncated < 2**31:
        raise PayloadError('"truncatedAlerts" must be a count')
    return Notification(
        receiver=_text(document.get("receiver", ""), "receiver", MAX_TEXT),
        group_key=_text(document.get("groupKey", ""), "groupKey", 64 * 1024),
        truncated=truncated,
        alerts=tuple(_alert(raw, f"alerts[{i}]") for i, raw in enumerate(alerts)),
        digest=hashlib.sha256(body).hexdigest(),
    )


def parse_groups(body: bytes) -> Listing:
    """The alerts of `GET /api/v2/alerts/groups`, one for each receiver that they are routed to.

    An alert that a delivery would be refused for is left out, so that it keeps no other one out.

    Raises:
        PayloadError: it is not a list of alert groups.
    """
    groups = _decode(body)
    if not isinstance(groups, list):
        raise PayloadError("the body is not a list of alert groups")
    found: list[Listed] = []
    unreadable = 0
    for i, group in enumerate(groups):
        where = f"[{i}]"
        if not isinstance(group, dict) or not isinstance(group.get("alerts"), list):
            raise PayloadError(f"{where} is not an alert group")
        receiver = group.get("receiver")
        name = receiver.get("name") if isinstance(receiver, dict) else None
        for raw in group["alerts"]:
            try:
                found.append(_listed(raw, _text(name, f"{where}.receiver.name", MAX_TEXT), where))
            except PayloadError:
                unreadable += 1
    return Listing(tuple(found), unreadable)


def _listed(raw: object, receiver: str, where: str) -> Listed:
    status = raw.get("status") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or not isinstance(status, dict):
        raise PayloadError(f"{where} has an alert without a status")
    # `mutedBy` is there from 0.28 on.
    kept_back = any(status.get(key) for key in ("silencedBy", "inhibitedBy", "mutedBy"))
    return Listed(
        # What has ended is not listed: `status` is an object here, and all that is listed fires.
        alert=_alert({**raw, "status": "firing"}, where),
        receiver=receiver,
        hidden=kept_back or status.get("state") != "active",
        updated_at=_time(raw.get("updatedAt"), f"{where}.updatedAt") or 0.0,
    )


def _load(body: bytes) -> dict[str, Any]:
    document = _decode(body)
    if not isinstance(document, dict):
        raise PayloadError("the body is not a JSON object")
    return document


def _decode(body: bytes) -> Any:
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise PayloadError("the body is not UTF-8") from None
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise PayloadError("the body is nested too deeply") from None
    except ValueError as error:
        raise PayloadError(f"the body is not JSON: {error}") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _alert(raw: object, where: str) -> Alert:
    if not isinstance(raw, dict):
        raise PayloadError(f"{where} must be an object")
    status = raw.get("status")
    if status not in ("firing", "resolved"):
        raise PayloadError(f'{where}.status must be "firing" or "resolved"')
    fingerprint = raw.get("fingerprint")
    if not isinstance(fingerprint, str) or not _FINGERPRINT.fullmatch(fingerprint):
        raise PayloadError(f"{where}.fingerprint must be Alertmanager's hexadecimal fingerprint")
    labels = _label_set(raw.get("labels"), f"{where}.labels", MAX_TEXT)
    if not labels.get("alertname"):
        raise PayloadError(f"{where}.labels has no alertname")
    ends_at = _time(raw.get("endsAt"), f"{where}.endsAt") if raw.get("endsAt") else None
    return Alert(
        fingerprint=fingerprint,
        status="firing" if status == "firing" else "resolved",
        labels=labels,
        annotations=_label_set(raw.get("annotations", {}), f"{where}.annotations", MAX_ANNOTATION),
        starts_at=_time(raw.get("startsAt"), f"{where}.startsAt") or 0.0,
        ends_at=ends_at if status == "resolved" else None,
    )


def _label_set(raw: object, where: str, limit: int) -> dict[str, str]:
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise PayloadError(f"{where} must be an object")
    if len(raw) > MAX_LABELS:
        raise PayloadError(f"{where} has {len(raw)} entries, more than {MAX_LABELS}")
    for name in raw:
        if len(name) > MAX_TEXT or not _LABEL_NAME.fullmatch(name):
            raise PayloadError(f"{where} has a name that is not a label name")
    return {name: _text(value, f"{where}.{name}", limit) for name, value in raw.items()}


def _text(raw: object, where: str, limit: int) -> str:
    if not isinstance(raw, str):
        raise PayloadError(f"{where} must be a string")
    if len(raw) > limit:
        raise PayloadError(f"{where} is longer than {limit} characters")
    try:
        raw.encode("utf-8")
    except UnicodeEncodeError:
        raise PayloadError(f"{where} holds half of a surrogate pair") from None
    return raw


def _time(raw: object, where: str) -> float | None:
    """Unix seconds of an RFC 3339 time; None for Go's zero time (year 1)."""
    if not isinstance(raw, str) or len(raw) > 64:
        raise PayloadError(f"{where} must be an RFC 3339 time")
    try:
        moment = datetime.fromisoformat(_FRACTION.sub(r"\1", raw))
        if moment.tzinfo is None:
            raise PayloadError(f"{where} has no time zone")
        if moment.year <= 1:
            return None
        return (moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()
    except (ValueError, OverflowError):
        raise PayloadError(f"{where} must be an RFC 3339 time") from None
