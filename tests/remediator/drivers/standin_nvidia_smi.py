"""A stand-in `nvidia-smi`; copied into a folder, whose files tell it what to do.

`argv.log` gets each call. `smi.json` has the cards' limits in watts, and under `mode` for a write
or a reset or under `read_mode` for a query: `hang`, `lie`
(exit 0 and a warning, nothing is done), or an exit status. A card's `traits` answer a query for its
model. Texts are those of nvidia-smi 550.163.
"""

from __future__ import annotations

import json
import os
import sys
import time

# ruff: noqa: PTH120, PTH123 - pathlib would make each of hundreds of starts a third dearer.
HERE = os.path.dirname(__file__)
STATE = f"{HERE}/smi.json"
SAYS = {
    2: "Invalid combination of input arguments. Please run 'nvidia-smi -h' for help.",
    3: "Changing power management limit is not supported for GPU: 00000000:01:00.0.",
    4: "Insufficient Permissions",
    6: "No devices were found",
    9: "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.",
    12: "NVIDIA-SMI couldn't find libnvidia-ml.so library in your system.",
    14: "WARNING: infoROM is corrupted at gpu 0000:01:00.0",
    15: "Unable to determine the device handle for GPU0000:01:00.0: GPU is lost.",
}


def main(argv: list[str]) -> int:
    with open(f"{HERE}/argv.log", "a") as log:
        log.write(json.dumps(argv) + "\n")
    smi = read_state()
    resets = "--gpu-reset" in argv
    writes = resets or "-pl" in argv
    mode = smi["mode" if writes else "read_mode"]
    if mode == "hang":
        open(f"{HERE}/hangs", "w").close()
        stay()
    uuid = argv[argv.index("-i") + 1]
    card = smi["cards"].get(uuid)
    if card is None:
        mode = 6
    if writes and not resets and mode in ("", 14) and not acceptable(card, float(argv[-1])):
        mode = 2
    if isinstance(mode, int):
        print((resets and smi.get("says")) or SAYS.get(mode, "Unknown Error"))
        if mode != 14:
            return mode
    if not writes and "mig.mode.current" in " ".join(argv):
        print(", ".join([uuid, *card["traits"]]))
    elif not writes:
        print(smi["row"] or row(uuid, card))
    elif resets:
        reset(smi, uuid, mode)
    elif mode == "lie":
        print(f"{SAYS[3]}\nTreating as warning and moving on.\nAll done.")
    else:
        write(smi, card, float(argv[-1]))
    return mode if isinstance(mode, int) else 0


def reset(smi: dict, uuid: str, mode: object) -> None:
    if mode == "lie":
        print(
            "Resetting GPU 00000000:01:00.0 is not supported.\nTreating as warning and moving on."
        )
        print("All done.")
        return
    smi.setdefault("resets", []).append(uuid)
    write_state(smi)
    print("GPU 00000000:01:00.0 was successfully reset.\nAll done.")


def acceptable(card: dict, watts: float) -> bool:
    return card["min"] <= watts <= card["max"]


def row(uuid: str, card: dict) -> str:
    cells = [card[name] for name in ("limit", "default", "min", "max")]
    said = [cell if isinstance(cell, str) else f"{cell:.2f}" for cell in cells]
    return ", ".join([uuid, *said])


def write(smi: dict, card: dict, watts: float) -> None:
    print(f"Power limit for GPU 00000000:01:00.0 was set to {watts:.2f} W from {card['limit']} W.")
    print("All done.")
    card["limit"] = watts
    write_state(smi)


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
