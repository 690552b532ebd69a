"""`gpu-exporter`: serve, dump, check, doctor, capture, inventory reset."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from exporter import allocator, logs, options
from exporter.early_worker import EarlyWorker
from exporter.errors import ConfigError, ExporterError
from serving.errors import ConfigError as WebConfigError
from serving.errors import ServingError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code: 0, or 1 for what cannot be done, 2 for what is not understood; `check`
        says 0, 1 or 2 for healthy, warning or critical.
    """
    flags = options.read(argv)
    try:
        return _serve(flags) if flags.command == "serve" else _look_once(flags)
    except (ConfigError, WebConfigError) as error:
        print(f"gpu-exporter: {error}", file=sys.stderr)
        return 2
    except (ExporterError, ServingError) as error:
        print(f"gpu-exporter: {error}", file=sys.stderr)
        return 1


def _serve(flags: options.Flags) -> int:
    allocator.be_thrifty()
    # Before the driver's library is looked at, and before all that only this process needs.
    with EarlyWorker() as early:
        options.check(flags)
        logs.configure(flags.log_level, flags.log_format)
        # Only here: it is big, and what is forked does without it.
        from exporter.serving_command import run  # noqa: PLC0415

        return run(flags, early.start)


def _look_once(flags: options.Flags) -> int:
    options.check(flags)
    # A command that prints its result says nothing else unless it must.
    logs.configure("error", flags.log_format)
    # Only here: what serves does without it.
    from exporter.commands import run  # noqa: PLC0415

    return run(flags)


if __name__ == "__main__":
    sys.exit(main())
