"""The reading of a YAML file into a strict model, with every problem reported at once."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from kappaspeech.config.yaml_text import parse_yaml
from kappaspeech.errors import ConfigError
from kappaspeech.redaction import SECRETS_FILE, restore_secrets

# a key that is less like a valid one than this isn't a misspelling of it
_NEAR = 0.6

Model = TypeVar("Model", bound=BaseModel)


def read_yaml(path: Path, model: type[Model], *, overrides: dict[str, Any] | None = None) -> Model:
    """Read a YAML file into a strict `model`. Raises `ConfigError` with all problems found."""
    try:
        # some editors begin a file with a byte order mark
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text) if path.suffix == ".json" else parse_yaml(text)
    except FileNotFoundError:
        raise ConfigError(f"There is no configuration at {path}.") from None
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} can't be read as {'JSON' if path.suffix == '.json' else 'YAML'}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold a mapping of keys to values; it holds {type(content).__name__}.")
    # a run folder's config.json is a configuration like any other
    if content.pop("schema_version", None) is not None:
        content = restore_secrets(content, read_secrets(path.parent))
    for key, value in (overrides or {}).items():
        _set_dotted(content, key, value)
    try:
        # JSON's validation is laxer only because YAML has no tuples and writes 1 for 1.0
        return model.model_validate_json(json.dumps(content))
    except (TypeError, ValueError) as error:
        problems = _explain(error, model) if isinstance(error, ValidationError) else [str(error)]
        listing = "\n".join(f"  - {problem}" for problem in problems)
        raise ConfigError(f"{path} has {len(problems)} problem(s):\n{listing}") from error


def read_secrets(run_dir: Path) -> dict[str, str]:
    """The parts of URLs that a run folder's config.json hides, by their place there; nothing if it can't be read."""
    try:
        secrets = json.loads((run_dir / SECRETS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return secrets if isinstance(secrets, dict) else {}


def _set_dotted(content: dict[str, Any], key: str, value: Any) -> None:
    """Set a value at `key`, as in `data.train.0.language`: a number is the place in a list that exists."""
    *sections, last = key.split(".")
    place: Any = content
    for index, section in enumerate(sections):
        if isinstance(place, dict) and place.get(section) is None:
            place[section] = {}
        place = _go_down(place, section, key)
        if not isinstance(place, (dict, list)):
            raise ConfigError(f"{key} can't be set: {'.'.join(sections[: index + 1])} isn't a section.")
    if isinstance(place, dict):
        place[last] = value
    else:
        _go_down(place, last, key)
        place[int(last)] = value


def _go_down(place: Any, name: str, key: str) -> Any:
    if isinstance(place, dict):
        return place[name]
    if not name.isdecimal() or int(name) >= len(place):
        raise ConfigError(f"{key} can't be set: {name} is no place in a list of {len(place)}, which are counted from 0.")
    return place[int(name)]


def _explain(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """One line per problem: the key, the problem, and for an unknown key the nearest valid one."""
    problems = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            valid = _keys_at(item["loc"][:-1], root)
            near = difflib.get_close_matches(str(item["loc"][-1]), valid, n=1, cutoff=_NEAR)
            hint = f"did you mean {near[0]!r}?" if near else f"valid keys are {', '.join(sorted(valid))}."
            problems.append(f"{where}: unknown key; {hint}")
        elif item["type"] == "missing":
            problems.append(f"{where}: missing.")
        else:
            problems.append(f"{where}: {item['msg']} (it is {item['input']!r}).")
    return problems


def _keys_at(location: tuple[int | str, ...], root: type[BaseModel]) -> list[str]:
    """The keys that the section of `root` at `location` accepts."""
    section = root
    for part in location:
        if isinstance(part, int):
            continue
        for candidate in _flatten(section.model_fields[part].annotation):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                section = candidate
    return list(section.model_fields)


def _flatten(annotation: Any) -> list[Any]:
    """An annotation and everything inside its brackets."""
    found = [annotation]
    for inner in get_args(annotation):
        found += _flatten(inner)
    return found
