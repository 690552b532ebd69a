"""PCIe and NVLink of one GPU."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from exporter.backends._nvml_reader import Call, Reader
from exporter.readings import NvLink

LINK_COUNT_FIELD = 91
PCIE_REPLAY_FIELD = 94
PCIE_ERROR_FIELDS = {
    "correctable": 173,
    "receiver": 175,
    "bad_tlp": 176,
    "bad_dllp": 178,
    "non_fatal": 179,
    "fatal": 180,
    "lcrc": 182,
}
_STATE_FIELD = 165
# Up is what carries traffic: active, or asleep until there is some.
_UP_STATES = (1, 2)
# By kind: those of NVLink 5 (Blackwell) come instead of the first three.
_ERROR_FIELDS = {
    "replay": 161,
    "recovery": 162,
    "crc": 163,
    "link_recovery": 215,
    "link_recovery_failed": 214,
    "receive": 208,
}
# All links in KiB, or on NVLink 5 each link in bytes.
_TRAFFIC_FIELDS = {"transmit": 138, "receive": 139}
_LINK_TRAFFIC_FIELDS = {"transmit": 202, "receive": 204}
_ALL_LINKS = 0xFFFFFFFF
_MOST_LINKS = 36
_KIB = 1024
# `nvmlPcieUtilCounter_t`
_PCIE_DIRECTIONS = {"transmit": 0, "receive": 1}


def _throughput(counter: int) -> Call:
    return lambda nvml, handle: nvml.nvmlDeviceGetPcieThroughput(handle, counter)


def _link_state(link: int) -> Call:
    return lambda nvml, handle: nvml.nvmlDeviceGetNvLinkState(handle, link)


CALLS: Mapping[str, tuple[Call, ...]] = MappingProxyType(
    {
        "pcie_generation": (lambda n, h: n.nvmlDeviceGetCurrPcieLinkGeneration(h),),
        "pcie_width": (lambda n, h: n.nvmlDeviceGetCurrPcieLinkWidth(h),),
        "pcie_generation_max": (lambda n, h: n.nvmlDeviceGetMaxPcieLinkGeneration(h),),
        "pcie_width_max": (lambda n, h: n.nvmlDeviceGetMaxPcieLinkWidth(h),),
        "pcie_replays": (lambda n, h: n.nvmlDeviceGetPcieReplayCounter(h),),
        **{f"pcie_{name}": (_throughput(number),) for name, number in _PCIE_DIRECTIONS.items()},
    }
)


def link_number(value: int | None) -> int | None:
    """Return a generation or a width; zero is how some drivers spell "no PCIe"."""
    return value or None


def pcie_replays(reader: Reader, fields: Mapping[int, float]) -> int | None:
    """Return the counter, by a call of its own where there is no field.

    Raises:
        DeviceFault: the GPU is lost or wants a reset.
        BackendError: the driver is gone for all.
    """
    replays: Any = fields.get(PCIE_REPLAY_FIELD)
    if replays is None:
        replays = reader.read("pcie_replays")
    return None if replays is None else int(replays)


def pcie_traffic(reader: Reader) -> dict[str, int] | None:
    """Read bytes a second by direction, for which the driver looks for 20 ms each.

    Raises:
        DeviceFault, BackendError: as `pcie_replays`.
    """
    read = {name: reader.read(f"pcie_{name}") for name in _PCIE_DIRECTIONS}
    return {name: value * _KIB for name, value in read.items() if value is not None} or None


class LinkTraffic:
    """What went over links that count each for itself, summed up by field.

    A link that was down may begin again from zero. The sum must not go back for it, since that
    would look as if all of it had passed once more: it grows by what each link grows. For the same
    reason it outlives the opened device, and is never taken from elsewhere meanwhile (`by_link`).

    Attributes:
        by_link: whether the links are asked one by one; None until one way has told something.
    """

    def __init__(self) -> None:
        self.by_link: bool | None = None
        self._last: dict[tuple[int, int], int] = {}
        self._sums: dict[int, int] = {}

    def add(self, found: Mapping[tuple[int, int], float]) -> dict[int, int]:
        """Take counters by (field, link), and return the sums of the fields that are in it."""
        begun = set(self._sums)
        for (number, link), value in found.items():
            count = int(value)
            # What a link that is new had counted before is not of now.
            last = self._last.get((number, link), count if number in begun else 0)
            gain = count - last if count >= last else count
            self._last[number, link] = count
            self._sums[number] = self._sums.get(number, 0) + gain
        return {number: self._sums[number] for number, _ in found}

    def sums(self) -> dict[int, int]:
        """Return all sums, for when no link is up that could add to them."""
        return dict(self._sums)


class NvLinks:
    """The NVLinks of one GPU: two batches of fields, whatever their number is."""

    def __init__(self, reader: Reader, traffic: LinkTraffic) -> None:
        """Read by `reader`; `traffic` is what was summed up before."""
        self._reader = reader
        self._kinds: Mapping[str, int] = _ERROR_FIELDS
        self._links_traffic = traffic

    def read(
        self, fields: Mapping[int, float]
    ) -> tuple[tuple[NvLink, ...] | None, dict[str, int] | None]:
        """Return the links, and the bytes of all of them by direction; None where there are none.

        Raises:
            DeviceFault, BackendError: as `pcie_replays`.
        """
        count = min(int(fields.get(LINK_COUNT_FIELD, 0)), _MOST_LINKS)
        if count == 0:
            return None, None
        numbers = (_STATE_FIELD, *self._kinds.values())
        wanted = [(number, link) for link in range(count) for number in numbers]
        # A link that is down has no counters: that says nothing about when it is up again.
        found = self._reader.read_fields(wanted, remember=False)
        links = tuple(self._link(link, found) for link in range(count))
        # A kind that could not be read this time is not one that there is not.
        if any(link.up for link in links) and not self._reader.failures:
            told = {kind for link in links for kind in link.errors}
            self._kinds = {kind: one for kind, one in _ERROR_FIELDS.items() if kind in told}
        return links, self._traffic(links)

    def _link(self, link: int, found: Mapping[tuple[int, int], float]) -> NvLink:
        state = found.get((_STATE_FIELD, link))
        if state is None:
            state = self._reader.ask(f"nvlink_state_{link}", _link_state(link))
        errors = {
            kind: int(found[number, link])
            for kind, number in self._kinds.items()
            if (number, link) in found
        }
        return NvLink(link, None if state is None else int(state) in _UP_STATES, errors)

    def _traffic(self, links: tuple[NvLink, ...]) -> dict[str, int] | None:
        told = None if self._links_traffic.by_link else self._traffic_of_all()
        if told is not None:
            self._links_traffic.by_link = False
        elif self._links_traffic.by_link is not False:
            told = self._traffic_by_link(links)
            if told is not None:
                self._links_traffic.by_link = True
        return told

    def _traffic_of_all(self) -> dict[str, int] | None:
        wanted = [(number, _ALL_LINKS) for number in _TRAFFIC_FIELDS.values()]
        found = self._reader.read_fields(wanted)
        return {
            name: int(found[number, _ALL_LINKS]) * _KIB
            for name, number in _TRAFFIC_FIELDS.items()
            if (number, _ALL_LINKS) in found
        } or None

    def _traffic_by_link(self, links: tuple[NvLink, ...]) -> dict[str, int] | None:
        up = [link.link for link in links if link.up]
        wanted = [(number, link) for number in _LINK_TRAFFIC_FIELDS.values() for link in up]
        # None that is up: a sum that stands still, and not one that is not known.
        traffic = self._links_traffic
        sums = traffic.add(self._reader.read_fields(wanted)) if up else traffic.sums()
        return {
            name: sums[number] for name, number in _LINK_TRAFFIC_FIELDS.items() if number in sums
        } or None
