"""A stand-in `journalctl` over `journal.jsonl` beside it: entries of units, as `-o json` gives them.

`mode`, a file: `denied` (a user outside of the group), `hang`, `broken`. `argv.log` gets each call.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent


def main(argv: list[str]) -> int:
    with (HERE / "argv.log").open("a") as log:
        log.write(json.dumps(argv) + "\n")
    mode = (HERE / "mode").read_text() if (HERE / "mode").exists() else ""
    if mode == "hang":
        stay()
    if mode == "broken":
        sys.stderr.write("Failed to open journal: Input/output error\n")
        return 1
    if mode == "denied":
        sys.stderr.write(
            "Hint: You are currently not seeing messages from other users and the system.\n"
        )
        print("-- No entries --")
        return 0
    since = float(next(a for a in argv if a.startswith("--since=@")).partition("@")[2])
    unit = argv[-1].partition("=")[2]
    shown = 0
    for line in (HERE / "journal.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry["_SYSTEMD_UNIT"] == unit and int(entry["__REALTIME_TIMESTAMP"]) / 1e6 >= since:
            print(line)
            shown += 1
    if not shown:
        print("-- No entries --")
    return 0


def stay() -> None:
    """Go on until whoever started it kills it, or ends."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.1)
    sys.exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
