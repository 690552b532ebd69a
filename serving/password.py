"""Where the users of the web configuration are asked for their passwords."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Password:
    """The password that stands before every path.

    Attributes:
        realm: what a browser shows beside the question.
        excepted: paths that ask for something of their own in the same header.
    """

    realm: str
    excepted: frozenset[str] = frozenset()
