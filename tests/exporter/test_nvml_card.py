"""A card of NVML by itself: what it asks for again, and how it is registered for events."""

from __future__ import annotations

import threading

import pytest

from exporter.backends._nvml_events import NvmlEvents
from exporter.backends.base import XidEvent
from exporter.backends.nvml import NvmlBackend
from exporter.environment import Environment
from exporter.errors import BackendError, DeviceFault, ReadingError
from exporter.readings import FaultReason
from tests.exporter.fake_nvml import FakeNvml
from tests.exporter.fakes import FakeClock


@pytest.fixture
def nvml() -> FakeNvml:
    return FakeNvml()


def begun(nvml: FakeNvml):
    found = NvmlBackend(nvml, Environment(), FakeClock()).begin()
    found.events.open()
    return found


def test_counting_the_cards_asks_none_of_them(nvml) -> None:
    found = begun(nvml)
    assert [card.index for card in found.cards] == [0, 1]
    assert not [name for name, _ in nvml.calls if name.startswith("nvmlDeviceGetHandle")]


def test_only_what_failed_is_read_again(nvml) -> None:
    nvml.errors["nvmlDeviceGetName"] = 999
    nvml.errors["nvmlDeviceGetMaxClockInfo"] = 10
    nvml.errors["nvmlDeviceGetVbiosVersion"] = 3
    card = begun(nvml).cards[0]
    opened = card.open()
    assert (opened.complete, opened.watched) == (False, True)
    assert sorted(opened.errors) == ["timeout"] * 4 + ["unknown"]
    assert (opened.device.info.name, opened.device.info.clocks_max_hertz) == ("", {})
    nvml.errors.clear()
    nvml.calls.clear()
    again = card.open()
    assert (again.complete, again.errors, again.device) == (True, (), opened.device)
    assert again.device.info.name == "NVIDIA A100"
    assert again.device.info.clocks_max_hertz["sm"] == 1.41e9
    assert {name for name, _ in nvml.calls} == {"nvmlDeviceGetName", "nvmlDeviceGetMaxClockInfo"}


def test_what_there_is_no_data_of_yet_is_asked_for_again_and_is_no_error(nvml) -> None:
    nvml.errors["nvmlDeviceGetVbiosVersion"] = 6
    card = begun(nvml).cards[0]
    opened = card.open()
    assert (opened.complete, opened.errors, opened.device.info.vbios_version) == (False, (), "")
    nvml.errors.clear()
    assert card.open().complete
    assert opened.device.info.vbios_version == "92.00"


def test_a_registration_that_fails_is_made_again_and_one_that_cannot_be_is_not(nvml) -> None:
    nvml.errors["nvmlDeviceRegisterEvents", 0] = 999
    nvml.errors["nvmlDeviceRegisterEvents", 1] = 3
    first, second = begun(nvml).cards
    opened = first.open()
    assert (opened.watched, opened.complete, opened.errors) == (False, False, ("unknown",))
    opened = second.open()
    assert (opened.watched, opened.complete, opened.errors) == (False, True, ())
    nvml.errors.clear()
    opened = first.open()
    assert (opened.watched, opened.complete, opened.errors) == (True, True, ())


@pytest.mark.parametrize(
    ("function", "code", "reason"),
    [
        ("nvmlDeviceGetHandleByIndex", 15, FaultReason.LOST),
        ("nvmlDeviceGetHandleByIndex", 999, FaultReason.UNKNOWN),
        ("nvmlDeviceGetUUID", 10, FaultReason.TIMEOUT),
        ("nvmlDeviceGetMemoryInfo", 16, FaultReason.RESET_REQUIRED),
    ],
)
def test_a_card_that_does_not_open_says_why(nvml, function, code, reason) -> None:
    nvml.errors[function] = code
    with pytest.raises(DeviceFault) as raised:
        begun(nvml).cards[0].open()
    assert raised.value.reason is reason


def test_a_card_that_finds_the_driver_gone_says_so(nvml) -> None:
    nvml.errors["nvmlDeviceGetHandleByIndex", 1] = 9
    with pytest.raises(BackendError):
        begun(nvml).cards[1].open()


def test_a_card_whose_uuid_is_no_text_is_at_fault(nvml) -> None:
    original = nvml.answer

    def answer(name, handle, arguments):
        if name == "nvmlDeviceGetUUID":
            return b"\xff".decode()
        return original(name, handle, arguments)

    nvml.answer = answer
    with pytest.raises(DeviceFault, match="no text"):
        begun(nvml).cards[0].open()


def test_versions_tell_what_failed_and_not_what_a_driver_lacks(nvml) -> None:
    found = begun(nvml)
    nvml.errors["nvmlSystemGetDriverVersion"] = 999
    nvml.errors["nvmlSystemGetCudaDriverVersion"] = 13
    versions = found.versions()
    assert (versions.driver, versions.cuda, versions.errors) == ("", "", ("unknown",))


def test_a_set_that_is_made_anew_has_the_cards_of_the_one_before(nvml) -> None:
    events = NvmlEvents(nvml, Environment())
    assert events.open()
    assert events.register("GPU-0", 0).watched
    assert events.register("GPU-1", 1).watched
    events.close()
    nvml.errors["nvmlDeviceRegisterEvents", 1] = 999
    with pytest.raises(ReadingError, match="unknown"):
        events.open()
    nvml.errors.clear()
    nvml.calls.clear()
    assert events.open()
    assert [card for name, card in nvml.calls if name == "nvmlDeviceRegisterEvents"] == [1, 0]
    assert nvml.calls.count(("nvmlEventSetFree", "set")) == 1
    assert events.wait(1.0) == (XidEvent("GPU-1", 79),)


def test_a_set_is_not_given_back_under_a_registration(nvml) -> None:
    events = NvmlEvents(nvml, Environment())
    events.open()
    inside, come_back = threading.Event(), threading.Event()
    original = nvml.answer

    def answer(name, handle, arguments):
        if name == "nvmlDeviceRegisterEvents":
            inside.set()
            come_back.wait(20)
        return original(name, handle, arguments)

    nvml.answer = answer
    registering = threading.Thread(target=events.register, args=("GPU-0", 0))
    registering.start()
    try:
        assert inside.wait(20)
        events.close()
        assert ("nvmlEventSetFree", "set") not in nvml.calls
    finally:
        come_back.set()
        registering.join(20)


def test_while_the_set_cannot_be_made_a_card_is_not_watched_but_will_be(nvml) -> None:
    nvml.errors["nvmlEventSetCreate"] = 999
    events = NvmlEvents(nvml, Environment())
    with pytest.raises(ReadingError, match="unknown"):
        events.open()
    registered = events.register("GPU-0", 0)
    assert (registered.watched, registered.final, registered.errors) == (False, False, ())
    nvml.errors.clear()
    assert events.open()
    assert events.register("GPU-0", 0).watched


def test_a_driver_without_events_is_asked_once(nvml) -> None:
    nvml.errors["nvmlEventSetCreate"] = 13
    events = NvmlEvents(nvml, Environment())
    assert not events.open()
    registered = events.register("GPU-0", 0)
    assert (registered.watched, registered.final) == (False, True)
