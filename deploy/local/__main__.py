"""Entry point of ``python -m deploy.local``."""

from __future__ import annotations

import argparse
import os
import sys

from deploy.local.binaries import ToolMissing
from deploy.local.errors import StackError
from deploy.local.settings import Settings
from deploy.local.up import up

_ENVIRONMENT = """
environment:
  MODE=auto       the remediator acts (approve: when you say so; observe: it says what it would do)
  PORTS=20000     seven consecutive ports from there instead of the well-known ones
  GPUS=4          how many GPUs to simulate where there is none
  INCIDENTS=no    play no incidents on simulated GPUs
"""


def main() -> int:
    """Runs the command line; 1 and one message when something cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.local",
        description="The whole stack on one machine, without root.",
        epilog=_ENVIRONMENT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("up", help="start everything and tell what happens, until Ctrl-C")
    parser.parse_args()
    try:
        return up(Settings.read(os.environ))
    except (StackError, ToolMissing) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
