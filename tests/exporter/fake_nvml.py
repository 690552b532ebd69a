"""A scripted library object that answers like nvidia-ml-py."""

from __future__ import annotations

from types import SimpleNamespace

GIB = 2**30


class FakeNvml:
    """Answers like nvidia-ml-py; `errors` maps a function, or (function, gpu), to a code."""

    NVML_TEMPERATURE_GPU = 0
    nvmlMemory_v2 = 2  # noqa: N815  the name in the library

    class NVMLError(Exception):
        def __init__(self, value: int) -> None:
            super().__init__(f"code {value}")
            self.value = value

    def __init__(self, gpus: int = 2) -> None:
        self.gpus = gpus
        self.errors: dict[object, int] = {}
        self.calls: list[tuple[str, int | None]] = []
        self.processes: list[SimpleNamespace] = []
        # By number: a value, or minus the code of an error; others are not supported.
        self.fields: dict[int, int] = {82: 71}
        self.event = SimpleNamespace(device=1, eventType=0x8, eventData=79)

    def __getattr__(self, name: str):
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def call(handle=None, *arguments, **_):
            self.calls.append((name, handle))
            code = self.errors.get(name) or self.errors.get((name, handle))
            if code:
                raise self.NVMLError(code)
            return self.answer(name, handle, arguments)

        return call

    def field(self, number: int) -> SimpleNamespace:
        value = self.fields.get(number, -3)
        return SimpleNamespace(
            nvmlReturn=-value if value < 0 else 0,
            valueType=3,
            value=SimpleNamespace(ullVal=value),
        )

    def answer(self, name, handle, arguments):
        values = {
            "nvmlInit": None,
            "nvmlShutdown": None,
            "nvmlDeviceGetCount": self.gpus,
            "nvmlDeviceGetHandleByIndex": handle,
            "nvmlSystemGetDriverVersion": "580.95",
            "nvmlSystemGetCudaDriverVersion": 13010,
            "nvmlDeviceGetUUID": f"GPU-{handle}",
            "nvmlDeviceGetName": "NVIDIA A100",
            "nvmlDeviceGetPciInfo": SimpleNamespace(busId=f"00000000:0{handle}:00.0"),
            "nvmlDeviceGetVbiosVersion": "92.00",
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(
                total=40 * GIB, used=8 * GIB, free=31 * GIB, reserved=1 * GIB
            ),
            "nvmlDeviceGetPowerManagementDefaultLimit": 400_000,
            "nvmlDeviceGetPowerManagementLimitConstraints": (100_000, 400_000),
            "nvmlDeviceGetPowerManagementLimit": 320_000,
            "nvmlDeviceGetPowerUsage": 210_500,
            "nvmlDeviceGetTotalEnergyConsumption": 5_000_000,
            "nvmlDeviceGetTemperatureV": 64,
            "nvmlDeviceGetTemperature": 63,
            "nvmlDeviceGetTemperatureThreshold": 92 if arguments == (0,) else 89,
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=97, memory=30),
            "nvmlDeviceGetClockInfo": 1200,
            "nvmlDeviceGetMaxClockInfo": 1410,
            "nvmlDeviceGetCurrentClocksEventReasons": 0x44,
            "nvmlDeviceGetCurrentClocksThrottleReasons": 0x1,
            "nvmlDeviceGetPerformanceState": 0,
            "nvmlDeviceGetNumFans": 2,
            "nvmlDeviceGetFanSpeed_v2": 40,
            "nvmlDeviceGetFieldValues": [self.field(one) for one in arguments[0]]
            if name == "nvmlDeviceGetFieldValues"
            else None,
            "nvmlDeviceGetMemoryErrorCounter": 10 * arguments[0] + arguments[2]
            if name == "nvmlDeviceGetMemoryErrorCounter"
            else None,
            "nvmlDeviceGetRemappedRows": (4, 3, 1, 0),
            "nvmlEventSetCreate": "set",
            "nvmlEventSetFree": None,
            "nvmlDeviceGetSupportedEventTypes": 0x18B,
            "nvmlDeviceRegisterEvents": None,
            "nvmlEventSetWait_v2": self.event,
            "nvmlDeviceGetComputeRunningProcesses_v3": self.processes,
            "nvmlDeviceGetGraphicsRunningProcesses_v3": [],
        }
        if name not in values:
            raise self.NVMLError(13)
        return values[name]


class Parts(FakeNvml):
    """A library with links, MIG devices and process samples, which a test replaces."""

    def __init__(self) -> None:
        super().__init__(gpus=1)
        self.scoped: dict[tuple[int, int], int] = {}
        self.samples: list[SimpleNamespace] = []
        self.since: list[int] = []
        self.batches: list[int] = []
        self.refused: set[int] = set()
        self.values = {
            "nvmlDeviceGetMarginTemperature": 21,
            "nvmlDeviceGetEncoderUtilization": [12, 167_000],
            "nvmlDeviceGetDecoderUtilization": [0, 167_000],
            "nvmlDeviceGetCurrPcieLinkGeneration": 1,
            "nvmlDeviceGetMaxPcieLinkGeneration": 5,
            "nvmlDeviceGetCurrPcieLinkWidth": 8,
            "nvmlDeviceGetMaxPcieLinkWidth": 16,
            "nvmlDeviceGetPcieReplayCounter": 3,
        }

    def field(self, number):
        if isinstance(number, int):
            return super().field(number)
        value = self.scoped.get(number, -3)
        return SimpleNamespace(
            nvmlReturn=-value if value < 0 else 0, valueType=3, value=SimpleNamespace(ullVal=value)
        )

    def answer(self, name, handle, arguments):
        if name == "nvmlDeviceGetFieldValues":
            self.batches.append(len(arguments[0]))
            if self.refused & set(arguments[0]):
                raise self.NVMLError(2)
        if name == "nvmlDeviceGetProcessUtilization":
            self.since.append(arguments[0])
            new = [one for one in self.samples if one.timeStamp > arguments[0]]
            if not new:
                raise self.NVMLError(6)
            return new
        if name == "nvmlDeviceGetPcieThroughput":
            return 1000 * (arguments[0] + 1)
        return self.values[name] if name in self.values else super().answer(name, handle, arguments)
