"""An experiment's trials: their numbers, and what each of them unfreezes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kappaspeech.comparison.experiment import read_experiment, slug
from kappaspeech.comparison.trials import make_selection, make_trial_config, prepare, read_state
from kappaspeech.model.llm import load_llm
from kappaspeech.model.marking import mark_trained
from kappaspeech.scan.ranking import KappaRanking
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


@pytest.mark.parametrize("path", sorted((REPOSITORY / "benchmarks/experiments").glob("*speech.yaml")), ids=lambda path: path.name)
def test_every_experiment_that_is_shipped_can_be_read(path):
    assert read_experiment(path).trials
