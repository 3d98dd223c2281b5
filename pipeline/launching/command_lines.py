"""What a person would type to start a run, as words and variables: pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# Carried by every process of one start, so that what a failed one leaves behind can be told from everybody else's.
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
)


@dataclass(frozen=True)
class CommandLine:
    """A command: what is set in front of it, and its words."""

    words: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """The line to type into a shell."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.variables.items()]
        return " ".join([*settings, shlex.join(self.words)])


def on_this_host(
    script: str, arguments: Sequence[str], *, num_ranks: int, port: int, variables: Mapping[str, str]
) -> CommandLine:
    """DeepSpeed's launcher with `num_ranks` ranks here."""
    words = ["deepspeed", "-q", "--num_gpus", str(num_ranks), "--master_port", str(port), script, *arguments]
    return CommandLine(tuple(words), dict(variables))


def on_hosts(
    script: str, arguments: Sequence[str], *, hostfile: str, left_out: Sequence[str], port: int, environment_file: str, ssh: str
) -> CommandLine:
    """DeepSpeed's launcher on all hosts of `hostfile` but those `left_out`.

    `environment_file` holds what DeepSpeed would read from `.deepspeed_env`. `ssh` holds options that the user's own
    PDSH_SSH_ARGS_APPEND has. Where one host remains, `--force_multi` keeps the ranks on it and not on this one.
    """
    words = ["deepspeed", "-q", "--hostfile", hostfile, "--master_port", str(port), "--force_multi"]
    if left_out:
        words += ["--exclude", "@".join(left_out)]
    words += [script, *(quote_for_pdsh(word) for word in arguments)]
    return CommandLine(tuple(words), {"DS_ENV_FILE": environment_file, "PDSH_SSH_ARGS_APPEND": f"{ssh} {SSH_KEEP_ALIVE}".strip()})


def under_slurm(script: str, arguments: Sequence[str], *, options: str) -> CommandLine:
    """sbatch with the user's `options`, as «--nodes=2 --time=8:00:00»."""
    return CommandLine(("sbatch", *shlex.split(options), script, *arguments))


def quote_for_pdsh(word: str) -> str:
    """`word` so that it arrives whole: pdsh replaces %n and the like, and a shell on the other host reads the line.

    DeepSpeed itself puts a word with a space into double quotes, escapes the double quotes in it and nothing else.
    """
    word = word.replace("%", "%%")
    if " " not in word:
        return shlex.quote(word)
    for character in "\\$`":
        word = word.replace(character, "\\" + character)
    return word


def environment_file_text(own: str, forwarded: Mapping[str, str]) -> str:
    """What DeepSpeed reads as `.deepspeed_env`: the user's `own`, then `forwarded` where `own` doesn't set it.

    DeepSpeed reads one such file; so ours takes the user's in, and leaves it as it is.
    """
    lines = [line.strip() for line in own.splitlines() if "=" in line and not line.lstrip().startswith("#")]
    names = {line.partition("=")[0].strip() for line in lines}
    lines += [f"{name}={value}" for name, value in forwarded.items() if name not in names]
    return "".join(f"{line}\n" for line in lines)
