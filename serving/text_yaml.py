"""YAML whose scalars are the text that stands there."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

from serving.errors import ConfigError


class _Loader(yaml.BaseLoader):
    """Text only, and no key twice: the second one would win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise ConfigError(f"{name}: stands there twice")
            seen.add(name)
        return super().construct_mapping(node, deep)


def load(text: bytes) -> Any:
    """Return text, lists and mappings.

    Raises:
        ConfigError: it is not YAML, or a key stands in a mapping twice. No text of it is repeated.
    """
    try:
        # BaseLoader makes nothing else.
        return yaml.load(text, _Loader)  # noqa: S506
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise ConfigError(f"is not YAML{where}") from error
