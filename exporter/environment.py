"""What kind of machine this is, from files alone: no driver is asked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

NVML_LIBRARY = "libnvidia-ml.so.1"


@dataclass(frozen=True, slots=True)
class Environment:
    """A look at the machine through `root`, which a test replaces by a recorded tree."""

    root: Path = Path("/")

    def in_container(self) -> bool:
        """Tell whether this process runs in a container."""
        marks = (".dockerenv", "run/.containerenv", "run/systemd/container")
        if any((self.root / mark).exists() for mark in marks):
            return True
        return self._text("proc/1/environ").find("container=") >= 0 or "KUBERNETES_PORT" in (
            os.environ
        )

    def is_tegra(self) -> bool:
        """Tell whether this is a Jetson."""
        if (self.root / "etc/nv_tegra_release").exists():
            return True
        return "tegra" in self._text("proc/device-tree/compatible")

    def kernel_driver(self) -> str | None:
        """Return the first line of the loaded driver's version; None when none is loaded."""
        text = self._text("proc/driver/nvidia/version")
        return text.splitlines()[0] if text else None

    def driver_gpus(self) -> tuple[str, ...]:
        """PCI addresses of the GPUs that the loaded driver holds."""
        try:
            return tuple(sorted(os.listdir(self.root / "proc/driver/nvidia/gpus")))  # noqa: PTH208
        except OSError:
            return ()

    def device_nodes(self) -> tuple[Path, ...]:
        """Return the control node and a node for each GPU, as far as they exist."""
        try:
            nodes = sorted((self.root / "dev").glob("nvidia[0-9]*"))
        except OSError:
            nodes = []
        control = self.root / "dev/nvidiactl"
        return (control, *nodes) if control.exists() else tuple(nodes)

    def pci_nvidia_devices(self) -> tuple[str, ...]:
        """PCI addresses of NVIDIA display controllers, whether or not a driver holds them."""
        found = []
        try:
            devices = sorted((self.root / "sys/bus/pci/devices").iterdir())
        except OSError:
            return ()
        for device in devices:
            vendor = self._text(f"sys/bus/pci/devices/{device.name}/vendor").strip()
            kind = self._text(f"sys/bus/pci/devices/{device.name}/class").strip()
            if vendor == "0x10de" and kind.startswith("0x03"):
                found.append(device.name)
        return tuple(found)

    def boot_id(self) -> str:
        """Return what the kernel calls this boot; empty when it does not say."""
        return self._text("proc/sys/kernel/random/boot_id").strip()

    def _text(self, path: str) -> str:
        try:
            return (self.root / path).read_bytes().decode(errors="replace")
        except OSError:
            return ""
