"""The command line in this process: exit codes, and messages that say what to do."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import pytest

from kappaspeech import __version__
from kappaspeech.commands import main
from tests import tiny
from tests.conftest import clean_environment


@pytest.fixture
def complain(capsys):
    """Run a command line that must fail with code 2; return what it printed."""

    def run(*words: object) -> str:
        assert main([str(word) for word in words]) == 2
        return capsys.readouterr().err

    return run


def test_a_missing_model_is_named(complain, tmp_path):
    assert "no-such-model" in complain("scan", tmp_path / "no-such-model", "--workers", 1)


def test_a_missing_ranking_is_named(complain, tmp_path):
    assert "none.json" in complain("select", tmp_path / "none.json", "--count", 3)


def test_more_tensors_than_there_are_is_refused(complain, home, tmp_path):
    assert "999 tensors are asked for" in complain(
        "select", home / "ranking.json", "--count", 999, "--output", tmp_path / "s.json"
    )
    assert not (tmp_path / "s.json").exists()


def test_an_unknown_option_or_command_is_refused(complain):
    assert "No such" in complain("select", "--cuont", 3)
    assert "No such command" in complain("slect")


@pytest.mark.parametrize(
    "words", [["train", "{tmp}/none.yaml"], ["evaluate", "{tmp}"], ["compare", "{tmp}"], ["transcribe", "{tmp}", "x"]]
)
def test_what_is_no_configuration_or_run_is_refused(complain, tmp_path, words):
    assert "error: " in complain(*(word.format(tmp=tmp_path) for word in words))


def test_the_status_as_json_has_the_step(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text(json.dumps({"schema_version": 1, "status": "finished", "step": 7}))
    assert main(["status", str(tmp_path / "run"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["status"], told["step"], told["run_dir"]) == ("finished", 7, str(tmp_path / "run"))


@pytest.mark.parametrize("words", [["train"], ["train", "a.yaml", "--config", "b.yaml"], ["status"]])
def test_the_runs_yaml_is_given_once(complain, words):
    assert "once: kappaspeech train CONFIG.yaml, or --config CONFIG.yaml" in complain(*words)


@pytest.mark.parametrize("spelling", [["{run}"], ["{yaml}"], ["--config", "{yaml}"], ["{yaml}", "--set", "seed=3"]])
@pytest.mark.parametrize("word, code", [("finished", 0), ("resumable", 1), ("failed", 1), ("running", 1)])
def test_status_is_told_by_run_folder_or_configuration(home, tmp_path, capsys, spelling, word, code):
    config = tiny.write_config(tmp_path / "c.yaml", home, tmp_path / "run")
    assert main(["status", str(config)]) == 1
    assert capsys.readouterr().out == "absent\n"
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text(json.dumps({"schema_version": 1, "status": word}))
    assert main(["status", *(part.format(run=tmp_path / "run", yaml=config) for part in spelling)]) == code
    assert capsys.readouterr().out == f"{word}\n"


@pytest.mark.parametrize("option", ["--trained-parameters", "--gpu-memory", "--tflops", "--bandwidth-gbs"])
def test_an_option_that_is_infinite_is_refused(complain, option):
    assert "inf is no finite number" in complain("plan", "none.yaml", option, "inf")


def test_an_unknown_yaml_key_is_refused_with_the_nearest(complain, tmp_path):
    (tmp_path / "c.yaml").write_text(
        "run_dir: r\nmodel: {llm: l, encodr: e}\ndata: {train: [{shards: s}]}\ntraining: {num_steps: 1}\n"
    )
    assert "did you mean 'encoder'?" in complain("train", tmp_path / "c.yaml")


def test_a_shard_that_is_no_tar_is_refused_and_left_alone(complain, tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(b"no tar at all" * 200)
    assert "is no tar file" in complain("index", path, "--language", "en")
    assert path.read_bytes() == b"no tar at all" * 200
    assert list(tmp_path.iterdir()) == [path]


def test_audio_that_does_not_decode_is_refused(complain, home, tmp_path):
    (tmp_path / "x.flac").write_bytes(b"no audio")
    assert "can't be used as audio" in complain("transcribe", home / "llm", tmp_path / "x.flac")


@pytest.mark.parametrize("spelling", [["--local_rank=0"], ["--local-rank", "0"], ["--local_rank", "0"]])
def test_the_launchers_local_rank_is_accepted_and_ignored(home, tmp_path, spelling):
    output = tmp_path / "selection.json"
    assert main([*spelling, "select", str(home / "ranking.json"), "--count", "2", "--output", str(output)]) == 0
    assert len(json.loads(output.read_text())["tensors"]) == 2


def test_what_needs_no_tensors_answers_without_torch(home, tmp_path):
    """Loading it takes seconds. One process asks all, as each would alone."""
    config = tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run")
    lines = [
        (["--help"], 0),
        (["select", "--help"], 0),
        (["select", tmp_path / "none.json", "--count", 3], 2),
        (["select", home / "shards", "--count", 3], 2),
        (["show", "--help"], 0),
        (["show", home / "ranking.json"], 0),
        (["show", tmp_path / "none.json"], 2),
        (["status", config], 1),
        (["config"], 0),
        (["train", tmp_path / "none.yaml"], 2),
        (["train", config, "--nproc", 2, "--hostfile", "hosts"], 2),
    ]
    words = [([str(word) for word in line], code) for line, code in lines]
    program = (
        "import sys\n"
        "from kappaspeech.commands import main\n"
        f"for words, code in {words!r}:\n"
        "    assert main(words) == code, words\n"
        "    assert not {'torch', 'transformers'} & set(sys.modules), words\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=clean_environment())
    assert done.returncode == 0, done.stderr


def test_select_names_what_it_chose(home, tmp_path, capsys):
    assert main(["select", str(home / "ranking.json"), "--count", "2", "--largest", "--output", str(tmp_path / "s.json")]) == 0
    printed = capsys.readouterr().out
    assert "2 tensors" in printed
    assert str(tmp_path / "s.json") in printed


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"kappaspeech {__version__}\n"


@pytest.mark.parametrize("words", [[], ["scan"], ["demo"], ["demo", "models"], ["train"]], ids=" ".join)
def test_help_has_a_short_name(words, capsys):
    assert main([*words, "-h"]) == 0
    short = capsys.readouterr().out
    assert main([*words, "--help"]) == 0
    assert capsys.readouterr().out == short
    assert "Usage: " in short


def test_help_tells_what_an_option_is_by_default(capsys, monkeypatch):
    """In square brackets the terminal would take it for a style, and show nothing."""
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["scan", "--help"]) == 0
    assert "Default: one a core, if memory lasts." in capsys.readouterr().out


def test_completion_is_offered():
    # it asks which shell has started it; a test may have none above it
    command = f"{shlex.quote(sys.executable)} -m kappaspeech --show-completion; exit $?"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=clean_environment())
    assert done.returncode == 0, done.stderr
    assert "complete" in done.stdout
