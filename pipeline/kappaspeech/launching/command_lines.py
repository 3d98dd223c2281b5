"""The command that a person would type to start a run, as words and variables: pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kappaspeech.errors import ConfigError
from kappaspeech.gpus import split_names

# Every process of one start carries it: it distinguishes those that a failed start leaves behind from all others.
MARK_VARIABLE = "KAPPASPEECH_LAUNCH"
# An ssh whose host is gone would wait for ever; so it ends after two unanswered questions, five seconds apart.
SSH_KEEP_ALIVE = "-o ServerAliveInterval=5 -o ServerAliveCountMax=2"
# Variables that ranks on other hosts need and DeepSpeed's pdsh launcher doesn't carry there.
FORWARDED_VARIABLES = (
    "DS_ACCELERATOR",
    "OMP_NUM_THREADS",
    "TORCH_EXTENSIONS_DIR",
    "GLOO_SOCKET_IFNAME",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "DEEPSPEED_TIMEOUT",
    "LRU_CACHE_CAPACITY",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "CUDA_DEVICE_ORDER",
    "CUDA_DEVICE_MAX_CONNECTIONS",
)
# And those whose names begin so: torch's options of NCCL, and libfabric's, by which NCCL reaches other hosts on some clouds.
_FORWARDED_PREFIXES = ("TORCH_NCCL_", "FI_")
# The working folder of ranks on other hosts, if DeepSpeed can't be given it (`launch/train.sh` reads it).
FOLDER_VARIABLE = "KAPPASPEECH_FOLDER"
# Variables that DeepSpeed's launcher carries to other hosts, between double quotes in which a shell still expands these.
_CARRIED_PREFIXES = ("MLFLOW", "PYTHON", "MV2", "UCX", "NCCL", "LD_LIBRARY", "PATH")
_ALIVE_IN_QUOTES = re.compile(r'[\\"$`%]')
# Letters that a shell takes as they are, and pdsh too.
_PLAIN = re.compile(r"[\w@+=:,./-]*")


@dataclass(frozen=True)
class CommandLine:
    """A command: the variables set in front of it, and its words."""

    words: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)
    folder: str | None = None

    def __str__(self) -> str:
        """The line to type into a shell."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.variables.items()]
        line = " ".join([*settings, shlex.join(self.words)])
        return line if self.folder is None else f"(cd {shlex.quote(self.folder)} && {line})"


def on_this_host(script: str, arguments: Sequence[str], *, launcher: Sequence[str], variables: Mapping[str, str]) -> CommandLine:
    """A `launcher`'s ranks here (`choose_launcher`)."""
    return CommandLine((*launcher, script, *arguments), dict(variables))


def choose_launcher(num_ranks: int, *, num_gpus: int, visible: str, port: int) -> tuple[str, ...]:
    """The words that start so many ranks on this host, which has `num_gpus` GPUs, or none to be used.

    `visible` is CUDA_VISIBLE_DEVICES, or empty if that isn't set. Beside `--num_gpus` DeepSpeed passes over it, and takes the
    host's first GPUs in place of those that it names. Raises `ConfigError` if there are too few.
    """
    named = split_names(visible) if num_gpus else []
    num_gpus = len(named) or num_gpus
    if 0 < num_gpus < num_ranks:
        raise ConfigError(
            f"--nproc is {num_ranks}, and there are {num_gpus} GPUs here, of which each takes one rank. Give a rank for each at "
            "most; DS_ACCELERATOR=cpu in front of the command trains on processors."
        )
    deepspeed, meeting = ("deepspeed", "-q"), ("--master_port", str(port))
    if not named:
        return (*deepspeed, "--num_gpus", str(num_ranks), *meeting)
    if all(name.isdecimal() for name in named):
        # DeepSpeed unsets it itself, but after CUDA has read it: without NVML to ask, it then takes two GPUs for 0 and 1
        unset = ("env", "-u", "CUDA_VISIBLE_DEVICES")
        return (*unset, *deepspeed, "--include", f"localhost:{','.join(named[:num_ranks])}", *meeting)
    # names of GPUs or of parts of one, which DeepSpeed's launcher can't read
    return ("torchrun", "--standalone", "--nproc-per-node", str(num_ranks))


def on_hosts(
    script: str, arguments: Sequence[str], *, hostfile: str, left_out: Sequence[str], port: int, environment_file: str, ssh: str
) -> CommandLine:
    """DeepSpeed's launcher on all hosts of `hostfile` but those `left_out`.

    `environment_file` holds the text that DeepSpeed would read from `.deepspeed_env`. `ssh` holds options that the user's own
    PDSH_SSH_ARGS_APPEND has. If one host remains, `--force_multi` keeps the ranks on it and not on this one. DeepSpeed writes the
    working folder into a line that a shell reads on each host: from one with a space or `$(…)` in its name it starts in /.
    """
    folder = None
    if not is_plain(str(Path.cwd())):
        folder, script, hostfile = "/", str(Path(script).absolute()), str(Path(hostfile).absolute())
    script = shlex.quote(script.replace("%", "%%"))
    words = ["deepspeed", "-q", "--hostfile", hostfile, "--master_port", str(port), "--force_multi"]
    if left_out:
        words += ["--exclude", "@".join(left_out)]
    words += [script, *(quote_for_pdsh(word) for word in arguments)]
    variables = {"DS_ENV_FILE": environment_file, "PDSH_SSH_ARGS_APPEND": f"{ssh} {SSH_KEEP_ALIVE}".strip()}
    return CommandLine(tuple(words), variables, folder)


def under_slurm(script: str, arguments: Sequence[str], *, options: str) -> CommandLine:
    """sbatch with the user's `options`, as "--nodes=2 --time=8:00:00"."""
    return CommandLine(("sbatch", *split_words(options, what="--slurm"), script, *arguments))


def split_words(text: str, *, what: str) -> list[str]:
    """Words as a shell would divide them. Raises `ConfigError`, which names by `what` the text that holds them."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"{what} is {text!r}, which can't be divided into words ({error}): close the quote.") from error


def path_word(path: Path | str) -> str:
    """A path as a word that no program takes for an option."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def is_plain(text: str) -> bool:
    """True if a shell takes `text` as it is."""
    return _PLAIN.fullmatch(text) is not None


def quote_for_pdsh(word: str) -> str:
    """`word`, quoted so that it arrives whole: pdsh replaces %n and the like, and a shell on the other host reads the line.

    DeepSpeed itself puts a word with a space into double quotes, escapes the double quotes in it and nothing else.
    """
    word = word.replace("%", "%%")
    if " " not in word:
        return shlex.quote(word)
    for character in "\\$`":
        word = word.replace(character, "\\" + character)
    return word


def quote_for_export(value: str) -> str:
    """A variable's value, quoted so that it arrives whole: DeepSpeed double-quotes one that isn't plain, escaping nothing."""
    if re.fullmatch(r"[\w@%+=:,./-]*", value):
        return value.replace("%", "%%")
    for character in '\\"$`':
        value = value.replace(character, "\\" + character)
    return value.replace("%", "%%")


def carried_variables(environment: Mapping[str, str], *, folder: str) -> dict[str, str]:
    """The variables that ranks on other hosts need, `FORWARDED_VARIABLES` among them, and what DeepSpeed carries but would spoil.

    The working `folder` comes first in PYTHONPATH, as DeepSpeed puts it.
    """
    carried = {
        name: value for name, value in environment.items() if name in FORWARDED_VARIABLES or name.startswith(_FORWARDED_PREFIXES)
    }
    path = ":".join(filter(None, (folder, environment.get("PYTHONPATH"))))
    for name, value in {**environment, "PYTHONPATH": path}.items():
        if name.startswith(_CARRIED_PREFIXES) and _ALIVE_IN_QUOTES.search(value):
            carried[name] = value
    if not is_plain(folder):
        carried |= {"PYTHONPATH": path, FOLDER_VARIABLE: folder}
    return {name: value for name, value in carried.items() if "\n" not in value}


def environment_file_text(own: str, forwarded: Mapping[str, str]) -> str:
    """The content of `.deepspeed_env` for DeepSpeed: the user's `own`, then `forwarded` if `own` doesn't set it.

    DeepSpeed reads one such file; so ours takes the user's in, and leaves it as it is. Forwarded values are quoted here.
    """
    lines = [line.strip() for line in own.splitlines() if "=" in line and not line.lstrip().startswith("#")]
    names = {line.partition("=")[0].strip() for line in lines}
    lines += [f"{name}={quote_for_export(value)}" for name, value in forwarded.items() if name not in names]
    return "".join(f"{line}\n" for line in lines)
