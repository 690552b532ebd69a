"""A stand-in for nvidia-smi: a program of its own that answers from a file beside it."""

from __future__ import annotations

import marshal
import sys
from ast import literal_eval
from pathlib import Path
from typing import Any

# Not JSON: a start would cost half as much again, and there are hundreds.
_PROGRAM = """#!{python} -SE
import marshal, os, sys, time
here = os.path.dirname(os.path.abspath(__file__))
arguments = dict(one.partition("=")[::2] for one in sys.argv[1:])
with open(os.path.join(here, "calls"), "a") as calls:
    calls.write(repr(sys.argv[1:]) + "\\n")
with open(os.path.join(here, "state"), "rb") as file:
    state = marshal.load(file)
wanted = arguments.get("--id")
gpus = [gpu for gpu in state["gpus"] if wanted in (None, gpu["uuid"])]
listing = "--list-gpus" in arguments
faults = [state["listing" if listing else "fault"]]
faults += [state["fault"]] if listing else [gpu["_fault"] for gpu in gpus]
for fault in faults:
    if fault.get("ignore_term"):
        import signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if fault.get("child"):
        import subprocess
        child = subprocess.Popen([sys.executable, "-SE", "-c", "import time; time.sleep(600)"])
        with open(os.path.join(here, "child"), "w") as file:
            file.write(str(child.pid))
    if fault.get("hang"):
        open(os.path.join(here, "hung.%d" % os.getpid()), "w").close()
        time.sleep(600)
    if fault.get("code"):
        print(fault.get("say", ""))
        sys.exit(fault["code"])
if wanted is not None and not gpus:
    print("No devices were found")
    sys.exit(6)
if listing:
    for index, gpu in enumerate(gpus):
        print("GPU %d: %s (UUID: %s)" % (index, gpu["name"], gpu["uuid"]))
elif "--query-compute-apps" in arguments:
    fields = arguments["--query-compute-apps"].split(",")
    for gpu in gpus:
        for app in gpu["_apps"]:
            print(", ".join(app[field] for field in fields))
else:
    fields = arguments["--query-gpu"].split(",")
    for field in fields:
        if field in state["unknown"]:
            print('Field "%s" is not a valid field to query.' % field)
            sys.exit(2)
    for gpu in gpus:
        print(", ".join(gpu.get(field, "[N/A]") for field in fields))
"""
# Built from the manual and public answers of nvidia-smi; not a capture of one machine.
A100 = {
    "name": "NVIDIA A100-SXM4-40GB",
    "driver_version": "580.95.05",
    "vbios_version": "92.00.45.00.03",
    "memory.total": "40960",
    "memory.reserved": "512",
    "memory.used": "8192",
    "memory.free": "32256",
    "temperature.gpu": "64",
    "temperature.gpu.tlimit": "[N/A]",
    "temperature.memory": "71",
    "utilization.gpu": "97",
    "utilization.memory": "30",
    "utilization.encoder": "5",
    "utilization.decoder": "0",
    "pcie.link.gen.max": "4",
    "pcie.link.gen.gpucurrent": "4",
    "pcie.link.gen.current": "3",
    "pcie.link.width.max": "16",
    "pcie.link.width.current": "8",
    "mig.mode.current": "Disabled",
    "mig.mode.pending": "Enabled",
    "power.draw": "210.53",
    "power.limit": "320.00",
    "power.default_limit": "400.00",
    "power.min_limit": "100.00",
    "power.max_limit": "400.00",
    "clocks.max.gr": "1410",
    "clocks.max.sm": "1410",
    "clocks.max.mem": "1215",
    "clocks.max.video": "1290",
    "clocks.current.graphics": "1200",
    "clocks.current.sm": "1200",
    "clocks.current.memory": "1215",
    "clocks.current.video": "1100",
    "clocks_event_reasons.active": "0x0000000000000044",
    "clocks_throttle_reasons.active": "0x0000000000000001",
    "fan.speed": "[N/A]",
    "pstate": "P0",
    "clocks_event_reasons_counters.sw_power_cap": "1500000",
    "clocks_event_reasons_counters.hw_thermal_slowdown": "0",
    "ecc.errors.corrected.volatile.dram": "3",
    "ecc.errors.corrected.volatile.sram": "0",
    "ecc.errors.corrected.volatile.total": "3",
    "ecc.errors.uncorrected.volatile.dram": "0",
    "ecc.errors.uncorrected.volatile.sram": "0",
    "ecc.errors.uncorrected.volatile.total": "0",
    "remapped_rows.correctable": "1",
    "remapped_rows.uncorrectable": "0",
    "remapped_rows.pending": "Yes",
    "remapped_rows.failure": "No",
    "retired_pages.single_bit_ecc.count": "[N/A]",
    "retired_pages.double_bit.count": "[N/A]",
    "gpu_recovery_action": "None",
}


class FakeSmi:
    """The program in a folder that a test puts on PATH, and what it answers."""

    def __init__(self, folder: Path, gpus: int = 2) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.program = folder / "nvidia-smi"
        self.program.write_text(_PROGRAM.format(python=sys.executable))
        self.program.chmod(0o755)
        self.unknown: list[str] = []
        self.fault: dict[str, Any] = {}
        self.listing: dict[str, Any] = {}
        self.gpus: list[dict[str, Any]] = [
            {
                **A100,
                "index": str(index),
                "uuid": f"GPU-{index}",
                "pci.bus_id": f"00000000:{index:02X}:00.0",
                "_fault": {},
                "_apps": [],
            }
            for index in range(gpus)
        ]
        self.publish()

    def publish(self) -> None:
        """Let the next run see what was changed."""
        state = {"gpus": self.gpus, "unknown": self.unknown, "fault": self.fault}
        state["listing"] = self.listing
        fresh = self.folder / "state.new"
        fresh.write_bytes(marshal.dumps(state))
        fresh.replace(self.folder / "state")

    def set(self, gpu: int, **fields: str) -> None:
        """Change cells of a GPU; `__` stands for the dot of a field's name."""
        self.gpus[gpu].update({name.replace("__", "."): value for name, value in fields.items()})
        self.publish()

    def break_gpu(self, gpu: int, **fault: Any) -> None:
        """Let every run about this GPU, or about all, fail so; nothing: well again."""
        self.gpus[gpu]["_fault"] = fault
        self.publish()

    def break_all(self, **fault: Any) -> None:
        """Let every run fail so; nothing: well again."""
        self.fault = fault
        self.publish()

    def break_listing(self, **fault: Any) -> None:
        """Let every run that lists the GPUs fail so; nothing: well again."""
        self.listing = fault
        self.publish()

    def calls(self) -> list[list[str]]:
        """What it was started with, oldest first."""
        path = self.folder / "calls"
        return [literal_eval(one) for one in path.read_text().splitlines()] if path.exists() else []

    def hung(self) -> list[int]:
        """The pids of the runs that hung, whether they still do or not."""
        return [int(path.suffix[1:]) for path in self.folder.glob("hung.*")]
