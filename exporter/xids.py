"""The table of Xid errors, `xids.json`: code, severity, what to do, meaning, who contests it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from types import MappingProxyType

from exporter.errors import ConfigError

TABLE = Path(__file__).with_name("xids.json")


class Severity(StrEnum):
    """How severe an Xid is by itself."""

    CRITICAL = "critical"
    WARNING = "warning"
    INFO = "info"


class Remedy(StrEnum):
    """What to do at once, as the vendor's catalogue has it."""

    RESTART_APP = "restart_app"
    RESET_GPU = "reset_gpu"
    REBOOT_HOST = "reboot_host"
    RESTART_VM = "restart_vm"
    INSPECT = "inspect"
    FOLLOW_OTHER = "follow_other"
    FOLLOW_RECOVERY_ACTION = "follow_recovery_action"
    CHECK_POWER_CABLES = "check_power_cables"
    UPDATE_SOFTWARE = "update_software"
    CONTACT_SUPPORT = "contact_support"
    NONE = "none"


_OF_NO_CARD = frozenset({Remedy.NONE, Remedy.RESTART_APP, Remedy.FOLLOW_OTHER})


@dataclass(frozen=True, slots=True)
class Xid:
    """One row.

    Attributes:
        meaning: a short label; empty for a code that the catalogue does not name.
        contested: who sees it otherwise; empty where all agree.
    """

    xid: int
    severity: Severity
    action: Remedy
    meaning: str = ""
    contested: str = ""


@cache
def table() -> Mapping[int, Xid]:
    """Return the shipped table by code."""
    return parse(TABLE.read_text("utf-8"))


def critical() -> tuple[int, ...]:
    """Return the codes that mean that the card must not be computed on any more, ascending."""
    return tuple(sorted(xid for xid, row in table().items() if row.severity is Severity.CRITICAL))


def counted_from_zero() -> tuple[int, ...]:
    """Return the codes of which a card has a count before the first one comes, ascending.

    Only then `increase()` sees the first one. They are those that a card may need something for, by
    the vendor or by somebody who contests it. What an application died of is not among them: with all
    of the table there would be as many series of Xids as of everything else.
    """
    return tuple(
        sorted(
            xid
            for xid, row in table().items()
            if row.severity is Severity.CRITICAL or row.action not in _OF_NO_CARD or row.contested
        )
    )


def parse(text: str) -> Mapping[int, Xid]:
    """Read a table.

    Raises:
        ConfigError: it is not JSON, a row is not understood, or a code is in it twice.
    """
    found: dict[int, Xid] = {}
    try:
        rows = [
            Xid(
                int(row["xid"]),
                Severity(row["severity"]),
                Remedy(row["action"]),
                str(row.get("meaning", "")),
                str(row.get("contested", "")),
            )
            for row in json.loads(text)["xids"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"the table of Xids is not understood: {error!r}") from error
    for row in rows:
        if row.xid in found:
            raise ConfigError(f"Xid {row.xid} is twice in the table: give it one action")
        found[row.xid] = row
    return MappingProxyType(found)
