"""Single experts in training, against whole tensors whose gradients are masked."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kappaspeech.errors import SelectionError
from kappaspeech.model.expert_places import find_places
from kappaspeech.model.experts import list_stacks, put_experts, train_experts, without_trained
from kappaspeech.model.freezing import unfreeze
from kappaspeech.model.recomputation import recompute_layers
from kappaspeech.model.trained_tensors import list_trained
from tests.families import make_llm

# family → what a file may call a matrix of number 1 and 3 of its first layer's experts, with others beside them
SELECTED = {
    "Mixtral": [f"model.layers.0.block_sparse_moe.experts.{name}.weight" for name in ("1.w1", "3.w1", "3.w2", "1.w3")],
    "Qwen3-MoE": [f"model.layers.0.mlp.experts.{name}.weight" for name in ("3.gate_proj", "1.up_proj", "1.down_proj")],
    "OLMoE": ["model.layers.0.mlp.experts.gate_up_proj[3]", "model.layers.1.mlp.experts.down_proj[1]"],
    # (expert, input, output), with biases
    "gpt-oss": ["model.layers.0.mlp.experts.gate_up_proj[1]", "model.layers.1.mlp.experts.down_proj[3]"],
    "Granite-MoE": ["model.layers.0.block_sparse_moe.experts.gate_up_proj[1]"],
    # a product of its own, without transformers' choice of an implementation
    "Llama-4": ["model.layers.1.feed_forward.experts.gate_up_proj[1]"],
}


def selected_shapes(llm: Any, names: list[str]) -> dict[str, tuple[int, ...]]:
    """The shapes that these experts can have: of all, those that fit."""
    found = {}
    fused = {name: tuple(p.shape) for name, p in llm.named_parameters() if p.dim() == 3}
    for shape in fused.values():
        for size in {shape[1:], (shape[1] // 2, shape[2])}:
            found |= dict.fromkeys(find_places(llm, dict.fromkeys(names, size)), size)
    return found


def make(family: str, implementation: str | None) -> Any:
    llm = make_llm(family)
    if implementation:
        llm.set_experts_implementation(implementation)
    return llm.requires_grad_(False)


def loss_of(llm: Any, step: int) -> torch.Tensor:
    ids = torch.randint(0, 64, (3, 17), generator=torch.Generator().manual_seed(step))
    logits = llm(inputs_embeds=llm.get_input_embeddings()(ids).detach().requires_grad_()).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def train_masked(llm: Any, places: dict[str, Any], num_steps: int) -> tuple[list[float], list[float]]:
    """Losses and norms of a plain loop on whole tensors: masked gradients, and whatever else moves put back."""
    fused = {place.parameter: llm.get_parameter(place.parameter) for place in places.values()}
    masks = {name: torch.zeros_like(parameter) for name, parameter in fused.items()}
    for place in places.values():
        place.of(masks[place.parameter]).fill_(1)
    for parameter in fused.values():
        parameter.requires_grad_(True)
    before = {name: parameter.detach().clone() for name, parameter in fused.items()}
    adamw = torch.optim.AdamW(fused.values(), lr=1e-2, weight_decay=0.1)
    losses, norms = [], []
    for step in range(num_steps):
        adamw.zero_grad()
        loss = loss_of(llm, step)
        loss.backward()
        for name, parameter in fused.items():
            parameter.grad *= masks[name]
        norms.append(float(torch.nn.utils.clip_grad_norm_(fused.values(), 0.05)))
        adamw.step()
        losses.append(loss.item())
        with torch.no_grad():
            for name, parameter in fused.items():
                parameter.copy_(torch.where(masks[name] > 0, parameter, before[name]))
    return losses, norms


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize(
    ("family", "implementation"),
    [(family, None) for family in SELECTED] + [("Mixtral", "eager"), ("Mixtral", "batched_mm"), ("OLMoE", "eager")],
)
def test_single_experts_train_as_masked_whole_tensors_do_and_the_others_keep_their_bits(family, implementation, recomputed):
    num_steps = 4
    llm, plain = make(family, implementation), make(family, implementation)
    base = {name: parameter.detach().clone() for name, parameter in llm.named_parameters()}
    shapes = selected_shapes(llm, SELECTED[family])
    assert set(shapes) == set(SELECTED[family])
    places = find_places(llm, shapes)
    expected = train_masked(plain, places, num_steps)
    unfreeze(llm, shapes)
    if recomputed:
        recompute_layers(llm, True)
        llm.train()
    stacks = [trained.parameter for trained in list_trained(llm)]
    adamw = torch.optim.AdamW(stacks, lr=1e-2, weight_decay=0.1)
    losses, norms = [], []
    for step in range(num_steps):
        adamw.zero_grad()
        loss = loss_of(llm, step)
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(stacks, 0.05)))
        adamw.step()
        losses.append(loss.item())
    assert losses == pytest.approx(expected[0], rel=1e-6)
    assert norms == pytest.approx(expected[1], rel=1e-4)
    trained = {name: tensor for each in list_trained(llm) for name, tensor in each.split(each.parameter.detach())}
    assert set(trained) == set(shapes)
    by_tensor: dict[str, dict[Any, torch.Tensor]] = {}
    for name, place in places.items():
        # Adam divides by a gradient's own size, so where one is near its rounding the step differs
        torch.testing.assert_close(trained[name], place.of(plain.get_parameter(place.parameter)), rtol=0, atol=2e-4)
        assert not torch.equal(trained[name], place.of(base[place.parameter]))
        by_tensor.setdefault(place.parameter, {})[place] = trained[name]
    # what is exported: these in their places, and every other bit as it was
    for name, matrices in by_tensor.items():
        merged = put_experts(base[name], matrices)
        assert int((merged != base[name]).sum()) <= sum(matrix.numel() for matrix in matrices.values())
        stacked = list_stacks(llm)[name]
        assert torch.equal(without_trained(merged, stacked), without_trained(base[name], stacked))
        assert torch.equal(without_trained(llm.get_parameter(name), stacked), without_trained(base[name], stacked))
    assert all(torch.equal(p, base[name]) for name, p in llm.named_parameters() if name in base and name not in by_tensor)


def test_the_model_computes_with_the_trained_experts_at_once_and_lets_go_of_the_tensor_again():
    llm = make("Mixtral", None)
    name = "model.layers.0.mlp.experts.down_proj"
    before = loss_of(llm, 0).detach()
    unfreeze(llm, {f"{name}[2]": llm.get_parameter(name).shape[1:]})
    assert torch.equal(loss_of(llm, 0), before)
    (trained,) = list_trained(llm)
    with torch.no_grad():
        trained.parameter.mul_(2)
        assert not torch.equal(loss_of(llm, 0), before)
        trained.parameter.div_(2)
    assert torch.equal(loss_of(llm, 0), before)
    experts = llm.get_submodule("model.layers.0.mlp.experts")
    assert experts.down_proj is dict(experts.named_parameters())["down_proj"]


def test_only_the_selected_experts_have_optimizer_state():
    llm = make("Mixtral", None)
    name = "model.layers.0.mlp.experts.down_proj"
    shape = tuple(llm.get_parameter(name).shape)
    unfreeze(llm, {f"{name}[2]": shape[1:], f"{name}[0]": shape[1:]})
    (trained,) = list_trained(llm)
    # in the order of their numbers, one parameter for all
    assert trained.shapes == {f"{name}[0]": shape[1:], f"{name}[2]": shape[1:]}
    assert trained.parameter.shape == (2, *shape[1:])
    assert sum(p.numel() for p in llm.parameters() if p.requires_grad) == 2 * shape[1] * shape[2]
    whole = trained.parameter.detach().clone()
    assert torch.equal(trained.join(dict(trained.split(whole)).__getitem__), whole)


def test_an_expert_that_the_model_lacks_or_that_is_named_twice_is_refused():
    name = "model.layers.0.mlp.experts.down_proj"
    shape = tuple(make("Mixtral", None).get_parameter(name).shape)
    for shapes, says in (
        ({f"{name}[4]": shape[1:]}, "none of its experts"),
        ({f"{name}[1]": shape[:2]}, "none of its experts"),
        ({name: shape, f"{name}[1]": shape[1:]}, r"also model\.layers\.0\.mlp\.experts\.down_proj,"),
        ({f"{name}[1]": shape[1:], "model.layers.0.block_sparse_moe.experts.1.w2.weight": shape[1:]}, "where it lies"),
    ):
        with pytest.raises(SelectionError, match=says):
            unfreeze(make("Mixtral", None), shapes)


def test_nothing_is_wrapped_without_single_experts():
    llm = make("Mixtral", None)
    train_experts(llm, {})
    assert list_stacks(llm) == {}
    assert "forward" not in llm.get_submodule("model.layers.0.mlp.experts").__dict__
    tensor = torch.ones(2, 3, 4)
    assert without_trained(tensor, ()) is tensor


class ReadElsewhere(torch.nn.Module):
    """Fused experts that another module than their own computes with: trained alone, they would be passed over in silence."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = torch.nn.Module()
        self.experts.up = torch.nn.Parameter(torch.ones(2, 4, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.experts.up[0].T


def test_experts_that_another_module_reads_are_refused():
    with pytest.raises(SelectionError, match=r"ReadElsewhere computes with experts\.up .*--experts together"):
        unfreeze(ReadElsewhere(), {"experts.up[1]": (4, 3)})


def test_experts_that_lie_in_one_matrix_train_together_or_not_at_all():
    llm = make("DBRX", None)
    name = "transformer.blocks.0.ffn.experts.mlp.w1"
    with pytest.raises(SelectionError, match=r"all of its experts in one matrix \(96, 32\) .*--experts together"):
        unfreeze(llm, {f"{name}[1]": (24, 32)})
    assert unfreeze(llm, {name: (96, 32)}) == [name]
