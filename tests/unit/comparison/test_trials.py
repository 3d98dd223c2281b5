"""An experiment's trials: their numbers, and what each of them unfreezes."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from kappaspeech.comparison.experiment import read_experiment, slug
from kappaspeech.comparison.trials import make_selection, make_trial_config, prepare, read_state
from kappaspeech.config.run_config import read_run_config
from kappaspeech.errors import ConfigError, InputError
from kappaspeech.model.llm import load_llm
from kappaspeech.model.marking import mark_trained
from kappaspeech.runs.folder import RunFolder
from kappaspeech.scan.ranking import KappaRanking
from kappaspeech.selection.candidates import module_type
from kappaspeech.selection.tensor_selection import TensorSelection
from tests import tiny

REPOSITORY = Path(__file__).parents[3]


def read(folder, home, **changes):
    tiny.write_config(folder / "run.yaml", home, folder / "unused")
    content = {
        "base": "run.yaml",
        "output": str(folder / "out"),
        "ranking": str(home / "ranking.json"),
        "count": 5,
        "arms": [
            {"name": "smallest κ", "select": "smallest"},
            {"name": "largest κ", "select": "largest"},
            {"name": "drawn anew", "select": "random"},
            {"name": "drawn once", "select": "random", "seed": 4},
            {"name": "adaptor", "select": "adaptor"},
            {"name": "LoRA", "select": "lora"},
            {"name": "κ-LoRA", "select": "kappa-lora"},
            {"name": "all", "select": "all"},
        ],
        "seeds": [17, 18],
        **changes,
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return read_experiment(folder / "experiment.yaml")


def select_all(experiment, home):
    ranking = KappaRanking.read(home / "ranking.json")
    return {trial.name: make_selection(experiment, trial, ranking) for trial in experiment.trials if trial.selection_path}


def test_numbers_go_through_all_arms_of_a_seed_before_the_next(home, tmp_path):
    experiment = read(tmp_path, home)
    assert [trial.number for trial in experiment.trials] == list(range(16))
    assert [(trial.arm.name, trial.seed) for trial in experiment.trials[6:10]] == [
        ("κ-LoRA", 17),
        ("all", 17),
        ("smallest κ", 18),
        ("largest κ", 18),
    ]
    alone = read(tmp_path, home, seeds=[])
    assert [trial.seed for trial in alone.trials] == [alone.base.seed] * 8


def test_with_equal_counts_each_arm_has_as_many_tensors(home, tmp_path):
    chosen = select_all(read(tmp_path, home), home)
    assert {len(selection.tensors) for selection in chosen.values()} == {5}
    kappas = [tensor.kappa for tensor in chosen["smallest-kappa-seed17"].tensors]
    assert max(kappas) <= min(tensor.kappa for tensor in chosen["largest-kappa-seed17"].tensors)


def test_with_equal_parameters_each_arm_comes_as_near_as_it_can_to_the_smallest_ones(home, tmp_path):
    chosen = select_all(read(tmp_path, home, equal="parameters"), home)
    target = chosen["smallest-kappa-seed17"]
    assert len(target.tensors) == 5
    least = min(candidate.num_parameters for candidate in KappaRanking.read(home / "ranking.json").candidates("kappa"))
    for selection in chosen.values():
        assert abs(selection.num_parameters - target.num_parameters) <= least, selection.rule


def test_a_random_arm_without_a_seed_of_its_own_draws_anew_for_each_training_seed(home, tmp_path):
    chosen = select_all(read(tmp_path, home), home)
    names = {name: set(selection.names) for name, selection in chosen.items()}
    assert names["drawn-anew-seed17"] != names["drawn-anew-seed18"]
    assert names["drawn-once-seed17"] == names["drawn-once-seed18"]
    assert names["smallest-kappa-seed17"] == names["smallest-kappa-seed18"]


def test_lora_has_its_rank_from_the_arm_or_from_the_budget(home, tmp_path):
    ranking = KappaRanking.read(home / "ranking.json")

    def count(experiment) -> dict[str, tuple[int, int]]:
        """LoRA's parameters by arm, on the model itself, and its rank."""
        counted = {}
        for trial in experiment.trials[5:7]:
            options = make_trial_config(experiment, trial, ranking).unfreeze
            chosen = make_selection(experiment, trial, ranking) if options.selection else None
            llm = load_llm(str(home / "llm"), dtype=None)
            mark_trained(llm, options, chosen, seed=0)
            counted[trial.arm.name] = (sum(p.numel() for p in llm.parameters() if p.requires_grad), options.lora.rank)
        return counted

    # an embedding takes no LoRA
    exclude = ["*embed_tokens*"]
    assert {rank for _, rank in count(read(tmp_path, home, exclude=exclude)).values()} == {16}
    equal = read(tmp_path, home, exclude=exclude, equal="parameters", count=9)
    budget = select_all(equal, home)["smallest-kappa-seed17"].num_parameters
    for parameters, rank in count(equal).values():
        assert rank > 1
        # half a rank is how near whole ranks always come
        assert abs(parameters - budget) <= parameters / rank / 2


def test_trials_differ_from_the_base_in_place_name_seed_and_selection_alone(home, tmp_path):
    experiment = read(tmp_path, home)
    base = experiment.base.model_dump()
    ranking = KappaRanking.read(home / "ranking.json")
    configs = [make_trial_config(experiment, trial, ranking).model_dump() for trial in experiment.trials]
    assert len(configs) == 16
    for trial, config in zip(experiment.trials, configs, strict=True):
        assert {key for key in base if config[key] != base[key]} <= {"run_dir", "arm", "seed", "unfreeze"}
        assert (config["arm"], config["seed"]) == (trial.arm.name, trial.seed)
    # no two are the same run, and arms of a seed differ in what they unfreeze
    assert len({config["run_dir"] for config in configs}) == 16
    assert len({str(config["unfreeze"]) for config in configs if config["seed"] == 17}) == 8


def test_preparing_twice_writes_the_same_bytes(home, tmp_path):
    experiment = read(tmp_path, home)
    prepare(experiment)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert len(before) == 16 + 10
    prepare(experiment)
    assert {path: path.read_bytes() for path in before} == before
    assert {read_state(trial) for trial in experiment.trials} == {"waiting"}


def test_a_folder_is_named_after_its_arm():
    assert slug("smallest κ") == "smallest-kappa"
    assert slug(" κ-LoRA, r = 8 ") == "kappa-lora-r-8"


def test_what_is_excluded_is_in_no_selection(home, tmp_path):
    chosen = select_all(read(tmp_path, home, count=10, exclude=["*embed_tokens*", "lm_head.weight"]), home)
    names = {name for selection in chosen.values() for name in selection.names}
    assert names
    assert not any("embed" in name or "head" in name for name in names)


def test_an_arm_has_its_own_number_and_what_it_leaves_out(home, tmp_path):
    arms = [
        {"name": "three", "select": "largest", "count": 3},
        {"name": "no MLP", "select": "smallest", "exclude": ["*mlp*"]},
    ]
    chosen = select_all(read(tmp_path, home, arms=arms, seeds=[17], exclude=["*embed_tokens*"]), home)
    assert len(chosen["three-seed17"].names) == 3
    assert len(chosen["no-mlp-seed17"].names) == 5
    assert not any("mlp" in name or "embed_tokens" in name for name in chosen["no-mlp-seed17"].names)


def test_arms_that_all_have_their_own_number_need_no_other(home, tmp_path):
    arm = {"name": "three", "select": "random", "seed": 1}
    assert read(tmp_path, home, count=None, arms=[{**arm, "count": 3}]).trials
    with pytest.raises(ConfigError, match="count: missing"):
        read(tmp_path, home, count=None, arms=[arm])


def test_the_halves_of_each_module_type_differ_in_their_scores_alone(home, tmp_path):
    arms = [{"name": select, "select": select} for select in ("smallest", "largest", "random")]
    options = {"arms": arms, "count": None, "seeds": [17], "exclude": ["*embed_tokens*", "*lm_head*"]}
    chosen = select_all(read(tmp_path, home, type_fraction=0.5, **options), home)
    smallest, largest, random = (chosen[f"{name}-seed17"] for name in ("smallest", "largest", "random"))
    assert not {*smallest.names} & {*largest.names}
    assert len({selection.num_parameters for selection in (smallest, largest, random)}) == 1
    kinds = [Counter(map(module_type, selection.names)) for selection in (smallest, largest, random)]
    assert kinds[0] == kinds[1] == kinds[2]
    # one arm alone may have such a share
    own = {"name": "half", "select": "smallest", "type_fraction": 0.5}
    assert select_all(read(tmp_path, home, **options | {"arms": [own]}), home)["half-seed17"].names == smallest.names
    for wrong in ({"type_fraction": 0.5, "count": 3}, {"arms": [{**own, "count": 3}]}):
        with pytest.raises(ConfigError, match="in place of count"):
            read(tmp_path, home, **options | wrong)


EWC = {"texts": {"en": "held.txt"}, "weight": 3.0}


def test_an_arm_has_its_own_score_budget_texts_and_subspace_and_a_length_for_all(home, tmp_path):
    arms = [
        {"name": "smallest κ", "select": "smallest"},
        {"name": "largest, as many parameters", "select": "largest", "equal": "parameters"},
        {"name": "κ over Gauss", "select": "smallest", "score": "kappa-over-gaussian"},
        {"name": "EWC", "select": "smallest", "ewc": EWC},
        {"name": "replay", "select": "smallest", "replay": {"texts": {"en": "x.txt"}, "weight": 0.5}},
        {"name": "CLASSP", "select": "smallest", "classp": {"threshold": 1e-8}},
        {"name": "OSF", "select": "smallest", "osf": {"kept_share": 0.25}},
        {"name": "half the rate", "select": "smallest", "llm_learning_rate": 1e-4},
    ]
    experiment = read(tmp_path, home, arms=arms, seeds=[17], until={"num_steps": 90, "num_evaluations": 4})
    ranking, chosen = KappaRanking.read(home / "ranking.json"), select_all(experiment, home)
    configs = {trial.arm.name: make_trial_config(experiment, trial, ranking) for trial in experiment.trials}
    assert {(c.training.num_steps, c.training.evaluate_every_steps) for c in configs.values()} == {(90, 22)}
    assert configs["EWC"].ewc.weight == 3.0
    assert configs["replay"].replay.weight == 0.5
    assert (configs["CLASSP"].classp.threshold, configs["CLASSP"].classp.power) == (1e-8, 2.0)
    assert configs["OSF"].unfreeze.osf.kept_share == 0.25
    rates = {name: config.optimizer.llm_learning_rate for name, config in configs.items()}
    assert rates.pop("half the rate") == 1e-4
    assert {*rates.values()} == {experiment.base.optimizer.llm_learning_rate}
    plain = configs["smallest κ"]
    assert (plain.ewc, plain.replay, plain.classp, plain.unfreeze.osf) == (None, None, None, None)
    smallest = chosen["smallest-kappa-seed17"]
    assert all(chosen[f"{name}-seed17"].names == smallest.names for name in ("ewc", "replay", "classp", "osf"))
    by_score = sorted(ranking.candidates("kappa-over-gaussian"), key=lambda item: item.score)
    assert set(chosen["kappa-over-gauss-seed17"].names) == {item.name for item in by_score[:5]}
    least = min(candidate.num_parameters for candidate in ranking.candidates("kappa"))
    assert abs(chosen["largest-as-many-parameters-seed17"].num_parameters - smallest.num_parameters) <= least


@pytest.mark.parametrize(
    ("arm", "complaint"),
    [
        ({"select": "random", "score": "kappa"}, r"arms\.0\.score: only the arms"),
        ({"select": "largest", "score": "beauty"}, r"arms\.0\.score: there is no 'beauty'"),
        ({"select": "all", "equal": "count"}, r"arms\.0\.equal: all has no budget"),
        ({"select": "kappa-lora", "osf": {}}, r"arms\.0\.osf: only the arms smallest"),
        ({"select": "lora", "count": 3}, r"arms\.0\.count: only arms that select a number"),
        ({"select": "largest", "equal": "parameters", "count": 3}, r"arms\.0\.count: only arms that select a number"),
        ({"select": "all", "type_fraction": 0.5}, r"arms\.0\.type_fraction: only arms that select a number"),
        ({"select": "all", "exclude": ["*mlp*"]}, r"arms\.0\.exclude: all selects by no ranking"),
        ({"select": "adaptor", "osf": {}}, r"arms\.0\.osf: only the arms smallest"),
        ({"select": "adaptor", "ewc": EWC}, r"arms\.0\.ewc: adaptor trains nothing of the LLM"),
        ({"select": "adaptor", "classp": {}}, r"arms\.0\.classp: adaptor trains nothing of the LLM"),
        ({"select": "adaptor", "llm_learning_rate": 1e-4}, r"arms\.0\.llm_learning_rate: adaptor trains nothing of the LLM"),
        ({"select": "all", "llm_learning_rate": 0}, r"arms\.0\.llm_learning_rate: .*greater than 0"),
        ({"select": "lora", "ewc": EWC}, r"arms\.0\.ewc: ewc can't hold LoRA"),
    ],
)
def test_what_an_arm_cant_have_is_refused(home, tmp_path, arm, complaint):
    with pytest.raises(ConfigError, match=complaint):
        read(tmp_path, home, arms=[{"name": "a", **arm}])


def test_what_holds_the_base_is_checked_with_each_arm(home, tmp_path):
    read(tmp_path, home)
    tiny.write_config(tmp_path / "held.yaml", home, tmp_path / "unused", ewc=EWC)
    arms = [{"name": "adaptor", "select": "adaptor"}, {"name": "all", "select": "all"}]
    assert read(tmp_path, home, base="held.yaml", arms=arms).base.ewc is not None
    with pytest.raises(ConfigError, match=r"arms\.2\.select: the base's ewc can't hold LoRA"):
        read(tmp_path, home, base="held.yaml", arms=[*arms, {"name": "κ-LoRA", "select": "kappa-lora"}])
    tiny.write_config(tmp_path / "textless.yaml", home, tmp_path / "unused", data__text={})
    budget = {"texts": {"en": "x.txt"}, "anchor_weight": 0.1, "forgetting_budget_nats": 0.1}
    with pytest.raises(ConfigError, match=r"arms\.0\.replay\.forgetting_budget_nats: a distance"):
        read(tmp_path, home, base="textless.yaml", arms=[{"name": "all", "select": "all", "replay": budget}])


def test_a_length_within_the_alignment_is_refused(home, tmp_path):
    read(tmp_path, home)
    tiny.write_config(tmp_path / "aligned.yaml", home, tmp_path / "unused", training__alignment_steps=3)
    with pytest.raises(ConfigError, match=r"until\.num_steps: 3 isn't more"):
        read(tmp_path, home, base="aligned.yaml", until={"num_steps": 3})


def test_a_run_of_an_arm_that_was_held_otherwise_is_refused(home, tmp_path):
    arms = [{"name": "a", "select": "smallest", "ewc": EWC}]
    experiment = read(tmp_path, home, arms=arms, seeds=[17])
    (trial,) = experiment.trials
    config = make_trial_config(experiment, trial, KappaRanking.read(home / "ranking.json"))
    selection = make_selection(experiment, trial, KappaRanking.read(home / "ranking.json"))
    RunFolder(trial.run_dir).begin(config, selection=selection, rule="", facts={"world_size": 1, "num_trained_parameters": 1})
    prepare(experiment)
    changes = {"ewc.weight": {"ewc": {**EWC, "weight": 4.0}}, "ewc": {"ewc": None}}
    changes["optimizer.llm_learning_rate"] = {"ewc": EWC, "llm_learning_rate": 1e-5}
    for told, changed in changes.items():
        with pytest.raises(InputError, match=f"another experiment: {re.escape(told)} differ"):
            prepare(read(tmp_path, home, arms=[{"name": "a", "select": "smallest", **changed}], seeds=[17]))


@pytest.mark.parametrize(
    "name",
    ["real_speech", "figure1", "figure1_baselines", "figure1_types", "figure1_held", "unseen", "forgetting"],
)
def test_every_experiment_that_is_shipped_can_be_read(name):
    assert read_experiment(REPOSITORY / f"benchmarks/experiments/{name}.yaml").trials


def planned_without_training(name, home, folder):
    """The trials of a shipped experiment and their configurations, with tiny models in the place of the benchmark's."""
    shipped = read_experiment(REPOSITORY / f"benchmarks/experiments/{name}.yaml")
    number = {"count": 5} if shipped.config.type_fraction is None else {}
    small = {"output": str(folder), "ranking": str(home / "ranking.json"), **number}
    base = read_run_config(tiny.write_config(folder / "run.yaml", home, folder / "unused"))
    trials = tuple(replace(trial, folder=folder) for trial in shipped.trials)
    prepare(replace(shipped, config=shipped.config.model_copy(update=small), base=base, trials=trials))
    return trials, [read_run_config(trial.config_path) for trial in trials]


def test_figure_1_plans_its_arms_over_three_seeds(home, tmp_path):
    trials, configs = planned_without_training("figure1", home, tmp_path)
    assert Counter(config.seed for config in configs) == {17: 8, 18: 8, 19: 8}
    assert {config.training.num_steps for config in configs} == {240}
    assert len({str((c.unfreeze, c.optimizer)) for c in configs if c.seed == 17}) == 8
    # arms of one end at several rates train the same tensors
    rates = {}
    for trial, config in zip(trials, configs, strict=True):
        if trial.arm.select in ("smallest", "largest") and trial.arm.equal is None:
            chosen = TensorSelection.read(trial.selection_path).names
            rates.setdefault((trial.arm.select, chosen), set()).add(config.optimizer.llm_learning_rate)
    assert {select: found for (select, _), found in rates.items()} == {"smallest": {2e-4, 1e-4}, "largest": {2e-4, 4e-4}}
    assert len(rates) == 2
    # a random arm's tensors are another draw for each seed
    drawn = [TensorSelection.read(trial.selection_path).names for trial in trials if trial.arm.name == "random"]
    assert len(set(map(tuple, drawn))) == 3


def test_figure_1_by_types_unfreezes_as_many_parameters_in_each_arm(home, tmp_path):
    trials, configs = planned_without_training("figure1_types", home, tmp_path)
    assert Counter(config.seed for config in configs) == {17: 2, 18: 2, 19: 2}
    chosen = [TensorSelection.read(trial.selection_path) for trial in trials if trial.seed == 17]
    assert len({selection.num_parameters for selection in chosen}) == 1
    # the tiny model's head is the only tensor of its type
    assert {*chosen[0].names} & {*chosen[1].names} == {"lm_head.weight"}


def test_figure_1_at_equal_forgetting_differs_in_its_tensors_alone(home, tmp_path):
    trials, configs = planned_without_training("figure1_held", home, tmp_path)
    first = [(config, TensorSelection.read(trial.selection_path).names) for trial, config in zip(trials, configs, strict=True)][
        :4
    ]
    for (smallest, small), (largest, large), budget_nats in ((*first[:2], 0.2), (*first[2:], 0.1)):
        assert smallest.replay == largest.replay
        assert smallest.replay.forgetting_budget_nats == budget_nats
        assert small != large


def test_figure_1s_baselines_differ_each_in_what_they_are_named_after(home, tmp_path):
    _, configs = planned_without_training("figure1_baselines", home, tmp_path)
    first = {config.arm: config for config in configs if config.seed == 17}
    assert len({str((c.unfreeze, c.replay, c.ewc, c.classp)) for c in first.values()}) == len(first) == 12
    assert [name for name, config in first.items() if config.unfreeze.mode == "lora"] == ["κ-LoRA", "LoRA, α an eighth"]
    assert [name for name, config in first.items() if config.ewc] == ["EWC"]
    held = ["replay", "KL anchor", "replay, 400 texts", "KL anchor, 400 texts"]
    assert [name for name, config in first.items() if config.replay] == held
    assert [name for name, config in first.items() if config.classp] == ["CLASSP"]
    assert [name for name, config in first.items() if config.unfreeze.osf] == ["OSF"]
