"""The keys of a run's YAML as a person looks them up: name, type, default and meaning, read from the models of `config`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

_SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
_NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false"}


@dataclass(frozen=True)
class Key:
    """One key of a section. `default` is YAML; None for a key that must be given."""

    name: str
    kind: str
    default: str | None
    description: str


@dataclass(frozen=True)
class Section:
    """One section of the YAML: its dotted path, "" for the top; [] marks the items of a list."""

    path: str
    description: str
    keys: tuple[Key, ...]


def list_sections(model: type[BaseModel]) -> list[Section]:
    """All sections of a configuration, each before those inside it; one in two places is listed at the first."""
    return list(_walk(model, "", seen=set()))


def _walk(model: type[BaseModel], path: str, *, seen: set[type[BaseModel]]) -> Iterator[Section]:
    seen.add(model)
    fields = model.model_fields
    inside = {name: next(_models_in(field.annotation), None) for name, field in fields.items()}
    keys = (Key(name, _describe(field), _default(field), field.description or "") for name, field in fields.items())
    yield Section(path, (model.__doc__ or "").strip(), tuple(keys))
    for name, section in inside.items():
        if section is not None and section not in seen:
            items = "[]" if _is_list(fields[name].annotation) else ""
            yield from _walk(section, f"{path}.{name}{items}".lstrip("."), seen=seen)


def _describe(field: FieldInfo) -> str:
    if next(_models_in(field.annotation), None) is not None:
        return "list of sections" if _is_list(field.annotation) else "section"
    return _limit(_name(field.annotation), field.metadata)


def _name(annotation: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation in _NAMES:
        return _NAMES[annotation]
    if origin is Annotated:
        return _limit(_name(inner[0]), [item for part in inner[1:] for item in getattr(part, "metadata", [part])])
    if origin is Literal:
        return " or ".join(filter(None, (", ".join(inner[:-1]), inner[-1])))
    if origin in (Union, UnionType):
        return " or ".join("null" if part is NoneType else _name(part) for part in inner)
    if origin is list:
        return f"list of {_name(inner[0])}"
    if origin is tuple:
        return f"list of {len(inner)}: {_name(inner[0])}"
    assert origin is dict, f"no words for {annotation}"
    return f"mapping of {_name(inner[0])} to {_name(inner[1])}"


def _limit(kind: str, metadata: Sequence[Any]) -> str:
    limits = [f"{sign} {getattr(item, key):g}" for item in metadata for key, sign in _SIGNS.items() if hasattr(item, key)]
    return " ".join([kind, " and ".join(limits)]).strip()


def _default(field: FieldInfo) -> str | None:
    if field.is_required():
        return None
    if isinstance(field.default, BaseModel):
        return "{}"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1000)
    return text.removesuffix("...\n").strip()


def _is_list(annotation: Any) -> bool:
    kind = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    return get_origin(kind) is list


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)
