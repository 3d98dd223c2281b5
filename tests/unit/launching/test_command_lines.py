"""The lines that start a run, and the files that launchers read."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from kappaspeech.errors import ConfigError
from kappaspeech.launching.command_lines import (
    FOLDER_VARIABLE,
    CommandLine,
    carried_variables,
    choose_launcher,
    environment_file_text,
    on_hosts,
    on_this_host,
    path_word,
    quote_for_pdsh,
    split_words,
    under_slurm,
)
from kappaspeech.launching.hostfile import Host, read_hostfile
from tests.patience import patience


def test_a_shown_command_is_read_back_by_a_shell_as_it_is_run():
    command = CommandLine(("printf", "%s|", "largest κ", "a'b", "$HOME"), {"EMPTY": "", "SPACED": "a b"})
    shown = f"{command}; echo; {CommandLine(('sh', '-c', 'echo $SPACED'), command.variables)}"
    done = subprocess.run(["bash", "-c", shown], capture_output=True, text=True, check=True, timeout=patience(10))
    assert done.stdout.splitlines() == ["largest κ|a'b|$HOME|", "a b"]


@pytest.mark.parametrize("word", ["arm=largest κ", "a;b", "$(touch x)", "a b $HOME `id` \\ \"q\" 'q'", "100%", "%n of %h", "*"])
def test_a_word_reaches_another_host_whole(word):
    """As DeepSpeed and pdsh treat it: double quotes around words with spaces, %% becomes %, then a shell."""
    sent = quote_for_pdsh(word)
    if " " in sent:
        sent = '"{}"'.format(sent.replace('"', '\\"'))
    line = "printf %s " + sent.replace("%%", "%")
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True, timeout=patience(10))
    assert done.stdout == word


def test_hosts_that_are_left_out_are_excluded_and_one_that_remains_is_still_reached_over_ssh():
    command = on_hosts(
        "launch/train.sh", ["c.yaml"], hostfile="H", left_out=["h2", "h3"], port=29500, environment_file="/r/env", ssh="-i key"
    )
    assert shlex.join(command.words) == (
        "deepspeed -q --hostfile H --master_port 29500 --force_multi --exclude h2@h3 launch/train.sh c.yaml"
    )
    assert command.variables["PDSH_SSH_ARGS_APPEND"] == "-i key -o ServerAliveInterval=5 -o ServerAliveCountMax=2"


def test_the_users_environment_file_goes_before_what_is_forwarded():
    text = environment_file_text("# mine\n\nOMP_NUM_THREADS=3\nA=b=c\n", {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"})
    assert text == "OMP_NUM_THREADS=3\nA=b=c\nDS_ACCELERATOR=cpu\n"


NASTY = ["a b", "$(touch owned)", "`id`", '"q"', "a\\b", "100% of %h", "it's", "$HOME", "a;b & c", "ü κ", "plain", "*"]


def exported(text: str) -> str:
    """The line that DeepSpeed makes of an environment file for a shell on another host, as pdsh passes it on."""
    lines = []
    for line in text.splitlines():
        name, _, value = line.partition("=")
        value = value.strip()
        if re.search(r"[^\w@%+=:,./-]", value):
            value = f'"{value}"'
        lines.append(f"export {name.strip()}={value}; ")
    return "".join(lines).replace("%%", "%")


@pytest.mark.parametrize("value", NASTY)
def test_a_variable_reaches_another_host_whole(tmp_path, value):
    environment = {"HF_HOME": value, "PYTHONSTARTUP": value, "NCCL_DEBUG_FILE": value, "OTHER": value, "PYTHONPATH": value}
    carried = carried_variables(environment, folder="/work")
    assert "OTHER" not in carried
    line = exported(environment_file_text("", carried)) + 'printf "%s|" "$HF_HOME" "$PYTHONPATH"'
    bare = {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=bare, capture_output=True, text=True, check=True, timeout=patience(10)
    )
    here, path = done.stdout.split("|")[:2]
    assert here == value
    # what is plain there DeepSpeed carries as it is
    assert path in (f"/work:{value}", "")
    assert (path == "") == ("PYTHONPATH" not in carried)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a b", "$(touch owned)", "`touch owned`", "it's", "100%", 'a"b'])
def test_a_working_folder_reaches_another_host_whole(tmp_path, monkeypatch, name):
    """DeepSpeed writes `export …; cd FOLDER; python … SCRIPT` for a shell on each host."""
    folder = tmp_path / name
    (folder / "launch").mkdir(parents=True)
    monkeypatch.chdir(folder)
    hosts = ["launch/train.sh", ["c.yaml"]]
    command = on_hosts(*hosts, hostfile="H", left_out=[], port=1, environment_file="/r/env", ssh="")
    script, *_ = (word for word in command.words if "train.sh" in word)
    assert command.folder == "/"
    assert command.words[3] == str(folder / "H")
    text = environment_file_text("", carried_variables({}, folder=str(folder)))
    line = f'{exported(text)} cd {command.folder}; printf "%s|" "$PWD" "${FOLDER_VARIABLE}" {script.replace("%%", "%")}'
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True, timeout=patience(10))
    assert done.stdout.split("|")[:3] == ["/", str(folder), str(folder / "launch/train.sh")]
    assert sorted(path.name for path in folder.iterdir()) == ["launch"]
    # and is shown so that it can be typed
    assert str(command).startswith("(cd / && DS_ENV_FILE=")


def test_a_plain_working_folder_is_left_to_deepspeed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = on_hosts("launch/train.sh", ["c.yaml"], hostfile="H", left_out=[], port=1, environment_file="/r/env", ssh="")
    assert command.folder is None
    assert carried_variables({"OMP_NUM_THREADS": "2", "PATH": "/bin"}, folder=str(tmp_path)) == {"OMP_NUM_THREADS": "2"}


@pytest.mark.parametrize(("path", "word"), [("-x.yaml", "./-x.yaml"), ("./-x.yaml", "./-x.yaml"), ("a/-x", "a/-x"), ("x", "x")])
def test_a_path_is_never_an_option(path, word):
    assert path_word(Path(path)) == word


def test_words_that_a_shell_could_not_divide_are_refused():
    with pytest.raises(ConfigError, match=r"--slurm is .*abc.*close the quote"):
        under_slurm("launch/slurm/train.sbatch", ["c.yaml"], options="--comment='abc")
    assert split_words("-o 'a b'", what="x") == ["-o", "a b"]


def test_slurm_options_are_words_of_their_own():
    command = under_slurm("launch/slurm/train.sbatch", ["c.yaml"], options="--nodes=2 --comment='two words'")
    assert command.words == ("sbatch", "--nodes=2", "--comment=two words", "launch/slurm/train.sbatch", "c.yaml")


def test_a_hostfile_is_read_in_its_order(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("# two\nh2 slots=8\n\n10.0.0.1   slots=4  # old\n")
    assert read_hostfile(path) == (Host("h2", 8), Host("10.0.0.1", 4))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("h1 slots=0\n", "line 1"),
        ("h1 slots=2\nh2\n", "line 2"),
        ("h1 slots=2\nh1 slots=2\n", "twice"),
        ("# none\n", "names no host"),
        ("-oProxyCommand=x slots=1\n", "line 1"),
    ],
)
def test_a_wrong_hostfile_is_refused_with_its_line(tmp_path, text, message):
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_hostfile(path)


def test_a_missing_hostfile_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="can't be read"):
        read_hostfile(tmp_path / "none")


def test_what_cuda_nccl_and_its_network_are_told_reaches_other_hosts():
    told = {"PYTORCH_ALLOC_CONF": "expandable_segments:True", "TORCH_NCCL_TRACE_BUFFER_SIZE": "9", "FI_PROVIDER": "efa"}
    carried = carried_variables({**told, "CUDA_VISIBLE_DEVICES": "3", "FINE": "1"}, folder="/work")
    assert carried == told


@pytest.mark.parametrize(
    "num_gpus, visible, launcher",
    [
        (0, "", "deepspeed -q --num_gpus 2"),
        (8, "", "deepspeed -q --num_gpus 2"),
        # it took GPUs 0 and 1, which may be another's
        (3, "4,6,7", "env -u CUDA_VISIBLE_DEVICES deepspeed -q --include localhost:4,6"),
        (2, " 5, 3", "env -u CUDA_VISIBLE_DEVICES deepspeed -q --include localhost:5,3"),
        # a machine without GPUs on which somebody set it
        (0, "0", "deepspeed -q --num_gpus 2"),
        (0, "-1", "deepspeed -q --num_gpus 2"),
    ],
)
def test_ranks_take_the_gpus_that_they_may_see(num_gpus, visible, launcher):
    words = choose_launcher(2, num_gpus=num_gpus, visible=visible, port=1234)
    assert words == (*launcher.split(), "--master_port", "1234")


@pytest.mark.parametrize("visible", ["GPU-8932f937,GPU-11", "MIG-1,MIG-2", "1,GPU-8932f937"])
def test_ranks_of_gpus_by_name_are_started_as_by_the_script(visible):
    words = choose_launcher(2, num_gpus=2, visible=visible, port=1234)
    assert words == ("torchrun", "--standalone", "--nproc-per-node", "2")


def test_the_line_that_leaves_the_gpus_to_deepspeed_hides_their_list_from_it():
    """If NVML is missing, DeepSpeed counts by the variable before it unsets it: it knew GPUs 0 and 1 for a list of 4 and 6."""
    launcher = choose_launcher(2, num_gpus=2, visible="4,6", port=1)
    told = on_this_host("-c", ["echo [${CUDA_VISIBLE_DEVICES-all}]"], launcher=[*launcher[:3], "bash"], variables={})
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "4,6"}
    for words in (told.words, ["bash", "-c", str(told)]):
        assert subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout == "[all]\n"


@pytest.mark.parametrize("num_gpus, visible", [(1, ""), (1, "3"), (1, "GPU-8932f937")])
def test_more_ranks_than_gpus_are_refused(num_gpus, visible):
    with pytest.raises(ConfigError, match="are 1 GPUs"):
        choose_launcher(2, num_gpus=num_gpus, visible=visible, port=1)
