"""`kappaspeech pack` and `kappaspeech index`: shards of speech, made or taken over."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kappaspeech.commands.choices import either
from kappaspeech.escaping import for_terminal
from kappaspeech.speech.layouts import LAYOUTS, find_recordings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kappaspeech.speech.shards import ShardIndex


def pack(
    source: Annotated[
        Path,
        typer.Argument(help="A corpus: a folder, a manifest of JSON lines, or hf:USER/NAME, a data set of the Hugging Face hub."),
    ],
    output: Annotated[Path, typer.Argument(help="Folder of the shards.")],
    layout: Annotated[str | None, typer.Option(help=f"{either(LAYOUTS)}. Default: recognised by the files.")] = None,
    language: Annotated[str | None, typer.Option(help="The language, if the corpus doesn't name it.")] = None,
    text_column: Annotated[
        str | None, typer.Option(help="The column or key of the text, in data sets and manifests. Default: a usual one.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="train, dev, test or another of the corpus's splits. Default: what isn't held out."),
    ] = None,
    prefix: Annotated[
        str | None, typer.Option(help="Put before the shards' names, so that several corpora can lie in one folder.")
    ] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Samples a shard.")] = 1000,
    seed: Annotated[int, typer.Option(help="The seed of the shuffle.")] = 0,
    max_seconds: Annotated[float | None, typer.Option(min=0.1, help="Longer recordings can't be used.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out recordings that can't be used, and name them.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that encode. Default: cores.")] = None,
) -> None:
    """Pack recordings and transcripts into indexed WebDataset shards of 16 kHz FLAC. Finished shards are kept."""
    from kappaspeech.needed_packages import need
    from kappaspeech.outputs import sweep, try_folder
    from kappaspeech.progress import ProgressBar
    from kappaspeech.speech.hub_datasets import HUB_PREFIX, fetch_dataset
    from kappaspeech.speech.packing import REPORT_NAME
    from kappaspeech.speech.packing import pack as run_pack

    need("kappaspeech pack", "soundfile", "soxr", "webdataset")
    try_folder(output)
    sweep(output)
    if str(source).startswith(HUB_PREFIX):
        source = fetch_dataset(str(source), split=split)
        # the hub's cache may hold more of it than was fetched here
        layout = layout or "parquet"
    recordings = find_recordings(
        source, layout=layout, language=language, split=split, keeps_faults=skip_bad, text_column=text_column
    )
    with ProgressBar("pack", total=len(recordings), shown=True) as bar:
        report = run_pack(
            recordings,
            output,
            shard_size=shard_size,
            seed=seed,
            skip_bad=skip_bad,
            max_seconds=max_seconds,
            num_processes=workers,
            prefix=prefix,
            advance=bar.advance,
        )
    _print_shards(report.shards)
    for path, cause in report.rejected.items():
        print(for_terminal(f"left out {path}: {cause}"))
    for stale in report.removed:
        print(for_terminal(f"removed {stale}: this corpus was cut otherwise before"))
    print(for_terminal(str(output / REPORT_NAME)))


def index(
    shards: Annotated[
        list[str],
        typer.Argument(help="Paths, URLs, globs or brace lists of tar shards; or folders of NeMo's tars or of lhotse's Shar."),
    ],
    language: Annotated[str | None, typer.Option(help="Language of samples that name none.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write one merged index (.index) instead: for URLs, and for very many shards.")
    ] = None,
) -> None:
    """Index tar shards that others made, beside each shard or into one file. With one file, valid indices are taken over.

    A data set of NeMo or lhotse, whose lists lie beside the tars, has one index.
    """
    from kappaspeech.needed_packages import need
    from kappaspeech.outputs import try_output
    from kappaspeech.progress import ProgressBar
    from kappaspeech.speech.in_place import is_in_place
    from kappaspeech.speech.shard_indexing import index_shard
    from kappaspeech.speech.shards import expand, write_index
    from kappaspeech.speech.source import need_reader
    from kappaspeech.speech.table import SampleTable, write_merged

    need("kappaspeech index", "soundfile")
    for pattern in shards:
        need_reader(pattern)
    if output is not None:
        try_output(output)
    if any(map(is_in_place, shards)):
        _index_in_place(shards, language, output)
        return
    places = [where for pattern in shards for where in expand(pattern)]
    made = []
    with ProgressBar("index", total=len(places), shown=True) as bar:
        for where in places:
            shard = (_find_index(where) if output else None) or index_shard(where, default_language=language)
            if output is None:
                write_index(shard)
            made.append(shard)
            bar.advance(1)
    if output is not None:
        write_merged(SampleTable.of(made), output)
    _print_shards(made)
    if output is not None:
        print(for_terminal(str(output)))


def _index_in_place(sources: Sequence[str], language: str | None, output: Path | None) -> None:
    from kappaspeech.errors import DataError
    from kappaspeech.speech.in_place import find_kept, index_in_place, open_in_place
    from kappaspeech.speech.table import MERGED_SUFFIX, write_merged

    if len(sources) > 1:
        raise DataError(
            f"{sources[0]} and {sources[1]} don't go into one index: one of them has lists beside its tars. Give one at a time."
        )
    if output is None:
        table, kept = open_in_place(sources[0], language=language), find_kept(sources[0], language=language)
        if kept is None:
            raise DataError(f"Beside {sources[0]} no index can be written. Write it elsewhere: --output FILE{MERGED_SUFFIX}.")
        output = kept[0]
    else:
        table = index_in_place(sources[0], language=language)
        write_merged(table, output)
    _print_hours(len(table), len(table.shards), table.count_hours())
    print(for_terminal(str(output)))


def _find_index(where: str) -> ShardIndex | None:
    """The index that is beside a shard already, if it is right."""
    from kappaspeech.errors import DataError
    from kappaspeech.speech.shards import read_index

    try:
        return read_index(where)
    except DataError:
        return None


def _print_shards(shards: Sequence[ShardIndex]) -> None:
    from kappaspeech.speech.shards import count_hours

    for shard in shards:
        print(for_terminal(f"{shard.where}  {len(shard.samples)} samples"))
    _print_hours(sum(len(shard.samples) for shard in shards), len(shards), count_hours(shards))


def _print_hours(num_samples: int, num_shards: int, hours: dict[str, float]) -> None:
    said = ", ".join(f"{language} {number:.3f} h" for language, number in sorted(hours.items()))
    print(for_terminal(f"{num_samples} samples in {num_shards} shards: {said}"))
