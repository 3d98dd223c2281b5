"""The distance of a run's trained weights from their start."""

from __future__ import annotations

from torch import Tensor

from kappaspeech.config.run_config import RunConfig
from kappaspeech.evaluation.forgetting import relative_change
from kappaspeech.model.expert_places import find_places
from kappaspeech.model.llm import load_llm
from kappaspeech.model.lora import is_factor, merge
from kappaspeech.model.prefixes import LLM_PREFIX
from kappaspeech.ranks.agreement import agreement
from kappaspeech.ranks.cluster import Cluster
from kappaspeech.runs.folder import Movement, RunFolder
from kappaspeech.scan.spectrum import spectrum_stats
from kappaspeech.training.assembly import Assembly
from kappaspeech.zero3.engine import TrainingEngine


def write_drift(engine: TrainingEngine, assembly: Assembly, config: RunConfig, cluster: Cluster, folder: RunFolder) -> None:
    """Write the distance of each trained tensor of the LLM from the base model, and its κ before and after. A collective.

    Ranks share the tensors out as they are gathered, and measure their share once all are: a rank that measured in between would
    keep the others waiting.
    """
    base: dict[str, Tensor] = {}
    with agreement(cluster):
        # in the files' own dtype, so that they are mapped and not copied
        llm = load_llm(config.model.llm, dtype=None, attention=assembly.arithmetic.attention)
        base = {name: parameter.detach() for name, parameter in llm.named_parameters()}
    factors: dict[str, Tensor] = {}
    mine: dict[str, Tensor] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for index, (public, tensor) in enumerate(engine.states.gather_result()):
        name = public.removeprefix(LLM_PREFIX)
        if name != public:
            shapes[name] = tuple(tensor.shape)
        if name != public and is_factor(name):
            factors[name] = tensor
        elif name != public and index % cluster.world_size == cluster.rank:
            mine[name] = tensor
    moved: dict[str, Movement] = {}
    with agreement(cluster):
        device = str(engine.device) if engine.device.type == "cuda" else None
        base |= {name: place.of(base[place.parameter]) for name, place in find_places(llm, shapes).items()}
        for index, (name, before) in enumerate(base.items()):
            if name in mine:
                moved[name] = measure_movement(before, mine.pop(name), device=device)
            elif (
                index % cluster.world_size == cluster.rank
                and (after := merge(name, before, factors, assembly.lora)) is not before
            ):
                moved[name] = measure_movement(before, after, device=device)
    everything = {name: movement for share in cluster.gather(moved) for name, movement in share.items()}
    with agreement(cluster):
        if cluster.rank == 0:
            folder.write_drift({name: everything[name] for name in base if name in everything})


def measure_movement(before: Tensor, after: Tensor, *, device: str | None = None) -> Movement:
    """The movement of a tensor; κ is measured of matrices alone, on `device` or the CPU."""
    kappas = [spectrum_stats(tensor, device=device).kappa if tensor.dim() == 2 else None for tensor in (before, after)]
    return Movement(relative_change(before, after), *kappas)
