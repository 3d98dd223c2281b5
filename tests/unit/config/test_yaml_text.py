"""YAML that would take all memory, or end in another error than YAML's, is refused at once."""

from __future__ import annotations

import string
import time

import pytest
import yaml

from kappaspeech.commands import main
from kappaspeech.commands.train import read_settings
from kappaspeech.config.run_config import read_run_config
from kappaspeech.config.yaml_text import parse_yaml
from kappaspeech.errors import ConfigError
from tests.patience import patience
from tests.unit.config.test_run_config import MINIMAL, write

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "\n".join(
    f"{after}: &{after} [{','.join([f'*{before}'] * 10)}]"
    for before, after in zip(string.ascii_letters, string.ascii_letters[1:10], strict=False)
)
MERGES = "a: &a {k: 1}\n" + "\n".join(
    f"b{number}: &b{number} {{<<: [{','.join([f'*b{number - 1}' if number else '*a'] * 9)}], k{number}: 1}}"
    for number in range(12)
)
REFUSED = {
    "billion laughs": (LAUGHS, "aliases of aliases"),
    "merges of merges": (MERGES, "aliases of aliases"),
    "itself": ("a: &a [*a]", "holds itself"),
    "a mapping in itself": ("&a\nx: *a", "holds itself"),
    "deep": ("a: " + "[" * 20_000, "nested"),
    "deep and closed": ("a: " + "[" * 150 + "]" * 150, "nested"),
    "bad time": ("a: !!timestamp abc", "'abc' is no timestamp"),
    "long number": ("a: " + "1" * 5000, "is no int"),
    "long hexadecimal number": ("a: 0x" + "f" * 5000, "digits"),
    "empty binary number": ("a: 0b_", "'0b_' is no int"),
    "dot": ("a: !!float abc", "'abc' is no float"),
    "code": ("a: !!python/object/apply:os.system ['touch owned']", "could not determine a constructor"),
    "a list as key": ("? [a]\n: b", "unhashable"),
    "a section twice": ("a: {x: 1}\nb: 2\na: {y: 1}", "it has 'a' twice, the second time in line 3"),
    "a key twice within": ("a: {x: 1, 'x': 1}", "it has 'x' twice"),
}


@pytest.mark.parametrize(("text", "says"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_with_a_text_is_a_yaml_error_at_once(text, says):
    began = time.monotonic()
    with pytest.raises(yaml.YAMLError, match=says):
        parse_yaml(text)
    assert time.monotonic() - began < patience(5)


@pytest.mark.parametrize("text", [text for text, _ in REFUSED.values()], ids=REFUSED)
def test_a_file_and_an_option_that_hold_it_are_refused_in_a_sentence(tmp_path, capsys, text):
    bad = tmp_path / "bad.yaml"
    bad.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml can't be read as YAML"):
        read_run_config(bad)
    good = write(tmp_path / "good.yaml", MINIMAL)
    with pytest.raises(ConfigError, match="--set arm holds no YAML value"):
        read_settings(good, None, [f"arm={{{text}}}" if text.startswith("a: ") and "\n" not in text else f"arm={text}"])
    assert main(["status", str(good), "--set", "arm=2026-13-45"]) == 1
    assert capsys.readouterr().out == "absent\n"


def test_values_are_what_they_look_like():
    text = "rate: 1e-4\nsmall: 1.5E+3\nday: 2026-11-27\nbad day: 2026-13-45\nno: Norwegian\non: x\nyes: no\nseed: 17\nnull: y"
    assert parse_yaml(text) == {
        "rate": 1e-4,
        "small": 1500.0,
        "day": "2026-11-27",
        "bad day": "2026-13-45",
        "no": "Norwegian",
        "on": "x",
        "yes": False,
        "seed": 17,
        "null": "y",
    }
    assert parse_yaml("") is None


def test_aliases_and_merges_of_a_usual_size_are_kept():
    text = "base: &b {a: 1, c: 2}\nmore:\n  - {<<: *b, a: 3}\n  - *b\n"
    assert parse_yaml(text)["more"] == [{"a": 3, "c": 2}, {"a": 1, "c": 2}]


def test_a_configuration_may_begin_with_a_byte_order_mark(tmp_path):
    path = write(tmp_path / "c.yaml", MINIMAL)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_run_config(path).run_dir == "r"


@pytest.mark.parametrize("content", ["[" * 100_000, '{"seed":' + "1" * 5000 + "}"])
def test_json_that_python_can_not_read_is_refused_in_a_sentence(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"config\.json can't be read as JSON"):
        read_run_config(path)
