"""A command that starts itself again, as ranks of this host."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence


def start_ranks(num_ranks: int, command: str, options: Mapping[str, object], arguments: Sequence[str]) -> int:
    """Run `kappaspeech COMMAND` on so many ranks of this host, a GPU each, or an equal share of its cores; its exit code.

    `options` are as `to_words` takes them. Raises `ConfigError` if this is a rank already, or if there are fewer GPUs.
    """
    from kappaspeech.blas import pin_threads
    from kappaspeech.errors import ConfigError
    from kappaspeech.gpus import count_gpus
    from kappaspeech.processors import share_cores
    from kappaspeech.ranks.workers import run_workers

    if "RANK" in os.environ:
        raise ConfigError("--nproc starts ranks, and this is already one that a launcher started.")
    num_gpus = count_gpus()
    if 0 < num_gpus < num_ranks:
        raise ConfigError(f"--nproc is {num_ranks}, and this host has {num_gpus} GPUs. Give one rank for each at most.")
    threads: dict[str, str] = {}
    if not num_gpus:
        pin_threads(threads, share_cores(num_ranks))
    words = [command, *to_words(options), "--", *arguments]
    return run_workers(words, num_workers=num_ranks, variables=threads)


def to_words(options: Mapping[str, object]) -> list[str]:
    """Options as a command line has them: True is a flag, a list is given item by item, and None and False are left out."""
    words = []
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(option)
        elif isinstance(value, list):
            words += [f"{option}={item}" for item in value]
        elif value is not None and value is not False:
            words.append(f"{option}={value}")
    return words
