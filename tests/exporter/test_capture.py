"""What `gpu-exporter capture` writes, asked of the stand-in driver through the real ctypes binding."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from exporter import cli
from exporter.capture import file as capture_file
from exporter.capture.command import CaptureOptions, Session
from exporter.capture.file import Answer, Call, Header
from exporter.capture.recorder import Disguise, Recorder
from exporter.clock import SystemClock
from exporter.errors import CaptureError
from tests.nvml_standin import Driver, DriverProcess

# A capture that is to see a call hang cannot wait for as long as a person would.
SHORT_OF_PATIENCE = (
    "import exporter.capture.command as c; c.CaptureOptions.__init__.__defaults__ = (3, 1.0, True, 0.3);"
    "import sys; from exporter.cli import main; sys.exit(main())"
)


@pytest.fixture
def driver(tmp_path) -> Driver:
    return Driver(tmp_path / "driver", gpus=2)


@pytest.fixture
def capture(driver, tmp_path):
    def run(*arguments: str, program: tuple[str, ...] = ("-m", "exporter")):
        return subprocess.run(
            [sys.executable, *program, "capture", *arguments, "--sample-interval=0.1"],
            env=os.environ | driver.env(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def lines_of(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_every_call_is_there_with_its_answer_once_a_pass(driver, capture, tmp_path) -> None:
    driver.set(1, energy_mj=None)
    path = tmp_path / "a.jsonl"
    done = capture(str(path), "--passes=2")
    assert (done.returncode, done.stdout) == (0, "")
    assert "2 GPUs" in done.stderr
    got = capture_file.load(path)
    assert got.header.source == "recorded"
    assert got.header.exporter
    assert got.header.nvml_py
    power = got.answers[Call("nvmlDeviceGetPowerUsage", 1)]
    assert [one.result for one in power] == [52_000, 52_000]
    assert all(one.seconds is not None and one.seconds >= 0 for one in power)
    energy = got.answers[Call("nvmlDeviceGetTotalEnergyConsumption", 1)]
    # Asked once: what is not supported is not asked again.
    assert [one.error for one in energy] == [3]
    limits = got.answers[Call("nvmlDeviceGetPowerManagementLimitConstraints", 0)]
    assert limits[0].result == [100_000, 400_000]
    fields = got.answers[Call("nvmlDeviceGetFieldValues", 0, (82,))]
    assert [one.result["value"] for one in fields] == [48, 48]
    assert Call("nvmlDeviceGetFieldValues", 0, (230,)) in got.answers
    assert Call("nvmlShutdown") in got.answers


def test_it_takes_readings_only(driver, capture) -> None:
    done = capture("-", "--passes=1")
    called = {line["call"] for line in lines_of(done.stdout)[1:]}
    assert "nvmlDeviceGetUUID" in called
    assert not [name for name in called if "Event" in name.removesuffix("EventReasons")]
    assert not [name for name in called if "Set" in name]
    assert driver.writes() == []
    assert driver.clients() == []


def test_nothing_in_it_tells_whose_it_is(driver, capture) -> None:
    driver.set_processes(0, [DriverProcess(os.getpid(), 2**30), DriverProcess(4711, 2**20)])
    text = capture("-", "--passes=2").stdout
    assert not [uuid for uuid in driver.uuids if uuid.removeprefix("GPU-") in text]
    told = [json.dumps(line.get("result")) for line in lines_of(text)]
    for name in (os.uname().nodename, str(Path.home()), "pytest", "python"):
        assert not [one for one in told if name in one]
    lists = [line for line in lines_of(text) if "ComputeRunning" in line.get("call", "")]
    pids = [[one["pid"] for one in line["result"]] for line in lists if line["gpu"] == 0]
    assert pids == [[4194305, 4194306]] * 2
    uuids = {line["result"] for line in lines_of(text) if line.get("call") == "nvmlDeviceGetUUID"}
    assert uuids == {
        "GPU-00000000-0000-4000-8000-000000000000",
        "GPU-00000000-0000-4000-8000-000000000001",
    }


def test_uuids_stay_when_that_is_asked_for(driver, capture) -> None:
    done = capture("-", "--passes=1", "--no-anonymise")
    assert lines_of(done.stdout)[0]["anonymised"] is False
    assert all(uuid in done.stdout for uuid in driver.uuids)


def test_serial_numbers_go_with_the_uuids() -> None:
    call = Call("nvmlDeviceGetSerial", 0)
    assert Disguise(anonymise=True).of(call, "1320221040733") == ""
    assert Disguise(anonymise=False).of(call, "1320221040733") == "1320221040733"


def test_a_driver_that_does_not_open_is_captured_too(driver, capture, tmp_path) -> None:
    driver.unload()
    path = tmp_path / "a.jsonl"
    done = capture(str(path))
    assert done.returncode == 1
    assert "modprobe nvidia" in done.stderr
    assert [one.error for one in capture_file.load(path).answers[Call("nvmlInit")]] == [9]


@pytest.fixture
def library(monkeypatch):
    """The driver's library, of which a test says what its functions answer."""

    def answer(**functions) -> None:
        for name, what in functions.items():
            monkeypatch.setattr(pynvml, name, what)

    answer(nvmlInit=lambda: None, nvmlShutdown=lambda: None)
    return answer


def refuse(code: int):
    def call(*arguments):
        raise pynvml.NVMLError(code)

    return call


@pytest.mark.parametrize(
    ("functions", "said"),
    [
        ({"nvmlInit": refuse(12)}, "install the NVIDIA driver"),
        ({"nvmlDeviceGetCount": lambda: 0}, "the driver lists no GPU"),
    ],
)
def test_where_no_card_is_nothing_is_captured_and_no_file_says_otherwise(
    library, tmp_path, capsys, functions, said
) -> None:
    library(**functions)
    path = tmp_path / "a.jsonl"
    for target in (str(path), "-"):
        assert cli.main(["capture", target]) == 1
        told = capsys.readouterr()
        assert told.out == ""
        (line,) = told.err.splitlines()
        assert line.startswith("gpu-exporter: nothing was captured: ")
        assert said in line
    assert not path.exists()


def test_cards_that_do_not_open_are_captured_and_said(library, tmp_path, capsys) -> None:
    library(nvmlDeviceGetCount=lambda: 1, nvmlDeviceGetHandleByIndex=refuse(15))
    path = tmp_path / "a.jsonl"
    assert cli.main(["capture", str(path)]) == 1
    assert "no GPU was captured: no GPU opens: " in capsys.readouterr().err
    answers = capture_file.load(path).answers
    assert [one.error for one in answers[Call("nvmlDeviceGetHandleByIndex", None, (0,))]] == [15]


def test_a_hang_before_a_card_is_asked_is_in_it(library) -> None:
    answers = threading.Event()
    library(nvmlDeviceGetCount=lambda: answers.wait(30) and 0)
    out = io.StringIO()
    try:
        with pytest.raises(CaptureError, match="nvmlDeviceGetCount has not come back"):
            Session(out, CaptureOptions(hang_after=0.05), SystemClock(), pynvml).run()
    finally:
        answers.set()
    calls = [line["call"] for line in lines_of(out.getvalue())[1:]]
    assert calls == ["nvmlInit", "nvmlDeviceGetCount"]


def test_a_file_in_which_no_driver_answered_is_not_replayed() -> None:
    with pytest.raises(CaptureError, match="no driver answered"):
        capture_file.parse([capture_file.header_line(Header())])


def test_a_lost_card_does_not_end_it(driver, capture, tmp_path) -> None:
    driver.fail("nvmlDeviceGetTemperatureV", gpu=0, error=15)
    path = tmp_path / "a.jsonl"
    assert capture(str(path), "--passes=1").returncode == 0
    answers = capture_file.load(path).answers
    assert answers[Call("nvmlDeviceGetTemperatureV", 0, (0,))][0].error == 15
    assert answers[Call("nvmlDeviceGetTemperatureV", 1, (0,))][0].result == 45


@pytest.mark.parametrize("function", ["nvmlDeviceGetPowerUsage", "nvmlDeviceGetFieldValues"])
def test_a_call_that_hangs_ends_it_and_is_the_last_one_in_it(
    driver, capture, tmp_path, function
) -> None:
    driver.hang(function, gpu=1)
    path = tmp_path / "a.jsonl"
    done = capture(str(path), program=("-c", SHORT_OF_PATIENCE))
    assert done.returncode == 1
    assert f"{function} has not come back" in done.stderr
    last = lines_of(path.read_text())[-1]
    assert {key: last[key] for key in ("call", "gpu", "hung")} == {
        "call": function,
        "gpu": 1,
        "hung": True,
    }
    assert "args" not in last
    capture_file.load(path)


def test_a_file_that_cannot_be_written_is_said_in_one_line(capsys, tmp_path) -> None:
    assert cli.main(["capture", str(tmp_path / "no" / "a.jsonl")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit):
        cli.main(["capture", "-", "--passes=0"])


def test_structures_and_odd_arguments_become_json() -> None:
    written = []

    class Library:
        class NVMLError(Exception):
            pass

        @staticmethod
        def nvmlDeviceGetHandleByIndex(index):  # noqa: N802
            return index + 1

        @staticmethod
        def nvmlDeviceGetOdd(handle, *arguments, **named):  # noqa: N802
            return SimpleNamespace(text=b"a", pair=(1, None))

    recorder = Recorder(
        Library, lambda *one: written.append(one), SystemClock(), Disguise(anonymise=True)
    )
    handle = recorder.nvmlDeviceGetHandleByIndex(0)
    recorder.nvmlDeviceGetOdd(handle, [1, 2], b=2, a=1)
    call, answer = written[1]
    assert call == Call("nvmlDeviceGetOdd", 0, ([1, 2],), (("a", 1), ("b", 2)))
    assert answer.result == {"text": "a", "pair": [1, None]}
    assert recorder.stuck(0) is None


def test_what_is_written_is_read_again() -> None:
    call = Call("nvmlDeviceGetMemoryInfo", 3, (1, ("a", 2)), (("version", 33554472),))
    answers = (Answer({"total": 5}, seconds=0.25), Answer(error=15), Answer(hung=True), Answer())
    # What a driver says is kept as it is, a number that is none too.
    answers += (Answer(float("inf")),)
    header = Header(source="somewhere", driver="580.95.05", exporter="1", nvml_py="13")
    text = capture_file.header_line(header)
    text += "".join(capture_file.answer_line(call, one) for one in answers)
    got = capture_file.parse(io.StringIO(text))
    assert got.header == header
    assert dict(got.answers) == {call: answers}


HEADER = '{"gpu_exporter_capture": 1}\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ('{"gpus": 2}\n', "not a capture"),
        ('{"gpu_exporter_capture": 2}\n', "version 2, and this gpu-exporter reads version 1"),
        (HEADER + '{"call": "nvmlIn', "line 2 is not JSON; was the file cut off"),
        (HEADER + "[]\n", "line 2 is no call"),
        (HEADER + '{"call": "nvmlInit"}\n', "line 2 is no call"),
        (HEADER + '{"result": 1}\n', "line 2 is no call"),
        (HEADER + '{"call": "nvmlInit", "gpu": "x", "result": 1}\n', "line 2 is no call"),
        (HEADER + '{"call": "nvmlInit", "args": [{}], "result": 1}\n', "line 2 is no call"),
    ],
)
def test_a_file_that_is_no_capture_is_refused_with_its_line(tmp_path, text, says) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(CaptureError, match=says):
        capture_file.load(path)
