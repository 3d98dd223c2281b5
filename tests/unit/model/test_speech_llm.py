"""The adaptor, the splice and the loss."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional

from kappaspeech.errors import SelectionError
from kappaspeech.labels import IGNORED_LABEL
from kappaspeech.model.adaptor import Adaptor, AdaptorShape, sinusoids, stack_states
from kappaspeech.model.freezing import unfreeze
from kappaspeech.model.llm import load_llm
from kappaspeech.model.loss import alignment_nats
from kappaspeech.model.packed_rows import pack_rows
from kappaspeech.model.speech_llm import SpeechLLM, token_embedding_std
from kappaspeech.model.trained import build_adaptor

SHAPE = AdaptorShape(encoder_width=16, llm_width=32, width=24, num_heads=4, stacking=4, dropout=0.0, embedding_std=0.02)
PREFIX, SUFFIX = torch.tensor([5, 6, 7]), torch.tensor([8, 9])


@pytest.fixture(scope="module")
def model(home) -> SpeechLLM:
    return SpeechLLM(build_adaptor(SHAPE, seed=1), load_llm(str(home / "llm"), dtype=torch.float32))


def states(*counts: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.randn(len(counts), max(counts), 16, generator=torch.Generator().manual_seed(seed))
    lengths = torch.tensor(counts)
    return values * (torch.arange(max(counts))[None] < lengths[:, None])[:, :, None], lengths


def labels(*rows: list[int]) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [IGNORED_LABEL] * (width - len(row)) for row in rows])


def test_stacking_concatenates_neighbours_and_fills_the_last():
    values = torch.arange(10.0).reshape(1, 5, 2)
    assert stack_states(values, 4).tolist() == [[[0, 1, 2, 3, 4, 5, 6, 7], [8, 9, 0, 0, 0, 0, 0, 0]]]


def test_the_adaptor_speaks_at_the_scale_of_the_embeddings_and_at_a_quarter_of_the_rate():
    audio, counts = build_adaptor(SHAPE, seed=1)(*states(41, 8))
    assert audio.shape == (2, 11, 32)
    assert counts.tolist() == [11, 2]
    assert float(audio[0].detach().std()) == pytest.approx(SHAPE.embedding_std, rel=0.05)


def test_positions_are_made_once_for_clips_of_any_length_and_are_those_of_their_own_length(monkeypatch):
    from kappaspeech.model import adaptor as module

    made = []
    monkeypatch.setattr(module, "sinusoids", lambda *shape: made.append(shape[0]) or sinusoids(*shape))
    adaptor = build_adaptor(SHAPE, seed=1)
    short, long = adaptor(*states(41, 8)), adaptor(*states(1600, 8))
    again = adaptor(*states(41, 8))
    assert made == [375, 400]
    assert torch.equal(short[0], again[0])
    like = torch.zeros(1, dtype=torch.bfloat16)
    assert torch.equal(adaptor._positions(11, like), sinusoids(11, SHAPE.width).to(like))
    # neither is learned nor saved
    assert len(adaptor.state_dict()) == len(list(adaptor.parameters()))
    assert long[0].shape[1] == 400


def test_the_adaptor_is_a_function_of_its_seed():
    torch.manual_seed(99)
    one, other, third = build_adaptor(SHAPE, seed=1), build_adaptor(SHAPE, seed=1), build_adaptor(SHAPE, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not torch.equal(one.project.weight, third.project.weight)


def test_a_width_that_its_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="heads"):
        Adaptor(AdaptorShape(16, 32, 30, 4, 4, 0.0, 0.02))


def test_the_loss_is_that_of_each_sample_alone_spliced_by_hand(model):
    values, counts = states(23, 40, 9)
    targets = labels([20, 21, 22, 1], [30, 1], [40, 41, 42, 43, 44, 1])
    expected = 0.0
    embed = model.llm.get_input_embeddings()
    for row in range(3):
        audio, number = model.adaptor(values[row : row + 1, : counts[row]], counts[row : row + 1])
        ids = targets[row][targets[row] != IGNORED_LABEL]
        sequence = torch.cat([embed(PREFIX), audio[0, : int(number)], embed(SUFFIX), embed(ids)])[None]
        logits = model.llm(inputs_embeds=sequence).logits[0]
        expected += float(functional.cross_entropy(logits[-len(ids) - 1 : -1], ids, reduction="sum").detach())
    loss, _ = model(values, counts, PREFIX, SUFFIX, targets)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_more_padding_leaves_the_loss_unchanged(model):
    values, counts = states(23, 40)
    targets = labels([20, 21, 1], [30, 1])
    wider = functional.pad(values, (0, 0, 0, 57))
    longer = functional.pad(targets, (0, 9), value=IGNORED_LABEL)
    loss, padded = model(values, counts, PREFIX, SUFFIX, targets)[0], model(wider, counts, PREFIX, SUFFIX, longer)[0]
    assert float(padded.detach()) == pytest.approx(float(loss.detach()), rel=1e-6)


def test_the_gradient_of_padded_rows_is_the_sum_of_single_rows(model):
    values, counts = states(23, 40, 9)
    targets = labels([20, 21, 22, 1], [30, 1], [40, 41, 42, 43, 44, 1])

    def gradients(rows):
        model.zero_grad()
        for row in rows:
            width = int(counts[row].max())
            model(values[row, :width], counts[row], PREFIX, SUFFIX, targets[row])[0].backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}

    together, apart = gradients([slice(0, 3)]), gradients([slice(row, row + 1) for row in range(3)])
    for name, gradient in together.items():
        # float32 sums in another order, against the largest of a tensor's gradients
        torch.testing.assert_close(gradient, apart[name], rtol=0, atol=1e-5 * float(apart[name].abs().max()) + 1e-7)


def test_a_batch_without_labels_costs_nothing_and_reaches_every_module(model):
    model.zero_grad()
    loss, _ = model(*states(9, 12), PREFIX, SUFFIX, labels([IGNORED_LABEL], [IGNORED_LABEL]))
    assert float(loss.detach()) == 0
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_a_masked_row_changes_nothing_for_its_neighbours(model):
    values, counts = states(23, 2)
    alone = model(values[:1], counts[:1], PREFIX, SUFFIX, labels([20, 21, 1]))[0]
    beside = model(values, counts, PREFIX, SUFFIX, labels([20, 21, 1], [IGNORED_LABEL]))[0]
    assert float(beside.detach()) == pytest.approx(float(alone.detach()), rel=1e-6)


def test_the_scale_of_embeddings_is_measured(model):
    weight = model.llm.get_input_embeddings().weight
    assert token_embedding_std(model.llm) == pytest.approx(float(weight.detach().std()))


def test_exactly_the_named_tensors_are_unfrozen(home):
    llm = load_llm(str(home / "llm"), dtype=torch.float32)
    names = ["model.layers.1.mlp.up_proj.weight", "lm_head.weight"]
    shapes = {name: tuple(dict(llm.named_parameters())[name].shape) for name in names}
    assert unfreeze(llm, shapes) == sorted(names, key=[name for name, _ in llm.named_parameters()].index)
    assert {name for name, parameter in llm.named_parameters() if parameter.requires_grad} == set(names)
    assert unfreeze(llm, {}) == []


@pytest.mark.parametrize(
    ("name", "shape", "complaint"),
    [("model.layers.9.mlp.up_proj.weight", (48, 32), "lacks"), ("model.layers.1.mlp.up_proj.weight", (32, 48), "has shape")],
)
def test_a_selection_of_another_model_is_refused(home, name, shape, complaint):
    with pytest.raises(SelectionError, match=complaint):
        unfreeze(load_llm(str(home / "llm"), dtype=torch.float32), {name: shape})


@pytest.fixture(scope="module")
def aligning(home) -> SpeechLLM:
    return SpeechLLM(build_adaptor(SHAPE, seed=1), load_llm(str(home / "llm"), dtype=torch.float32), alignment_weight=1.0)


def align(model: SpeechLLM, values: torch.Tensor, counts: torch.Tensor, *rows: list[int]) -> float:
    """The alignment loss, of weight 1 in `model`, of a batch."""
    minimised, nats = model(values, counts, PREFIX, SUFFIX, labels(*rows))
    return float(minimised.detach() - nats)


def align_by_enumeration(model: SpeechLLM, row: torch.Tensor, words: list[int], classes: list[int]) -> float:
    """−log of the summed probability of every path that reads `words`, the last of `classes` standing for none."""
    audio, _ = model.adaptor(row[None], torch.tensor([len(row)]))
    tokens = model.llm.get_input_embeddings()(torch.tensor(classes))
    cosines = torch.nn.functional.cosine_similarity(audio[0, :, None], tokens[None], dim=-1)
    log_p = (30.0 * cosines).log_softmax(dim=-1).tolist()
    total = 0.0
    for path in itertools.product(range(len(classes)), repeat=len(log_p)):
        read = [classes[c] for c, _ in itertools.groupby(path)]
        if [token for token in read if token != classes[-1]] == words:
            total += math.exp(sum(log_p[place][c] for place, c in enumerate(path)))
    return -math.log(total)


def test_the_alignment_loss_is_the_probability_of_all_ways_to_read_the_words_off_the_audio(aligning):
    values, counts = states(16, 13)
    eos = 1
    together = align(aligning, values, counts, [20, 21, eos], [22, eos])
    expected = [align_by_enumeration(aligning, values[0, :16], [20, 21], [20, 21, 22, eos])]
    expected.append(align_by_enumeration(aligning, values[1, :13], [22], [20, 21, 22, eos]))
    assert together == pytest.approx(sum(expected), rel=1e-4)


def test_the_alignment_loss_trains_the_adaptor_alone(aligning):
    audio, counts = aligning.adaptor(*states(16))
    targets = labels([20, 21, 1])
    spliced = aligning.splice(audio, counts, PREFIX, SUFFIX, targets)
    embeds = spliced.embeds_BNH[spliced.rows_R, spliced.positions_R + 1].detach()
    nats = alignment_nats(audio, counts, embeds, targets)
    gradients = torch.autograd.grad(nats, list(aligning.parameters()), allow_unused=True)
    reached = {name for (name, _), grad in zip(aligning.named_parameters(), gradients, strict=True) if grad is not None}
    assert reached == {name for name, _ in aligning.named_parameters() if name.startswith("adaptor.")}


def test_aligned_alone_the_adaptor_has_the_same_loss_and_no_layer_of_the_llm_runs(aligning):
    values, counts = states(16, 13)
    targets = labels([20, 21, 1], [22, 1])
    ran: list[str] = []
    hooks = [layer.register_forward_hook(lambda *_: ran.append("layer")) for layer in aligning.llm.get_decoder().layers]
    loss, nats = aligning(values, counts, PREFIX, SUFFIX, targets, alignment_only=True)
    assert ran == []
    assert float(loss.detach()) == pytest.approx(align(aligning, values, counts, [20, 21, 1], [22, 1]), rel=1e-4)
    assert not nats.requires_grad
    loss.backward()
    reached = {name for name, p in aligning.named_parameters() if p.grad is not None}
    assert reached == {name for name, _ in aligning.named_parameters() if name.startswith("adaptor.")}
    aligning.zero_grad()
    # a rank without samples runs the adaptor all the same
    empty, _ = aligning(values, counts, PREFIX, SUFFIX, labels([IGNORED_LABEL], [IGNORED_LABEL]), alignment_only=True)
    empty.backward()
    assert float(empty.detach()) == 0
    assert all(p.grad is not None and not p.grad.any() for p in aligning.adaptor.parameters())
    aligning.zero_grad()
    for hook in hooks:
        hook.remove()


def test_masked_rows_and_texts_longer_than_their_audio_align_to_nothing(aligning):
    values, counts = states(16, 16)
    alone = align(aligning, values[:1], counts[:1], [20, 21, 1])
    assert alone > 1
    assert align(aligning, values, counts, [20, 21, 1], [IGNORED_LABEL]) == pytest.approx(alone, rel=1e-4)
    # four audio positions
    for row in ([20, 21, 22, 23, 24, 1], [IGNORED_LABEL]):
        assert align(aligning, values[:1], counts[:1], row) == 0


def test_a_model_that_does_not_align_computes_the_same_transcript_loss(model, aligning):
    batch = (*states(16, 12), PREFIX, SUFFIX, labels([20, 21, 1], [22, 1]))
    loss, plain = model(*batch)
    assert torch.equal(loss, plain)
    minimised, nats = aligning(*batch)
    assert torch.equal(nats, plain)
    assert minimised > nats + 1
    # DeepSpeed's ranks come apart if two outputs have a graph
    assert minimised.requires_grad
    assert not nats.requires_grad


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_pass_reads_nothing_back_from_its_device(home, monkeypatch, weight):
    """On the meta device nothing can be read: what a GPU would be waited for fails."""
    llm = load_llm(str(home / "llm"), dtype=torch.bfloat16).to("meta")
    model = SpeechLLM(build_adaptor(SHAPE, seed=1).to("meta", torch.bfloat16), llm, alignment_weight=weight)
    # transformers asks once a pass whether positions are those of one text
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda _positions: None)
    # it has no kernel there; its lengths are what it would wait for
    given = []
    monkeypatch.setattr(functional, "ctc_loss", lambda *inputs, **_: given.append(inputs) or inputs[0].sum(dim=(0, 2)))
    values, counts = states(23, 40, 9)
    loss, _ = model(values.to("meta"), counts, PREFIX, SUFFIX, labels([20, 21, 22, 1], [30, 1], [40, 41, 42, 43, 44, 1]))
    loss.backward()
    assert loss.is_meta
    assert [[tensor.device.type for tensor in inputs] for inputs in given] == [["meta", "meta", "cpu", "cpu"]] * (weight > 0)


@pytest.mark.parametrize("packs", [False, True])
@pytest.mark.parametrize("alignment_weight", [0.0, 0.5])
def test_clips_with_prompts_of_their_own_lose_what_they_lose_alone(home, packs, alignment_weight):
    llm = load_llm(str(home / "llm"), dtype=torch.float32, attention="sdpa")
    assert not packs or pack_rows(llm, "sdpa")
    own = SpeechLLM(build_adaptor(SHAPE, seed=1), llm, alignment_weight=alignment_weight, packs=packs)
    prompts = [([5, 6, 7], [8, 9]), ([11], [12, 13, 14]), ([], [15])]
    states_BSE, counts = states(24, 40, 16)
    targets = labels([20, 21, 1], [22, 1], [23, 24, 25, 1])
    padded = [labels(*side) for side in zip(*prompts, strict=True)]
    together = own(states_BSE, counts, *padded, targets)
    alone = []
    for row, prompt in enumerate(prompts):
        ids = (torch.tensor(side, dtype=torch.long) for side in prompt)
        alone.append(own(states_BSE[row : row + 1], counts[row : row + 1], *ids, targets[row : row + 1]))
    assert float(together[1]) == pytest.approx(sum(float(nats) for _, nats in alone), rel=1e-5)
    # another prompt is another loss, or the sums above would say nothing
    swapped = own(states_BSE, counts, padded[0].flip(0), padded[1].flip(0), targets)
    assert float(swapped[1]) != pytest.approx(float(together[1]), rel=1e-4)
    # the adaptor is aligned without a prompt, whose length doesn't shift the labels that it is aligned to
    aligned = [float(own(states_BSE, counts, *ids, targets, alignment_only=True)[1]) for ids in (padded, (PREFIX, SUFFIX))]
    assert aligned[0] == aligned[1]
    assert float(together[0].detach() - together[1]) == pytest.approx(alignment_weight * aligned[0], rel=1e-5)
