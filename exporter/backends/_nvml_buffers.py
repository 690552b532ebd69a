"""The driver's own sample buffers, followed from read to read.

The driver samples a GPU several times a second and keeps the last samples. What happened between
two of our readings is in there, so that nothing is missed.

What is known of these buffers, and what follows from it:

* A timestamp is in microseconds of a clock that differs between drivers (the epoch, or the boot),
  so it is only ever compared with others of its kind, and never with a clock of ours.
* A value is the share of the time since the sample before it.
* The buffers of an idle GPU run dry, and its driver then says "not found".
* The clock can be stepped: time that did not pass on our own clock was not covered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

from exporter.backends import _nvml_errors as codes
from exporter.backends._nvml_links import LinkTraffic
from exporter.backends._nvml_processes import ProcessSamples
from exporter.backends._nvml_reader import VALUE_TYPES, Call, Reader
from exporter.readings import Spans

TOTAL_POWER, GPU_UTILIZATION = 0, 1
_MICRO = 1e-6
# A driver samples every 1/6 s to 1 s (nvidia-smi's manual); a longer pause is a gap.
_LONGEST_PERIOD = 1.2
_USUAL_PERIOD = 1 / 6
_SHORTEST_PERIOD = 0.01
# The newest sample is a little old, so that one read may have nothing and the next one twice as much.
_DRY_SECONDS = 1.5
_LAG_SECONDS = 2.0
# A buffer that stays dry is looked at as a whole so often: its clock may have been set back.
_LOOK_SECONDS = 30.0
# With 0 and "invalid argument" the binding says that there was nothing to make room for.
_NOTHING_NEW = codes.EMPTY | {0, codes.INVALID_ARGUMENT, codes.INSUFFICIENT_SIZE}

# A timestamp, and the value or None where it is no reading.
Entry = tuple[int, float | None]


class SampleBuffer:
    """One buffer of one GPU. It outlives the opened device, since the driver's buffer does too."""

    def __init__(self) -> None:
        self._last = 0
        self._period = _USUAL_PERIOD
        self._read_at: float | None = None
        self._heard_at = 0.0
        self._looked_at = 0.0
        # Time that has passed and was not told of yet.
        self._owed = 0.0

    @property
    def heard(self) -> bool:
        """Whether there was ever a sample in it."""
        return self._last > 0

    def since(self, now: float) -> int:
        """Return after which timestamp to ask at `now` (monotonic); 0 is for the whole buffer."""
        dry = now - max(self._heard_at, self._looked_at)
        return 0 if dry > _LOOK_SECONDS else self._last

    def take(self, entries: Iterable[Entry], now: float) -> Spans | None:
        """Take what was read at `now` (monotonic seconds).

        Returns:
            Spans of time since the last read, oldest first, never longer than the time that has
            passed; empty when the driver has not sampled yet; None when the buffer is dry, and
            only an instantaneous reading can tell.
        """
        passed = 0.0 if self._read_at is None else max(0.0, now - self._read_at)
        self._read_at = now
        told = dict(entries)
        new = sorted((at, value) for at, value in told.items() if at > self._last)
        if not new:
            return self._nothing_new(max(told, default=self._last), passed, now)
        # What was before the first read is not ours to count.
        spans = self._spans(new) if self.heard else []
        passed = passed if self.heard else 0.0
        self._last, self._heard_at = new[-1][0], now
        return self._bounded(spans, passed + self._owed)

    def _nothing_new(self, newest: int, passed: float, now: float) -> Spans | None:
        if newest < self._last:
            # The whole buffer is older than what was seen of it: the clock was set back.
            self._last, self._heard_at = newest, now
        elif self.heard and now - self._heard_at <= _DRY_SECONDS:
            self._owed = min(_LAG_SECONDS, self._owed + passed)
            return ()
        if now - max(self._heard_at, self._looked_at) > _LOOK_SECONDS:
            self._looked_at = now
        self._owed = 0.0
        return None

    def _spans(self, new: list[Entry]) -> list[tuple[float, float | None]]:
        spans: list[tuple[float, float | None]] = []
        before = self._last
        for at, value in new:
            seconds, before = (at - before) * _MICRO, at
            if seconds > _LONGEST_PERIOD:
                spans.append((seconds - self._period, None))
                seconds = self._period
            self._period = max(_SHORTEST_PERIOD, min(self._period, seconds))
            spans.append((seconds, value))
        return spans

    def _bounded(self, spans: list[tuple[float, float | None]], limit: float) -> Spans:
        """Leave out, from the oldest, what cannot have been: more time than has passed."""
        kept, left = [], limit
        for seconds, value in reversed(spans):
            if left <= 0:
                break
            kept.append((min(seconds, left), value))
            left -= seconds
        self._owed = min(_LAG_SECONDS, max(0.0, left))
        return _merged(reversed(kept))


class Buffers:
    """The buffers of one GPU, and what is summed up from them and from its links."""

    def __init__(self) -> None:
        self.processes = ProcessSamples()
        self.links = LinkTraffic()
        self._utilization = SampleBuffer()
        self._power = SampleBuffer()
        self._joules = 0.0

    def utilization(self, reader: Reader, now: float) -> Spans | None:
        """Return the utilisation since the last call, as ratios; None: see `SampleBuffer.take`."""
        return _read(self._utilization, reader, GPU_UTILIZATION, _ratio, now)

    def energy(self, reader: Reader, now: float) -> float | None:
        """Return the energy in joules since the first call; None while no samples tell of it."""
        spans = _read(self._power, reader, TOTAL_POWER, _watts, now)
        if spans is None:
            return None
        self._joules += sum(seconds * watts for seconds, watts in spans if watts is not None)
        return round(self._joules, 3)


def _read(
    buffer: SampleBuffer,
    reader: Reader,
    kind: int,
    scale: Callable[[float], float | None],
    now: float,
) -> Spans | None:
    entries = reader.ask(f"samples_{kind}", _samples(kind, buffer.since(now)))
    scaled = ((at, None if value is None else scale(value)) for at, value in entries or ())
    return buffer.take(scaled, now)


def _samples(kind: int, since: int) -> Call:
    def call(nvml: Any, handle: Any) -> list[Entry]:
        try:
            value_type, samples = nvml.nvmlDeviceGetSamples(handle, kind, since)
        except nvml.NVMLError as error:
            if error.value in _NOTHING_NEW:
                return []
            raise
        member = VALUE_TYPES.get(value_type)
        if member is None:
            # Values that cannot be understood are no readings.
            return []
        return [(int(one.timeStamp), getattr(one.sampleValue, member)) for one in samples]

    return call


def _ratio(percent: float) -> float | None:
    return percent / 100 if 0 <= percent <= 100 else None


def _watts(milliwatts: float) -> float | None:
    # All bits set is how the driver spells "no value".
    return milliwatts / 1000 if 0 <= milliwatts < 2**31 else None


def _merged(spans: Iterable[tuple[float, float | None]]) -> Spans:
    runs = ((value, [one[0] for one in run]) for value, run in groupby(spans, lambda one: one[1]))
    return tuple((round(sum(seconds), 6), value) for value, seconds in runs)
