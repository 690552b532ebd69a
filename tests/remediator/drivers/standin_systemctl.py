"""A stand-in `systemctl` of one unit; copied into a folder, whose files tell it what to do.

`argv.log` gets each call. `unit.json` holds the properties as systemd 252 prints them, and under
`mode`: `hang`, `refuse`, `lie` (exit 0, nothing is done), `slow` (the job works until it was looked
at once), `queued` (it has not begun until then), `stuck` (it never ends), `dies`
(the process ends at once), `limit` (started too often), `skip` (a condition is not met).
"""

from __future__ import annotations

import json
import os
import sys
import time

# ruff: noqa: PTH120, PTH123 - pathlib would make each of hundreds of starts a third dearer.
HERE = os.path.dirname(__file__)
STATE = f"{HERE}/unit.json"
CLOCK = 1_000_000


def main(argv: list[str]) -> int:
    with open(f"{HERE}/argv.log", "a") as log:
        log.write(json.dumps(argv) + "\n")
    unit = read_state()
    mode = unit["mode"]
    if mode == "hang":
        stay()
    if "show" in argv:
        return show(unit, argv)
    if mode == "refuse":
        sys.stderr.write(f"Failed to {argv[-2]} {argv[-1]}: Access denied\n")
        return 4
    if mode != "lie":
        {"start": start, "stop": stop}[argv[-2]](unit, mode)
        write_state(unit)
    return 0


def show(unit: dict, argv: list[str]) -> int:
    if unit["mode"] == "no_bus":
        sys.stderr.write("System has not been booted with systemd as init system (PID 1).\n")
        return 1
    for name in argv[argv.index("-p") + 1].split(","):
        print(f"{name}={unit[name]}")
    if unit["mode"] in ("slow", "queued") and unit["Job"]:
        unit["Job"] = ""
        unit.update(unit.pop("then"))
        write_state(unit)
    return 0


def tick(unit: dict) -> int:
    unit["now"] += CLOCK
    return unit["now"]


def start(unit: dict, mode: str) -> None:
    if mode == "limit":
        unit.update(ActiveState="failed", SubState="failed", Result="start-limit-hit")
        return
    unit["ConditionTimestampMonotonic"] = tick(unit)
    if mode == "skip":
        unit["ConditionResult"] = "no"
        return
    pid = unit["next_pid"]
    if mode == "queued":
        up = {"ActiveState": "active", "SubState": "running", "MainPID": pid}
        unit.update(Job="7", then=up | {"ExecMainStartTimestampMonotonic": tick(unit)})
        return
    unit.update(next_pid=pid + 1, ConditionResult="yes", Result="success")
    unit.update(ExecMainStartTimestampMonotonic=tick(unit), ExecMainExitTimestampMonotonic=0)
    up = {"ActiveState": "active", "SubState": "running", "MainPID": pid}
    if mode == "slow":
        unit.update(ActiveState="activating", SubState="start-pre", MainPID=0, Job="7", then=up)
        return
    unit.update(up)
    if mode == "dies":
        end(unit)


def end(unit: dict, status: int = 3) -> None:
    """The process ends by itself."""
    unit.update(ExecMainExitTimestampMonotonic=tick(unit), ExecMainCode=1, ExecMainStatus=status)
    unit.update(ActiveExitTimestampMonotonic=tick(unit), MainPID=0)
    result = "success" if status == 0 else "exit-code"
    state = ("inactive", "dead") if status == 0 else ("failed", "failed")
    unit.update(Result=result, ActiveState=state[0], SubState=state[1])


def stop(unit: dict, mode: str, status: int = 0) -> None:
    unit["ActiveExitTimestampMonotonic"] = tick(unit)
    down = {"ActiveState": "inactive", "SubState": "dead", "MainPID": 0}
    down |= {"ExecMainExitTimestampMonotonic": tick(unit), "ExecMainCode": 2, "ExecMainStatus": 15}
    if mode in ("stuck", "slow"):
        unit.update(ActiveState="deactivating", SubState="stop-sigterm", Job="9", then=down)
        return
    unit.update(down, Job="")


NEW = {
    "mode": "",
    "now": CLOCK,
    "next_pid": 500,
    "LoadState": "loaded",
    "ActiveState": "inactive",
    "SubState": "dead",
    "Result": "success",
    "Job": "",
    "MainPID": 0,
    "NRestarts": 0,
    "ConditionResult": "no",
    "ConditionTimestampMonotonic": 0,
    "ExecMainCode": 0,
    "ExecMainStatus": 0,
    "ExecMainStartTimestampMonotonic": 0,
    "ExecMainExitTimestampMonotonic": 0,
    "ActiveExitTimestampMonotonic": 0,
}


def read_state() -> dict:
    with open(STATE) as file:
        return json.load(file)


def write_state(state: dict) -> None:
    with open(STATE, "w") as file:
        json.dump(state, file)


def stay() -> None:
    """Go on until whoever started it kills it, or ends."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.1)
    sys.exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
