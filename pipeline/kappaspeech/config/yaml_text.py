"""YAML from outside: parsed into plain values, or refused in a sentence; no text makes it take long or much memory.

YAML 1.1 reads 1e-4 as a word, `no` as false even as a key, and a word that looks like a date as a date. Here the first is a
number, a key is text, and a date is text.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode

_MAX_LETTERS = 16 << 20
# the most values of a text with every alias written out; each takes its own place in memory, or in objects made of it
_MAX_VALUES = 200_000
_MAX_DEPTH = 100
_TEXT_TAG = "tag:yaml.org,2002:str"
_MERGE_TAG = "tag:yaml.org,2002:merge"
_TIME_TAG = "tag:yaml.org,2002:timestamp"


class _Loader(yaml.SafeLoader):
    """A SafeLoader whose faults are all YAML errors that name the value."""

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except yaml.YAMLError:
            raise
        # int, float, base64 and dates raise their own errors
        except Exception as error:
            shown = str(node.value)[:60]
            raise ConstructorError(None, None, f"{shown!r} is no {node.tag.rpartition(':')[2]}", node.start_mark) from error


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIME_TAG]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str) -> Any:
    """The value of a YAML document. Raises `yaml.YAMLError` for any fault in it."""
    if len(text) > _MAX_LETTERS:
        raise yaml.YAMLError(f"it has {len(text):,} letters, and at most {_MAX_LETTERS:,} are read")
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        if _count_values(root, {}, depth=0) > _MAX_VALUES:
            raise yaml.YAMLError(f"it expands to more than {_MAX_VALUES:,} values, by aliases of aliases")
        return _copy(_check_numbers(loader.construct_document(root)))
    except RecursionError:
        raise yaml.YAMLError(f"it is nested more than {_MAX_DEPTH} deep") from None
    finally:
        loader.dispose()


def _count_values(node: Node, known: dict[int, int | None], *, depth: int) -> int:
    """The number of values of a node, its aliases written out; keys become text on the way."""
    if isinstance(node, ScalarNode):
        return 1
    if depth > _MAX_DEPTH:
        raise yaml.YAMLError(f"it is nested more than {_MAX_DEPTH} deep")
    if id(node) in known:
        count = known[id(node)]
        if count is None:
            raise yaml.YAMLError(f"it holds itself{node.start_mark}")
        return count
    known[id(node)] = None
    if isinstance(node, MappingNode):
        for key, _ in node.value:
            if isinstance(key, ScalarNode) and key.style is None and key.tag.rpartition(":")[2] in ("bool", "null"):
                key.tag = _TEXT_TAG
        _check_unique(node)
    inner = [child for pair in node.value for child in pair] if isinstance(node, MappingNode) else node.value
    total = 1 + sum(_count_values(child, known, depth=depth + 1) for child in inner)
    known[id(node)] = total
    return total


def _check_unique(node: MappingNode) -> None:
    """Raise if a mapping has a key twice, of which PyYAML takes the last: a section that was begun again would lose its first."""
    seen = set()
    for key, _ in node.value:
        if isinstance(key, ScalarNode) and key.tag != _MERGE_TAG:
            if (key.tag, key.value) in seen:
                raise yaml.YAMLError(f"it has {key.value!r:.60} twice, the second time in line {key.start_mark.line + 1}")
            seen.add((key.tag, key.value))


def _check_numbers(value: Any) -> Any:
    """`value`, if every whole number in it can be written down again: Python doesn't write those of over 4,300 digits."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, int) and abs(item) >> 1024:
            raise yaml.YAMLError(f"a whole number in it has about {int(math.log10(2) * item.bit_length()):,} digits")
        waiting += item.values() if isinstance(item, dict) else item if isinstance(item, list) else []
    return value


def _copy(value: Any) -> Any:
    """A copy of `value` with its own mappings and lists at each place: an alias is the same object, so a change there is one
    here."""
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list) else value
