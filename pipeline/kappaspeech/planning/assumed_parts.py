"""A configuration whose models or selection aren't there yet, completed so that it can be planned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kappaspeech.config.run_config import RunConfig
from kappaspeech.model.meta_llm import build_meta_llm
from kappaspeech.planning.known_models import stand_in

# Of an LLM's parameters, if nobody says which will train: the 100 tensors of the quickstart are 46 % of its LLM.
# LoRA's share is that of rank 64.
_TRAINED_SHARE, _LORA_SHARE = 0.5, 0.03


@dataclass(frozen=True)
class Completed:
    """A configuration that can be planned, the number of the LLM's parameters that train (None: as its selection says), and
    what was taken for parts that aren't here, a line each."""

    config: RunConfig
    num_trained: int | None
    taken: tuple[str, ...]


def complete(config: RunConfig, folder: Path, *, num_trained: int | None) -> Completed:
    """`config` with what is known by name of models that aren't here, written to `folder`, and a share of the LLM for a
    selection that isn't here, unless `num_trained` says how many parameters train."""
    there = stand_in(config.model.llm, config.model.encoder, folder)
    model = config.model.model_copy(update={"llm": there.llm, "encoder": there.encoder})
    config, taken = config.model_copy(update={"model": model}), there.taken
    selection = config.unfreeze.selection
    if num_trained is None and selection is not None and not Path(selection).exists():
        share = _LORA_SHARE if config.unfreeze.mode == "lora" else _TRAINED_SHARE
        num_trained = round(share * sum(parameter.numel() for parameter in build_meta_llm(model.llm).parameters()))
        line = (
            f"unfreeze.selection: {selection} isn't here; {share:.0%} of the LLM's parameters are taken to train. Say how many "
            "will: --trained-parameters 3e9"
        )
        taken = (*taken, line)
    return Completed(config, num_trained, taken)
