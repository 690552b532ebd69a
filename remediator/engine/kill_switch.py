"""The kill switch: a file whose presence stops every new action, whatever else is broken."""

from __future__ import annotations

import os
from pathlib import Path


def why_pulled(path: Path, *, needs_folder: bool = True) -> str | None:
    """Why nothing may be begun; None while the switch is not pulled.

    Whatever stands at `path` pulls it, a dangling link too. What cannot be looked at counts as
    pulled, and so does a missing folder where it `needs_folder`: a person may have pulled it there.
    """
    try:
        os.lstat(path)
    except FileNotFoundError:
        if not needs_folder or path.parent.is_dir():
            return None
        return f"{path.parent} is not there, so nobody can tell whether {path.name} is in it"
    except OSError as error:
        return f"{path} cannot be looked at ({error.strerror})"
    return f"{path} exists; remove it to go on"
