"""Opens the cards of an enumeration one after the other, for who has no threads for them."""

from __future__ import annotations

import contextlib
import dataclasses

from exporter.backends.base import Device, Enumeration, Versions
from exporter.errors import DeviceFault, ReadingError
from exporter.frames import FailedDevice


def open_in_turn(found: Enumeration) -> Enumeration:
    """Return it with every card either opened or failed.

    Raises:
        BackendError: the driver is gone for all.
    """
    listens = False
    if found.events is not None:
        with contextlib.suppress(ReadingError):
            listens = found.events.open()
    devices: list[Device] = list(found.devices)
    failed, watched = list(found.failed), list(found.watched)
    for card in found.cards:
        try:
            opened = card.open()
        except DeviceFault as fault:
            failed.append(FailedDevice(card.index, fault.reason, str(fault)))
            continue
        devices.append(opened.device)
        if opened.watched:
            watched.append(opened.device.info.uuid)
    versions = Versions(found.driver_version, found.cuda_version)
    if found.versions is not None:
        versions = found.versions()
    if found.events is not None and not watched:
        found.events.close()
        listens = False
    return dataclasses.replace(
        found,
        devices=tuple(devices),
        failed=tuple(failed),
        watched=tuple(watched),
        driver_version=versions.driver,
        cuda_version=versions.cuda,
        events=found.events if listens else None,
        cards=(),
        versions=None,
    )
