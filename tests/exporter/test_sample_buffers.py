"""The driver's sample buffers: nothing between two readings is missed, and nothing is counted twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.backends._nvml_buffers import SampleBuffer
from exporter.backends.nvml import NvmlBackend
from exporter.backends.replay import ReplayBackend
from exporter.capture.file import Answer, Call, Capture, Header
from exporter.environment import Environment
from exporter.frames import SampleFrame, decode, encode
from exporter.policy import SaturationPolicy
from exporter.saturation import UtilisationHistory
from tests.exporter.fake_nvml import FakeNvml
from tests.exporter.fakes import Bench, FakeClock, sample
from tests.exporter.test_replay import MINIMAL
from tests.nvml_standin import Driver

SECOND = 1_000_000
# The clocks of a driver count from the boot or from 1970: neither is ours.
EPOCHS = (5 * SECOND, 1_763_760_000 * SECOND)


class Line:
    """A driver that samples every `period` seconds, read by somebody whose clock is another one."""

    def __init__(self, epoch: int = EPOCHS[0], period: float = 0.125) -> None:
        self.buffer = SampleBuffer()
        self.history = UtilisationHistory(SaturationPolicy(ratio=0.99, seconds=30), interval=1.0)
        self.entries: list[tuple[int, float | None]] = []
        self.now = 100.0
        self._at = epoch
        self._period = period

    def sampled(self, *ratios: float | None) -> Line:
        for ratio in ratios:
            self.passes(self._period)
            self.entries.append((self._at, ratio))
        return self

    def passes(self, seconds: float) -> Line:
        self.now += seconds
        self._at += round(seconds * SECOND)
        return self

    def stepped(self, seconds: float) -> Line:
        """Only the driver's clock moves."""
        self._at += round(seconds * SECOND)
        return self

    def read(self, snapshot: float = 0.0):
        since = self.buffer.since(self.now)
        spans = self.buffer.take([one for one in self.entries if one[0] > since], self.now)
        if spans is None:
            self.history.add(snapshot, self.now)
        else:
            self.history.cover(spans, self.now)
        return spans

    @property
    def saturated(self) -> float | None:
        return self.history.saturated_seconds(self.now)

    @property
    def busy(self) -> float | None:
        return self.history.busy_seconds


@pytest.fixture(params=EPOCHS, ids=["since boot", "since 1970"])
def line(request) -> Line:
    made = Line(request.param)
    made.sampled(0.0).read()
    return made


def test_a_dip_between_two_readings_ends_saturation(line) -> None:
    line.sampled(*[1.0] * 8).read()
    assert line.saturated == pytest.approx(1.0)
    line.sampled(1.0, 1.0, 0.4, 1.0, 1.0, 1.0, 1.0, 1.0).read()
    assert line.saturated == pytest.approx(5 * 0.125)


def test_a_peak_between_two_readings_is_busy_time(line) -> None:
    line.sampled(0.0, 0.0, 1.0, 0.5, 0.0, 0.0, 0.0, 0.0).read(snapshot=0.0)
    assert line.busy == pytest.approx(1.5 * 0.125)


def test_saturation_counts_from_the_first_sample_that_says_so(line) -> None:
    line.sampled(0.2, *[1.0] * 7).read()
    for _ in range(30):
        line.sampled(*[1.0] * 8).read()
    assert line.saturated == pytest.approx(30 + 7 * 0.125)
    assert line.busy == pytest.approx(30 + 7 * 0.125 + 0.2 * 0.125)


def test_overlapping_buffers_count_once(line) -> None:
    """A driver that gives all that it has each time."""
    line.buffer.since = lambda now: 0
    for _ in range(5):
        line.sampled(*[0.5] * 8).read()
    assert line.busy == pytest.approx(5 * 0.5)


def test_what_was_before_the_first_reading_is_not_ours() -> None:
    line = Line().sampled(*[1.0] * 100)
    assert line.read() == ()
    assert (line.busy, line.saturated) == (0.0, 0.0)


def test_a_late_reading_misses_nothing_that_the_driver_kept(line) -> None:
    line.sampled(*[1.0] * 8).read()
    line.sampled(*[1.0] * 160)
    assert line.saturated is None
    line.read()
    assert line.saturated == pytest.approx(21)
    assert line.busy == pytest.approx(21)


@pytest.mark.parametrize(("seconds", "before"), [(3.0, 1.0), (4.0, 0.0)])
def test_a_gap_in_the_buffer_neither_extends_nor_ends_it_until_it_is_too_long(
    line, seconds, before
) -> None:
    line.sampled(*[1.0] * 8).read()
    line.passes(seconds).sampled(*[1.0] * 8).read()
    assert line.saturated == pytest.approx(before + 1.0, abs=0.13)
    assert line.busy == pytest.approx(2.0, abs=0.13)


def test_a_sample_that_is_no_reading_is_a_gap(line) -> None:
    line.sampled(1.0, 1.0, None, None, 1.0, 1.0, 1.0, 1.0).read()
    assert line.saturated == pytest.approx(6 * 0.125)
    assert line.busy == pytest.approx(6 * 0.125)


def test_a_driver_that_samples_once_a_second_is_waited_for(line) -> None:
    slow = Line(period=1.0)
    slow.sampled(1.0).read()
    for _ in range(4):
        slow.sampled(1.0).read()
        slow.passes(0.4).read()
        slow.stepped(-0.4)
        slow.now -= 0.4
    assert slow.busy == pytest.approx(4.0)


def test_a_buffer_that_runs_dry_gives_way_to_the_instantaneous_reading(line) -> None:
    line.sampled(*[1.0] * 8).read()
    spans = [line.passes(1.0).read(snapshot=0.0) for _ in range(4)]
    assert spans == [(), None, None, None]
    assert (line.saturated, line.busy) == (0.0, pytest.approx(1.0))
    line.sampled(*[0.5] * 8).read()
    assert line.busy == pytest.approx(1.5, abs=0.07)


def test_time_that_the_instantaneous_reading_covered_is_not_counted_again(line) -> None:
    for _ in range(3):
        line.passes(1.0).read(snapshot=1.0)
    busy = line.busy
    # The samples come after all, with timestamps of that time.
    line.entries += [(line._at - one * 125_000, 1.0) for one in range(24)]
    line.read()
    assert line.busy == busy


@pytest.mark.parametrize("step", [7200.0, 0.7])
def test_a_clock_that_is_set_forward_made_no_time_pass(line, step) -> None:
    line.sampled(*[1.0] * 8).read()
    line.stepped(step)
    for _ in range(3):
        line.sampled(*[1.0] * 8).read()
    assert line.busy <= line.now - 100
    assert line.saturated == pytest.approx(4.0, abs=0.8)


def test_after_a_clock_was_set_back_the_buffer_is_found_again(line) -> None:
    line.sampled(*[1.0] * 8).read()
    line.entries.clear()
    line.stepped(-1.0)
    line._at -= 2 * SECOND if line._at > 10 * SECOND else 0
    spans = [line.sampled(*[0.5] * 8).read(snapshot=0.5) for _ in range(80)]
    assert spans[-1] not in (None, ())
    assert line.busy == pytest.approx(1 + 40, abs=1.0)
    assert line.busy <= line.now - 100


def test_no_time_is_claimed_that_did_not_pass(line) -> None:
    """Whatever a driver says, a second has one second."""
    line.entries += [(line._at + one * SECOND, 1.0) for one in range(1, 40)]
    line.now += 1.0
    spans = line.read()
    assert sum(seconds for seconds, _ in spans) == pytest.approx(1.0)
    assert line.busy == pytest.approx(1.0)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("samples"), st.integers(1, 40)),
            st.tuples(st.just("gap"), st.floats(0.01, 30)),
            st.tuples(st.just("step"), st.floats(-50, 50)),
            st.tuples(st.just("read"), st.floats(0, 1)),
        ),
        max_size=40,
    )
)
def test_whatever_happens_no_more_time_is_told_than_there_was(events) -> None:
    line = Line(EPOCHS[1])
    line.sampled(1.0).read()
    for kind, value in events:
        if kind == "samples":
            line.sampled(*[1.0] * value)
        elif kind == "gap":
            line.passes(value)
        elif kind == "step":
            line.stepped(value)
        else:
            line.read(snapshot=value)
        elapsed = line.now - 100.125
        assert 0 <= line.busy <= elapsed + 1e-6
        assert 0 <= (line.saturated or 0) <= elapsed + 1e-6


def test_equal_samples_travel_as_one(line) -> None:
    assert line.sampled(*[1.0] * 8).read() == ((1.0, 1.0),)
    frame = SampleFrame(
        "GPU-0", 1.0, 2.0, sample(), 0.1, (), ((0.5, 1.0), (0.25, None), (0.25, 0.0))
    )
    assert decode(encode(frame)) == frame


def test_the_store_follows_the_drivers_samples() -> None:
    bench = Bench()
    for spans in ((), ((1.0, 1.0),), ((0.5, 1.0), (0.5, 0.25))):
        now = bench.clock.monotonic()
        read = sample(utilization_ratio=1.0)
        bench.store.apply(SampleFrame("GPU-0", bench.clock.time(), now, read, 0.0, (), spans))
        bench.advance(1.0)
    view = bench.gpu()
    assert (view.busy_seconds, view.saturated_seconds) == (1.625, 0.0)
    assert view.sample.utilization_ratio == 1.0


def entry(at: float, value: float) -> SimpleNamespace:
    return SimpleNamespace(timeStamp=round(at * SECOND), sampleValue=SimpleNamespace(uiVal=value))


class Sampling(FakeNvml):
    """A library whose buffers a test fills: by type, (value type, entries)."""

    def __init__(self) -> None:
        super().__init__(gpus=1)
        self.buffers: dict[int, tuple[int, list[SimpleNamespace]]] = {}
        self.asked: list[tuple[int, int]] = []

    def answer(self, name, handle, arguments):
        if name != "nvmlDeviceGetSamples":
            return super().answer(name, handle, arguments)
        kind, since = arguments
        self.asked.append((kind, since))
        if kind not in self.buffers:
            raise self.NVMLError(3)
        value_type, entries = self.buffers[kind]
        new = [one for one in entries if one.timeStamp > since]
        if not new:
            raise self.NVMLError(6)
        return value_type, new


@pytest.fixture
def nvml() -> Sampling:
    return Sampling()


def backend_of(nvml: Sampling, clock: FakeClock) -> NvmlBackend:
    return NvmlBackend(nvml, Environment(), clock)


def test_a_driver_without_buffers_is_asked_once_and_read_as_before(nvml) -> None:
    device = backend_of(nvml, FakeClock()).open().devices[0]
    for _ in range(3):
        result = device.sample()
        assert (result.utilization, result.errors) == (None, ())
        assert result.sample.utilization_ratio == 0.97
    assert nvml.asked == [(1, 0)]


def test_it_is_asked_for_what_it_was_not_asked_before(nvml) -> None:
    clock = FakeClock()
    nvml.buffers[1] = (1, [entry(7.0, 10)])
    backend = backend_of(nvml, clock)
    device = backend.open().devices[0]
    assert device.sample().utilization == ()
    nvml.buffers[1][1].extend((entry(7.5, 50), entry(8.0, 100)))
    clock.now += 1
    assert device.sample().utilization == ((0.5, 0.5), (0.5, 1.0))
    # Opened again, it goes on where it was: the driver's buffer did.
    device = backend.open().devices[0]
    nvml.buffers[1][1].append(entry(8.5, 20))
    clock.now += 1
    assert device.sample().utilization == ((0.5, 0.2),)
    assert nvml.asked == [(1, 0), (1, 7 * SECOND), (1, 8 * SECOND)]


def test_an_empty_buffer_is_no_error(nvml) -> None:
    nvml.buffers[1] = (1, [])
    device = backend_of(nvml, FakeClock()).open().devices[0]
    assert device.sample().errors == ()
    # The binding makes room for no entry at all, which the library calls an invalid argument.
    nvml.errors["nvmlDeviceGetSamples"] = 2
    result = device.sample()
    assert (result.utilization, result.errors) == (None, ())


def test_a_buffer_that_fails_costs_only_itself(nvml) -> None:
    nvml.errors["nvmlDeviceGetSamples"] = 10
    result = backend_of(nvml, FakeClock()).open().devices[0].sample()
    assert (result.utilization, result.errors) == (None, ("timeout",))
    assert result.sample.utilization_ratio == 0.97


def test_values_that_are_no_percentage_and_types_that_nobody_knows(nvml) -> None:
    clock = FakeClock()
    nvml.buffers[1] = (1, [entry(1.0, 10), entry(1.5, 4_294_967_295), entry(2.0, 40)])
    device = backend_of(nvml, clock).open().devices[0]
    nvml.buffers[1] = (1, nvml.buffers[1][1][:1])
    device.sample()
    nvml.buffers[1] = (1, [entry(1.5, 4_294_967_295), entry(2.0, 40)])
    clock.now += 1
    assert device.sample().utilization == ((0.5, None), (0.5, 0.4))
    nvml.buffers[1] = (9, [entry(3.0, 40)])
    clock.now += 1
    assert device.sample().utilization == ()


def test_energy_is_summed_up_of_power_only_where_the_card_does_not_count_it(nvml) -> None:
    clock = FakeClock()
    nvml.buffers[0] = (1, [entry(1.0, 90_000)])
    device = backend_of(nvml, clock).open().devices[0]
    assert device.sample().sample.energy_joules == 5000
    assert (0, 0) not in nvml.asked
    nvml.errors["nvmlDeviceGetTotalEnergyConsumption"] = 3
    assert device.sample().sample.energy_joules == 0
    nvml.buffers[0][1].extend((entry(1.5, 100_000), entry(2.0, 300_000)))
    clock.now += 1
    assert device.sample().sample.energy_joules == 200
    # Dry for too long: what was used meanwhile is not known.
    clock.now += 5
    assert device.sample().sample.energy_joules is None
    nvml.buffers[0][1].append(entry(7.0, 100_000))
    clock.now += 1
    assert device.sample().sample.energy_joules == pytest.approx(216.667, abs=0.001)


def test_a_card_with_neither_counter_nor_power_samples_tells_no_energy(nvml) -> None:
    nvml.errors["nvmlDeviceGetTotalEnergyConsumption"] = 3
    device = backend_of(nvml, FakeClock()).open().devices[0]
    assert [device.sample().sample.energy_joules for _ in range(2)] == [None, None]


def test_a_replay_gives_the_buffers_in_their_order() -> None:
    samples = Call("nvmlDeviceGetSamples", 0, (1,))
    answers = (
        Answer({"type": 1, "samples": [[1 * SECOND, 10]]}),
        Answer({"type": 1, "samples": [[1_500_000, 30]]}),
        Answer(error=6),
    )
    backend = ReplayBackend(Capture(Header(), MINIMAL | {samples: answers}))
    device = backend.open().devices[0]
    assert device.sample().utilization == ()
    assert device.sample().errors == ()


def test_through_the_real_binding_and_into_a_capture(tmp_path) -> None:
    driver = Driver(tmp_path / "driver")
    driver.set_rows(0, "sample", (1, 1_000_000, 10), (1, 1_500_000, 30), (0, 1_500_000, 52_000))
    script = (
        "from exporter.backends import registry; from exporter.backends.base import BackendOptions\n"
        "import json, sys\n"
        "device = registry.create('nvml', BackendOptions()).open().devices[0]\n"
        "for line in sys.stdin:\n"
        "    read = device.sample(); print(json.dumps([read.utilization, read.errors]), flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        env=os.environ | driver.env(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:

        def read():
            process.stdin.write("\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        assert read() == [[], []]
        time.sleep(0.05)
        driver.set_rows(0, "sample", (1, 1_500_000, 30), (1, 1_520_000, 100), (1, 1_540_000, 100))
        assert read() == [[[0.04, 1.0]], []]
        driver.fail("nvmlDeviceGetSamples", error=10)
        assert read()[1] == ["timeout"]
        process.stdin.close()
    driver.clear()
    done = subprocess.run(
        [sys.executable, "-m", "exporter", "capture", "-", "--passes=1"],
        env=os.environ | driver.env(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    (recorded,) = (one for one in lines if one.get("call") == "nvmlDeviceGetSamples")
    assert recorded["args"] == [1]
    assert recorded["result"] == {
        "type": 1,
        "samples": [[1_500_000, 30], [1_520_000, 100], [1_540_000, 100]],
    }
