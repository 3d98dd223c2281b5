"""Tasks answered by a trained model and by its base, shared out over ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeVar

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
Part = TypeVar("Part")
Found = TypeVar("Found")


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
    trained, base = _share_out(batches, partial(score_batches, transcriber.model.llm), transcriber, cluster)
    return measure_choices(items, pick(items, trained), None if base is None else pick(items, base))


def _follow(transcriber: Transcriber, items: Sequence[Instruction], cluster: Cluster) -> dict[str, Any]:
    with agreement(cluster):
        prompts = [Prompt(number, tuple(transcriber.chat_ids(item.text))) for number, item in enumerate(items)]
        for prompt in prompts:
            if len(prompt.ids) > WINDOW_TOKENS:
                shown = f"{items[prompt.number].text[:60]!r} has {len(prompt.ids)} tokens with the chat template"
                raise DataError(f"data.tasks: {shown}, and an instruction may have {WINDOW_TOKENS}. Shorten it.")
        batches = cut_prompts(prompts, transcriber.batch_size)
    trained, base = _share_out(batches, partial(_write, transcriber), transcriber, cluster)
    return measure_instructions(items, _in_order(trained), None if base is None else _in_order(base))


def _share_out(
    batches: Sequence[Sequence[Part]],
    answer: Callable[[Sequence[Sequence[Part]]], Mapping[int, Found]],
    transcriber: Transcriber,
    cluster: Cluster,
) -> tuple[dict[int, Found], dict[int, Found] | None]:
    """The values that `answer` finds in all batches, by number, each rank in its share; and the same by the base. A collective.

    If the model is partitioned, a rank that has no batch left answers a part of the first beside the others. That is no answer:
    in a batch of another size numbers may be rounded otherwise.
    """
    mine = batches[cluster.rank :: cluster.world_size]
    count = -(-len(batches) // cluster.world_size) if transcriber.in_step else len(mine)
    beside = [batches[0][:1]] * (count - len(mine))

    def find() -> Mapping[int, Found]:
        found = answer(mine)
        answer(beside)
        return found

    with nullcontext() if transcriber.in_step else agreement(cluster):
        trained, base = find(), None
        if transcriber.base_weights is not None:
            with transcriber.base_weights():
                base = find()
    shares = cluster.gather((trained, base))
    of_base = [share for _, share in shares if share is not None]
    return _join([share for share, _ in shares]), _join(of_base) if len(of_base) == len(shares) else None


def _write(transcriber: Transcriber, batches: Sequence[Sequence[Prompt]]) -> dict[int, str]:
    """The answers by the instructions' numbers."""
    found: dict[int, str] = {}
    for batch in batches:
        texts = transcriber.write([prompt.ids for prompt in batch])
        found.update(zip((prompt.number for prompt in batch), texts, strict=True))
    return found


def _join(shares: Sequence[Mapping[int, Found]]) -> dict[int, Found]:
    return {number: value for share in shares for number, value in share.items()}


def _in_order(found: Mapping[int, str]) -> list[str]:
    return [found[number] for number in sorted(found)]
