"""A finished run, or its export, opened for use: the whole model in one process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from kappaspeech.artefacts import read_json
from kappaspeech.config.run_config import RunConfig
from kappaspeech.errors import CheckpointError, InputError
from kappaspeech.evaluation.transcribe import Transcriber
from kappaspeech.json_lines import Record, read_lines
from kappaspeech.model.adaptor import AdaptorShape
from kappaspeech.model.encoder import load_encoder
from kappaspeech.model.llm import load_tokenizer
from kappaspeech.model.lora import lora_from_record
from kappaspeech.model.precision import measure_rates
from kappaspeech.model.prefixes import ADAPTOR_PREFIX
from kappaspeech.model.speech_llm import SpeechLLM
from kappaspeech.model.trained import find_base, load_trained_model
from kappaspeech.runs.best import read_best
from kappaspeech.runs.checkpoints import checkpoints_by_step, find_weights, read_state
from kappaspeech.runs.contents import DISTANCES_FILE, RECORD_FILE, step_of
from kappaspeech.runs.folder import RunFolder
from kappaspeech.runs.records import MOST_BEYOND_BUDGET, is_distance
from kappaspeech.trained.arithmetic import UseArithmetic, keep_attention
from kappaspeech.trained.difference import ADAPTOR_FILE, SCHEMA_VERSION, SPEECH_FILE, TRAINED_FILE, Difference, SpeechParts
from kappaspeech.trained.whole_opening import LoadedParts, is_whole, load_whole

# one of a run's checkpoints: that of a step, the one of lowest WER, or the last
Step = int | Literal["best"] | None


@dataclass(frozen=True)
class TrainedRun:
    """A run's configuration and one of its checkpoints."""

    path: Path
    config: RunConfig
    record: dict[str, Any]
    checkpoint: Path
    step: int
    train_seconds: float

    @property
    def parts(self) -> SpeechParts:
        return SpeechParts(
            encoder=self.config.model.encoder,
            pad_to_30s=self.config.model.pad_to_30s,
            instruction=self.config.model.instruction,
            chat_template=self.config.model.chat_template,
            dtype=str(self.record["dtype"]),
            adaptor=AdaptorShape(**self.record["adaptor"]),
            encoder_dtype=str(self.record["encoder_dtype"]),
            attention=keep_attention(self.config.model.attn_implementation, self.record.get("attn_implementation")),
            prompt=self.record.get("prompt"),
            num_beams=self.config.evaluation.num_beams,
        )

    @property
    def difference(self) -> Difference:
        digest = str(self.record["checkpoint_digest"])
        lora = lora_from_record(self.record.get("lora"))
        return Difference(self.path, self.parts, self.config.model.llm, digest, find_weights(self.checkpoint), lora)

    def load_model(self, use: UseArithmetic) -> SpeechLLM:
        """The base model with this checkpoint's trained tensors. Raises `CheckpointError`, also if the base has changed."""
        return self.difference.load_model(use)


def choose_device(local_rank: int) -> torch.device:
    """This rank's GPU if there is one, else the CPU. Ranks take turns on the GPUs that they see, which may be one for each."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def parse_step(text: str | None) -> Step:
    """The value of --step: a step, "best", or nothing. Raises `InputError`."""
    if text is None:
        return None
    if text == "best":
        return "best"
    if not text.isdecimal():
        raise InputError(f"--step is {text!r}; give a checkpoint's step, or best.")
    return int(text)


def check_choice(path: Path, *, step: Step = None, base: str | None = None) -> None:
    """Raise `InputError` if a step is asked of an export, or a base of one that holds its whole LLM."""
    if step is not None and not (path / RECORD_FILE).exists() and ((path / SPEECH_FILE).exists() or is_whole(path)):
        raise InputError(f"--step chooses one of a run's checkpoints, and {path} is an export, which holds one. Leave it out.")
    if base is not None and (is_whole(path) or _is_merged(path)):
        raise InputError(f"--base is for a run or a difference, and {path} holds its whole LLM. Leave it out.")


def _is_merged(path: Path) -> bool:
    """Return whether `path` is an export of LLM and adaptor."""
    return (path / SPEECH_FILE).exists() and (path / ADAPTOR_FILE).exists()


def open_run(path: Path, *, step: Step = None) -> TrainedRun:
    """A run folder at its last checkpoint, that of `step`, or that of lowest WER. Raises `InputError` or `CheckpointError`."""
    folder = RunFolder(path)
    config, record = folder.read_config(), folder.read_record()
    states = checkpoints_by_step(folder.checkpoints)
    if not states:
        raise CheckpointError(f"{path} has no checkpoint yet. Let its training reach one.")
    if step == "best":
        best = read_best(folder.checkpoints)
        if best is None:
            raise CheckpointError(
                f"{path} has no checkpoint marked as best. A training with data.test and training.keep_best marks one."
            )
        step = step_of(best)
    wanted = max(states) if step is None else step
    if wanted not in states:
        raise CheckpointError(f"{path} has no checkpoint of step {wanted}; it has {', '.join(map(str, sorted(states)))}.")
    state = read_state(states[wanted])
    return TrainedRun(path, config, record, states[wanted], wanted, float(state["train_seconds"]))


def explain_best(path: Path, step: Step) -> str | None:
    """A sentence for whoever chooses a run's best checkpoint, if that was saved while the LLM was further from its base than the
    run's forgetting budget: it is the one of lowest WER, wherever the LLM was. None if there is nothing to say."""
    if step != "best" or not (path / RECORD_FILE).exists():
        return None
    chosen = open_run(path, step=step).step
    distances = read_lines(path / DISTANCES_FILE, is_record=is_distance)
    known = [record for record in distances if record["step"] <= chosen]
    if not known or not _is_beyond(known[-1]):
        return None
    told = (
        f"The best checkpoint of {path} by WER, of step {chosen}, was saved {known[-1]['kl_nats']:.3g} nats a token from the "
        f"base, beyond the run's budget of {known[-1]['budget_nats']:g}."
    )
    last = max(checkpoints_by_step(RunFolder(path).checkpoints))
    kept = [record for record in distances if record["step"] <= last][-1]
    return told if _is_beyond(kept) else f"{told} The last one keeps it: leave --step out."


def _is_beyond(distance: Record) -> bool:
    return bool(distance["kl_nats"] > MOST_BEYOND_BUDGET * distance["budget_nats"])


def pin_step(path: Path, step: Step) -> Step:
    """The step of the run's checkpoint that `step` means now, for ranks that open it later while the run trains on; `step` itself
    for an export."""
    return open_run(path, step=step).step if (path / RECORD_FILE).exists() else step


def open_difference(path: Path, *, step: Step = None, base: str | None = None) -> Difference:
    """The trained tensors of a run folder's checkpoint (the last, that of `step`, the best), or of `export --only difference`.

    `base` names the base model if it isn't in its recorded place. Raises `InputError` if `path` is neither.
    """
    check_choice(path, step=step)
    if (path / RECORD_FILE).exists():
        found = open_run(path, step=step).difference
    elif (path / SPEECH_FILE).exists() and (path / TRAINED_FILE).exists():
        found = Difference.from_json(path, read_json(path / SPEECH_FILE, schema_version=SCHEMA_VERSION))
    else:
        raise InputError(f"{path} is neither a run folder ({RECORD_FILE}) nor a difference ({SPEECH_FILE} and {TRAINED_FILE}).")
    return replace(found, llm=base) if base else found


def open_transcriber(
    path: Path,
    *,
    device: torch.device,
    batch_size: int,
    max_new_tokens: int,
    num_beams: int | None = None,
    step: Step = None,
    base: str | None = None,
    use: UseArithmetic | None = None,
) -> Transcriber:
    """A transcriber with a run folder's checkpoint (the last, that of `step`, the best), with an export of any kind, or with a
    difference.

    `num_beams` is by default that of the run's own evaluations. `base` names the base model of a run or difference if it isn't in
    its recorded place. `use` is the arithmetic, by default the
    one that this process finds fast. Raises `InputError` if `path` is none of these.
    """
    check_choice(path, step=step, base=base)
    use = use or UseArithmetic.of(measure_rates(device))
    loaded = load_whole(path, use) if is_whole(path) else _load_parts(path, use, step=step, base=base)
    return Transcriber(
        loaded.model.to(device),
        loaded.encoder.to(device),
        loaded.tokenizer,
        loaded.prompt,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        num_beams=num_beams or loaded.num_beams,
        base_weights=find_base(loaded.model),
        chat_template=loaded.chat_template,
    )


def _load_parts(path: Path, use: UseArithmetic, *, step: Step, base: str | None) -> LoadedParts:
    """The parts of what keeps them apart."""
    if _is_merged(path):
        from safetensors.torch import load_file

        parts = SpeechParts.from_json(read_json(path / SPEECH_FILE, schema_version=SCHEMA_VERSION), path)
        where = _find_encoder(parts.encoder, path)
        trained = {ADAPTOR_PREFIX + name: tensor for name, tensor in load_file(path / ADAPTOR_FILE).items()}
        llm = str(path)
        dtype, attention = use.dtype(parts.dtype), parts.choose_attention(use, llm)
        rounded = parts.torch_dtype
        model = load_trained_model(llm, parts.adaptor, trained, dtype=dtype, trained_in=rounded, attention=attention)
        model.base_tensors = None  # this folder's base is the trained model itself
    elif (path / SPEECH_FILE).exists() or (path / RECORD_FILE).exists():
        difference = open_difference(path, step=step, base=base)
        parts, llm = difference.parts, difference.llm
        where = _find_encoder(parts.encoder, path)
        model = difference.load_model(use)
    else:
        raise InputError(f"{path} is neither a run folder ({RECORD_FILE}) nor an export ({SPEECH_FILE}).")
    tokenizer = load_tokenizer(llm)
    encoder = load_encoder(where, pad_to_30s=parts.pad_to_30s, dtype=use.dtype(parts.encoder_dtype))
    return LoadedParts(model, encoder, tokenizer, parts.make_prompt(tokenizer), parts.chat_template, parts.num_beams)


def _find_encoder(name_or_path: str, folder: Path) -> str:
    """The speech encoder of the run or export in `folder`: where it was in the training, or in that folder, to which it may have
    been moved. Raises `CheckpointError` for a path at which there is nothing, before the LLM is loaded."""
    recorded = Path(name_or_path)
    beside = folder / recorded.name
    if recorded.exists() or not (beside.exists() or recorded.is_absolute()):
        return name_or_path
    if not beside.exists():
        raise CheckpointError(
            f"The speech encoder of {folder} isn't at {recorded}, where it was in the training. Put it back there, or copy it to "
            f"{beside}."
        )
    return str(beside)
