"""Pickles what is outside of the process that dies: also functions made on the way, and their cells."""

from __future__ import annotations

import io
import marshal
import pickle
import sys
import types
from typing import Any


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, types.MethodType):
            # Not by name: the object may have a function of its own there.
            return _bound, (obj.__func__, obj.__self__)
        if isinstance(obj, types.FunctionType) and "<l" in obj.__qualname__:
            cells = tuple(cell.cell_contents for cell in obj.__closure__ or ())
            made = (marshal.dumps(obj.__code__), obj.__module__, obj.__name__, len(cells))
            return _function, made, (cells, obj.__defaults__), None, None, _fill
        return NotImplemented


def _bound(function: Any, owner: Any) -> Any:
    return types.MethodType(function, owner)


def _function(code: bytes, module: str, name: str, cells: int) -> Any:
    closure = tuple(types.CellType() for _ in range(cells))
    return types.FunctionType(
        marshal.loads(code),
        vars(sys.modules[module]),
        name,
        None,
        closure,
    )


def _fill(function: Any, state: tuple[tuple[Any, ...], Any]) -> None:
    for cell, content in zip(function.__closure__ or (), state[0], strict=True):
        cell.cell_contents = content
    function.__defaults__ = state[1]


def dumps(value: Any) -> bytes:
    stream = io.BytesIO()
    _Pickler(stream, pickle.HIGHEST_PROTOCOL).dump(value)
    return stream.getvalue()


def loads(raw: bytes) -> Any:
    return pickle.loads(raw)
