"""A run's proof that its frozen weights are bit-equal after training."""

from __future__ import annotations

from collections.abc import Mapping

from kappaspeech.artefacts import digest_json
from kappaspeech.model.experts import list_stacks, without_trained
from kappaspeech.model.lora import public_names
from kappaspeech.model.tensor_digests import Hasher, digest_tensor, share_out
from kappaspeech.ranks.agreement import agreement
from kappaspeech.ranks.cluster import Cluster
from kappaspeech.runs.folder import RunFolder
from kappaspeech.training.assembly import Assembly
from kappaspeech.zero3.engine import TrainingEngine


def digest_frozen(assembly: Assembly, cluster: Cluster) -> dict[str, str]:
    """SHA-256 of each frozen tensor of LLM and adaptor as it was loaded, without the experts of it that train; the ranks share
    the hashing. A collective."""
    names = public_names(assembly.model)
    stacks = {names[name]: found for name, found in list_stacks(assembly.model).items()}
    frozen = [(names[name], p) for name, p in assembly.model.named_parameters() if not p.requires_grad]
    mine = Hasher()
    for (name, parameter), rank in zip(frozen, share_out([p.nbytes for _, p in frozen], cluster.world_size), strict=True):
        if rank == cluster.rank:
            mine.add(name, without_trained(parameter, stacks.get(name, ())), stays=True)
    return {name: digest for part in cluster.gather(mine.digests()) for name, digest in part.items()}


def digest_start(assembly: Assembly, encoder_digests: Mapping[str, str]) -> str:
    """SHA-256 of all weights that training starts from, whether they train or not: alike in arms that may be compared."""
    adaptor = {name: digest_tensor(tensor) for name, tensor in assembly.model.adaptor.state_dict().items()}
    return digest_json({"adaptor": adaptor, "encoder": encoder_digests, "base": assembly.base_digest})


def check_frozen(
    engine: TrainingEngine, assembly: Assembly, cluster: Cluster, folder: RunFolder, before: Mapping[str, str]
) -> None:
    """Write every frozen tensor's digest before and after; raise if one has changed, since the run then proves nothing."""
    after = {**assembly.encoder.digests(), **engine.frozen_digests()}
    with agreement(cluster):
        if cluster.rank == 0:
            folder.write_frozen(before, after)
