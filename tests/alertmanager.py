"""A real Alertmanager for as long as a test needs it."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from deploy.local.binaries import find
from deploy.local.relocation import relocated
from tests.waiting import poll


@contextlib.contextmanager
def alertmanager(config: Path, folder: Path) -> Iterator[str]:
    """Yields its URL once it is ready; its data and its `alertmanager.log` lie in the folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    # Debian's package, when it is only unpacked, has to be told where its templates are.
    program = relocated(find().alertmanager)
    log = folder / "alertmanager.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                *(program.binary, f"--config.file={config}"),
                *(f"--storage.path={folder}/data", f"--web.listen-address={address}"),
                "--cluster.listen-address=",
            ],
            cwd=program.directory,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        poll(lambda: _is_ready(address), log.read_text)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(30)


def _is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/-/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
