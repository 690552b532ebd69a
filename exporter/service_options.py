"""What the command line says about the running exporter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """What the command line says beside the configuration file.

    Attributes:
        backend: as in `--backend`, `auto` too.
        sample_interval: seconds.
        storage_path: where the inventory is kept; None keeps it in memory.
        procfs: where host memory, OOM kills and processes are read.
        kmsg: the kernel log, of Xid errors and kills for memory; None reads none.
        container_socket: of Docker or Podman, which know the names of containers; None asks none.
    """

    backend: str = "auto"
    simulator_url: str = ""
    sample_interval: float = 1.0
    storage_path: Path | None = None
    procfs: Path = Path("/proc")
    kmsg: Path | None = None
    container_socket: Path | None = None
