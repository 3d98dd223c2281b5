"""Tasks answered by a trained model and by its base, shared out over ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from kappaspeech.errors import DataError
from kappaspeech.evaluation.choice_items import Item, Task, cut_batches, make_rows
from kappaspeech.evaluation.choices import measure_choices, pick, score_batches
from kappaspeech.evaluation.forgetting import WINDOW_TOKENS
from kappaspeech.evaluation.instruction_checks import Instruction
from kappaspeech.evaluation.instructions import Prompt, cut_prompts, measure_instructions
from kappaspeech.evaluation.transcribe import Transcriber
from kappaspeech.ranks.agreement import agreement
from kappaspeech.ranks.cluster import Cluster

# what a record calls the report on each type of task
Reports = dict[str, dict[str, dict[str, Any]]]


def answer_tasks(
    transcriber: Transcriber,
    tasks: Mapping[str, Sequence[Task]],
    cluster: Cluster,
    advance: Callable[[float], None],
    wants_to_stop: Callable[[], bool],
) -> Reports | None:
    """The reports on questions ("tasks") and on instructions ("instructions") by language, on every rank; none of what no
    language has, and None if it was cut short. A collective.

    Both are cut into batches before ranks share these, so that no likelihood and no answer depends on the number of ranks.
    """
    reports: Reports = {}
    for language, items in tasks.items():
        questions = [item for item in items if isinstance(item, Item)]
        instructions = [item for item in items if isinstance(item, Instruction)]
        if any(cluster.gather(wants_to_stop())):
            return None
        if questions:
            reports.setdefault("tasks", {})[language] = _choose(transcriber, questions, cluster)
            advance(len(questions))
        if any(cluster.gather(wants_to_stop())):
            return None
        if instructions:
            reports.setdefault("instructions", {})[language] = _follow(transcriber, instructions, cluster)
            advance(len(instructions))
    return reports


def _choose(transcriber: Transcriber, items: Sequence[Item], cluster: Cluster) -> dict[str, Any]:
    with agreement(cluster):
        transcriber.model.eval()
        batches = cut_batches(make_rows(transcriber.tokenizer, items))
        mine = batches[cluster.rank :: cluster.world_size]
    count = -(-len(batches) // cluster.world_size) if transcriber.in_step else len(mine)
    with nullcontext() if transcriber.in_step else agreement(cluster):
        found = score_batches(transcriber.model.llm, mine, count=count, base=transcriber.base_weights)
    trained, base = zip(*cluster.gather(found), strict=True)
    return measure_choices(items, pick(items, _join(trained)), None if None in base else pick(items, _join(base)))


def _follow(transcriber: Transcriber, items: Sequence[Instruction], cluster: Cluster) -> dict[str, Any]:
    with agreement(cluster):
        prompts = [Prompt(number, tuple(transcriber.chat_ids(item.text))) for number, item in enumerate(items)]
        for prompt in prompts:
            if len(prompt.ids) > WINDOW_TOKENS:
                shown = f"{items[prompt.number].text[:60]!r} has {len(prompt.ids)} tokens with the chat template"
                raise DataError(f"data.tasks: {shown}, and an instruction may have {WINDOW_TOKENS}. Shorten it.")
        batches = cut_prompts(prompts, transcriber.batch_size)
        mine = batches[cluster.rank :: cluster.world_size]
    # a rank that has no batch left answers the first again beside the others
    count = -(-len(batches) // cluster.world_size) if transcriber.in_step else len(mine)
    filled = [*mine, *[batches[0][:1]] * (count - len(mine))]
    with nullcontext() if transcriber.in_step else agreement(cluster):
        trained = _write(transcriber, filled, num_kept=len(mine))
        base = None
        if transcriber.base_weights is not None:
            with transcriber.base_weights():
                base = _write(transcriber, filled, num_kept=len(mine))
    answers, of_base = zip(*cluster.gather((trained, base)), strict=True)
    return measure_instructions(items, _in_order(answers), None if None in of_base else _in_order(of_base))


def _write(transcriber: Transcriber, batches: Sequence[Sequence[Prompt]], *, num_kept: int) -> dict[int, str]:
    """The answers to the first `num_kept` batches, by the instructions' numbers: one answered alone, beside others, may be
    rounded to another."""
    found: dict[int, str] = {}
    for place, batch in enumerate(batches):
        texts = transcriber.write([prompt.ids for prompt in batch])
        if place < num_kept:
            found.update(zip((prompt.number for prompt in batch), texts, strict=True))
    return found


def _join(shares: Sequence[Mapping[int, Any]]) -> dict[int, Any]:
    return {number: value for share in shares for number, value in share.items()}


def _in_order(shares: Sequence[Mapping[int, str]]) -> list[str]:
    found = _join(shares)
    return [found[number] for number in sorted(found)]
