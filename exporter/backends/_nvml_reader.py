"""Calls NVML for one GPU, and remembers what this GPU or its driver does not have."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias, TypeVar

from exporter.backends import _nvml_errors as codes
from exporter.environment import Environment
from exporter.errors import DeviceFault

Call: TypeAlias = Callable[[Any, Any], Any]

# A field's number, or (number, scope) where it is one of a link.
Field: TypeAlias = int | tuple[int, int]
_FieldT = TypeVar("_FieldT", int, tuple[int, int])

_FIELDS = "fields"
_BATCH = 64
# The members of `nvmlValue_t`, by `nvmlValueType_t`; a newer driver may have others.
VALUE_TYPES = dict(enumerate(("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")))
# How a driver says that it has never heard of a field.
_UNKNOWN_FIELD = frozenset({codes.INVALID_ARGUMENT, codes.NOT_SUPPORTED, *codes.TRY_ANOTHER_CALL})


class Reader:
    """Reads one GPU by name (`calls`) or by field number.

    A call is a name with its spellings, newest first: an older driver lacks the newer ones.
    """

    def __init__(
        self,
        nvml: Any,
        handle: Any,
        calls: Mapping[str, tuple[Call, ...]],
        environment: Environment,
    ) -> None:
        self._nvml = nvml
        self._handle = handle
        self._calls = calls
        self._environment = environment
        self._spelling: dict[str, int] = {}
        self._unsupported: set[str | Field] = set()
        self._told: set[str] = set()
        self.failures: list[int] = []
        self.successes = 0

    def begin(self) -> None:
        """Forget the failures of the last pass; what is unsupported stays so."""
        self.failures = []
        self.successes = 0

    def words(self) -> tuple[str, ...]:
        """One word for each failure of this pass."""
        return tuple(codes.word(code) for code in self.failures)

    def read(self, reading: str) -> Any:
        """Return one reading, or None.

        Raises:
            DeviceFault: the GPU is lost or wants a reset; other readings of it may be made up.
            BackendError: the driver is gone for all.
        """
        calls = self._calls[reading]
        while reading not in self._unsupported:
            spelling = self._spelling.get(reading, 0)
            try:
                value = calls[spelling](self._nvml, self._handle)
            except self._nvml.NVMLError as error:
                if error.value in codes.TRY_ANOTHER_CALL and spelling + 1 < len(calls):
                    self._spelling[reading] = spelling + 1
                    continue
                return self._failed(reading, error)
            except UnicodeDecodeError:
                # The binding's own, of a text that a broken card made up.
                self.failures.append(codes.UNKNOWN)
                return None
            self.successes += 1
            self._told.add(reading)
            return value
        return None

    def supports(self, reading: str) -> bool:
        """Tell whether this GPU may have the reading: it has not said that it lacks it."""
        return reading not in self._unsupported

    def has_told(self, reading: str) -> bool:
        """Tell whether this GPU has the reading: it was read at least once."""
        return reading in self._told

    def ask(self, reading: str, call: Call) -> Any:
        """Return what one call says, or None; for calls whose arguments change.

        Raises:
            DeviceFault, BackendError: as `read`.
        """
        if reading in self._unsupported:
            return None
        try:
            value = call(self._nvml, self._handle)
        except self._nvml.NVMLError as error:
            return self._failed(reading, error)
        self.successes += 1
        return value

    def read_fields(
        self, numbers: Iterable[_FieldT], *, remember: bool = True
    ) -> dict[_FieldT, float]:
        """Return the fields that can be read, by number: one call for all of them.

        What is not supported is not asked for again, unless it is not to `remember`.

        Raises:
            DeviceFault, BackendError: as `read`.
        """
        wanted = [number for number in numbers if number not in self._unsupported]
        if not wanted or _FIELDS in self._unsupported:
            return {}
        found: dict[_FieldT, float] = {}
        for start in range(0, len(wanted), _BATCH):
            batch = wanted[start : start + _BATCH]
            refused = self._read_batch(batch, found)
            if len(refused) < len(batch):
                self._unsupported.update(refused)
            else:
                # It refuses whatever it is asked: that is not because of the fields.
                self.failures.append(codes.INVALID_ARGUMENT)
        if not remember:
            self._unsupported.difference_update(wanted)
        return found

    def _read_batch(self, wanted: list[_FieldT], found: dict[_FieldT, float]) -> list[_FieldT]:
        """Read into `found`; returns the fields for which the whole call is refused."""
        try:
            values = self._nvml.nvmlDeviceGetFieldValues(self._handle, wanted)
        except self._nvml.NVMLError as error:
            if error.value != codes.INVALID_ARGUMENT:
                self._failed(_FIELDS, error)
                return []
            if len(wanted) == 1:
                return wanted
            # One field that the driver does not know may be why it refuses the whole batch.
            middle = len(wanted) // 2
            first = self._read_batch(wanted[:middle], found)
            return first + self._read_batch(wanted[middle:], found)
        for number, value in zip(wanted, values, strict=True):
            self._take_field(number, value, found)
        return []

    def _take_field(self, number: _FieldT, value: Any, found: dict[_FieldT, float]) -> None:
        if value.nvmlReturn != 0:
            if value.nvmlReturn in _UNKNOWN_FIELD:
                self._unsupported.add(number)
            else:
                self._failed(number, self._nvml.NVMLError(value.nvmlReturn))
            return
        member = VALUE_TYPES.get(value.valueType)
        read = math.nan if member is None else float(getattr(value.value, member))
        self.successes += 1
        if math.isfinite(read):
            found[number] = read
        else:
            # A type of a newer driver: what it says cannot be understood, now or later.
            self._unsupported.add(number)

    def check(self) -> None:
        """Raise a fault when a whole pass got nothing but errors."""
        if self.failures and not self.successes:
            code = self.failures[0]
            raise DeviceFault(
                codes.device_fault(code), f"every reading fails with NVML code {code}"
            )

    def _failed(self, reading: str | Field, error: Any) -> None:
        code = int(error.value)
        if code in codes.DEVICE_FAULTS:
            raise DeviceFault(codes.device_fault(code), f"{reading}: {error}") from error
        if code in codes.BACKEND_LOST:
            raise codes.backend_error(code, str(error), self._environment) from error
        if code in codes.NEVER:
            self._unsupported.add(reading)
        elif code not in codes.EMPTY:
            self.failures.append(code)
