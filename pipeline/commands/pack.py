"""`kappaspeech pack` and `kappaspeech index`: shards of speech, made or taken over."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.speech.shards import ShardIndex


def pack(
    source: Annotated[Path, typer.Argument(help="A folder with transcripts.tsv (file, tab, text), or a folder a language.")],
    output: Annotated[Path, typer.Argument(help="Where the shards go.")],
    language: Annotated[str | None, typer.Option(help="The language, where the folder isn't named after it.")] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Samples a shard.")] = 1000,
    seed: Annotated[int, typer.Option(help="The seed of the shuffle.")] = 0,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out recordings that can't be used, and name them.")] = False,
) -> None:
    """Pack recordings and transcripts into indexed WebDataset shards of 16 kHz FLAC. Finished shards are kept."""
    from pipeline.progress import ProgressBar
    from pipeline.speech.packing import find_recordings
    from pipeline.speech.packing import pack as run_pack

    recordings = find_recordings(source, language=language)
    with ProgressBar("pack", total=len(recordings), shown=True) as bar:
        report = run_pack(recordings, output, shard_size=shard_size, seed=seed, skip_bad=skip_bad, advance=bar.advance)
    _print_shards(report.shards)
    for path, cause in report.rejected.items():
        print(f"left out {path}: {cause}")


def index(
    shards: Annotated[list[str], typer.Argument(help="Paths, globs or brace lists of tar shards.")],
    language: Annotated[str | None, typer.Option(help="The language of samples that don't say theirs.")] = None,
) -> None:
    """Index tar shards made by others, beside each of them."""
    from pipeline.speech.shards import expand, index_shard, write_index

    paths = [path for pattern in shards for path in expand(pattern)]
    made = [index_shard(path, default_language=language) for path in paths]
    for shard in made:
        write_index(shard)
    _print_shards(made)


def _print_shards(shards: Sequence[ShardIndex]) -> None:
    from pipeline.speech.shards import count_hours

    for shard in shards:
        print(f"{shard.path}  {len(shard.samples)} samples")
    hours = ", ".join(f"{language} {hours:.3f} h" for language, hours in sorted(count_hours(shards).items()))
    print(f"{sum(len(shard.samples) for shard in shards)} samples in {len(shards)} shards: {hours}")
