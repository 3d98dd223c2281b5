"""What a run proves of its weights: that the frozen ones are bit-equal, and how far the trained ones have moved."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from kappaspeech.artefacts import digest_json
from kappaspeech.config.run_config import RunConfig
from kappaspeech.evaluation.forgetting import relative_change
from kappaspeech.model.llm import load_llm
from kappaspeech.model.lora import is_factor, merge, public_names
from kappaspeech.model.prefixes import ENCODER_PREFIX, LLM_PREFIX
from kappaspeech.ranks.agreement import agreement
from kappaspeech.ranks.cluster import Cluster
from kappaspeech.runs.folder import Movement, RunFolder
from kappaspeech.scan.spectrum import spectrum_stats
from kappaspeech.training.digests import Hasher, digest_tensor, share_out
from kappaspeech.training.engine import TrainingEngine
from kappaspeech.training.parts import Parts


def digest_frozen(parts: Parts, cluster: Cluster) -> dict[str, str]:
    """SHA-256 of each frozen tensor of LLM and adaptor as it was loaded; the ranks share the hashing. A collective."""
    names = public_names(parts.model)
    frozen = [(names[name], p) for name, p in parts.model.named_parameters() if not p.requires_grad]
    mine = Hasher()
    for (name, parameter), rank in zip(frozen, share_out([p.nbytes for _, p in frozen], cluster.world_size), strict=True):
        if rank == cluster.rank:
            mine.add(name, parameter, stays=True)
    return {name: digest for part in cluster.gather(mine.digests()) for name, digest in part.items()}


def digest_encoder(parts: Parts) -> dict[str, str]:
    """SHA-256 of each of the encoder's tensors, as it computes with them."""
    return {f"{ENCODER_PREFIX}{name}": digest_tensor(tensor) for name, tensor in parts.encoder.whisper.state_dict().items()}


def digest_start(parts: Parts, encoder_digests: Mapping[str, str]) -> str:
    """SHA-256 of all weights that training starts from, whatever of them trains: alike in arms that may be compared."""
    adaptor = {name: digest_tensor(tensor) for name, tensor in parts.model.adaptor.state_dict().items()}
    return digest_json({"adaptor": adaptor, "encoder": encoder_digests, "base": parts.base_digest})


def prove_frozen(engine: TrainingEngine, parts: Parts, cluster: Cluster, folder: RunFolder, before: Mapping[str, str]) -> None:
    """Write every frozen tensor's digest before and after; raise where one has changed, for then the run proves nothing."""
    after = {**digest_encoder(parts), **engine.frozen_digests()}
    with agreement(cluster):
        if cluster.rank == 0:
            folder.write_frozen(before, after)


def write_drift(engine: TrainingEngine, parts: Parts, config: RunConfig, cluster: Cluster, folder: RunFolder) -> None:
    """Write how far each trained tensor of the LLM has moved from the base model, and its κ before and after. A collective.

    Ranks share the tensors out as they are gathered, and measure their share once all are: a rank that measured in between
    would keep the others waiting.
    """
    base: dict[str, Tensor] = {}
    with agreement(cluster):
        # of the files' own dtype, so that they are mapped and not copied
        llm = load_llm(config.model.llm, dtype=None, attention=parts.arithmetic.attention)
        base = {name: parameter.detach() for name, parameter in llm.named_parameters()}
    factors: dict[str, Tensor] = {}
    mine: dict[str, Tensor] = {}
    for index, (public, tensor) in enumerate(engine.gather_result()):
        name = public.removeprefix(LLM_PREFIX)
        if name != public and is_factor(name):
            factors[name] = tensor
        elif name != public and index % cluster.world_size == cluster.rank:
            mine[name] = tensor
    moved: dict[str, Movement] = {}
    with agreement(cluster):
        device = str(engine.device) if engine.device.type == "cuda" else None
        for index, (name, before) in enumerate(base.items()):
            if name in mine:
                moved[name] = measure_movement(before, mine.pop(name), device=device)
            elif index % cluster.world_size == cluster.rank and (after := merge(name, before, factors, parts.lora)) is not before:
                moved[name] = measure_movement(before, after, device=device)
    everything = {name: movement for share in cluster.gather(moved) for name, movement in share.items()}
    with agreement(cluster):
        if cluster.rank == 0:
            folder.write_drift({name: everything[name] for name in base if name in everything})


def measure_movement(before: Tensor, after: Tensor, *, device: str | None = None) -> Movement:
    """How a tensor has moved; κ is measured of matrices alone, on `device` or the CPU."""
    kappas = [spectrum_stats(tensor, device=device).kappa if tensor.dim() == 2 else None for tensor in (before, after)]
    return Movement(relative_change(before, after), *kappas)
