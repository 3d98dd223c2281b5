"""The text of `kappaspeech config` and docs/configuration.md on each key agrees with what the models accept."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import BaseModel, Field

import kappaspeech
from kappaspeech.commands import main
from kappaspeech.config.reference import Key, list_sections
from kappaspeech.config.run_config import RunConfig

SECTIONS = list_sections(RunConfig)
KEYS = [(section.path, key) for section in SECTIONS for key in section.keys]


class Inner(BaseModel):
    """Inside."""

    rate: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.5, description="A rate.")


class Outer(BaseModel):
    """Outside."""

    mode: Literal["a", "b", "c"] = Field(default="a", description="A mode.")
    rates: list[Annotated[float, Field(gt=0)]] = Field(default=[], description="Rates.")
    size: Annotated[int, Field(gt=0)] | None = Field(default=None, description="A size.")
    layers: bool | Literal["auto"] = Field(default=False, description="Layers.")
    first: list[Inner] = Field(description="Sections.")
    again: Inner = Field(default=Inner(), description="Another one.")


def test_types_limits_and_defaults_are_in_words():
    outer, inner = list_sections(Outer)
    assert outer.keys == (
        Key("mode", "a, b or c", "a", "A mode."),
        Key("rates", "list of number > 0", "[]", "Rates."),
        Key("size", "whole number > 0 or null", "null", "A size."),
        Key("layers", "true or false or auto", "false", "Layers."),
        Key("first", "list of sections", None, "Sections."),
        Key("again", "section", "{}", "Another one."),
    )
    assert (inner.path, inner.description) == ("first[]", "Inside.")
    assert inner.keys == (Key("rate", "number ≥ 0 and < 1", "0.5", "A rate."),)


def test_every_key_is_described_in_a_sentence():
    assert [key.name for _, key in KEYS if len(key.description) < 6 or not key.description.endswith(".")] == []


@pytest.mark.parametrize("path, key", KEYS, ids=[f"{path}.{key.name}".lstrip(".") for path, key in KEYS])
def test_every_default_reads_back_from_yaml_as_it_is(path, key):
    """YAML 1.1 takes 1e-08 for a word."""
    model = RunConfig
    for part in filter(None, path.replace("[]", "").split(".")):
        annotation = model.model_fields[part].annotation
        model = next(item for item in [annotation, *getattr(annotation, "__args__", ())] if hasattr(item, "model_fields"))
    field = model.model_fields[key.name]
    assert (key.default is None) == field.is_required()
    if key.default not in (None, "{}"):
        expected = list(field.default) if isinstance(field.default, tuple) else field.default
        assert yaml.safe_load(key.default) == expected


def test_the_command_lists_every_key(capsys):
    assert main(["config"]) == 0
    printed = capsys.readouterr().out
    for _, key in KEYS:
        assert f"  {key.name} ({key.kind}; " in printed


def test_the_schema_has_every_section_with_its_keys(capsys):
    assert main(["config", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert set(schema["properties"]) == set(RunConfig.model_fields)
    assert schema["additionalProperties"] is False
    sections = {section.path: {key.name for key in section.keys} for section in SECTIONS}
    assert {frozenset(definition["properties"]) for definition in schema["$defs"].values()} == {
        frozenset(keys) for path, keys in sections.items() if path
    }


def test_a_key_that_a_message_tells_to_change_exists():
    """A remedy named training.llm_learning_rate, which is a key of optimizer."""
    known = {f"{path.replace('[]', '')}.{key.name}" for path, key in KEYS if path}
    # a dot and a word after a section's name: its keys, and no files' names
    named = re.compile(r"(?<![\w./])(?:training|optimizer|batch|data|unfreeze|replay|ewc|classp)\.[a-z_]+(?![\w/])")
    unknown = set()
    for source in Path(kappaspeech.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                unknown |= {(source.name, key) for key in named.findall(node.value) if key not in known}
    assert {(name, key) for name, key in unknown if not key.endswith(".safetensors")} == set()
