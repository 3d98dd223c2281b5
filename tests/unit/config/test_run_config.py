"""The run's YAML and the DeepSpeed JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from kappaspeech.config.deepspeed_config import _REMOVED, _UNSERVED, YAML_OWNED_KEYS, read_deepspeed_config, settle_gradients
from kappaspeech.config.run_config import read_run_config
from kappaspeech.errors import ConfigError

REPOSITORY = Path(__file__).parents[3]
MINIMAL = {
    "run_dir": "r",
    "model": {"llm": "l", "encoder": "e"},
    "data": {"train": [{"shards": "s"}]},
    "training": {"num_steps": 3},
}


def write(path: Path, content: object) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def test_what_is_left_out_has_a_default(tmp_path):
    config = read_run_config(write(tmp_path / "c.yaml", MINIMAL))
    assert config.model.adaptor.stacking == 4
    assert config.optimizer.betas == (0.9, 0.98)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "launch/configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_configuration_that_is_shipped_can_be_read(path):
    assert read_run_config(path).training.num_steps > 0


def commented_keys(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if re.match(r"\s+# \w+: ", line)]


@pytest.mark.parametrize("line", commented_keys(REPOSITORY / "launch/configs/llama8b.yaml"), ids=lambda line: line.split()[1])
def test_every_key_that_the_example_offers_in_a_comment_can_be_switched_on(line, tmp_path):
    text = (REPOSITORY / "launch/configs/llama8b.yaml").read_text(encoding="utf-8")
    keys = str(yaml.safe_load(text))
    needed = [line, *(other for other in commented_keys(REPOSITORY / "launch/configs/llama8b.yaml") if "# mode: lora" in other)]
    for one in needed if "# lora: " in line else [line]:
        text = text.replace(one, one.replace("# ", "", 1))
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    assert str(yaml.safe_load(text)) != keys
    assert read_run_config(tmp_path / "c.yaml").arm == "smallest κ"


def test_every_line_of_the_examples_says_what_it_is():
    paths = list((REPOSITORY / "launch/configs").glob("*.yaml"))
    assert paths
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            # a section's name alone, and one more entry of a list, need none
            assert "#" in line or re.fullmatch(r"\w+:", line) or line.strip().startswith("- "), line


@pytest.mark.parametrize("path", sorted((REPOSITORY / "ds_configs").glob("*.json")), ids=lambda path: path.name)
def test_every_deepspeed_preset_can_be_read(path):
    assert read_deepspeed_config(path)["zero_optimization"]["stage"] == 3


def test_all_problems_are_told_at_once_with_the_nearest_key(tmp_path):
    content = {**MINIMAL, "optimizer": {"clip_nrom": 1.0, "epsilon": -1}, "trainning": {}}
    del content["run_dir"]
    with pytest.raises(ConfigError) as caught:
        read_run_config(write(tmp_path / "c.yaml", content))
    message = str(caught.value)
    assert "4 problem(s)" in message
    for part in ("run_dir: missing", "did you mean 'clip_norm'?", "optimizer.epsilon", "did you mean 'training'?"):
        assert part in message


def test_an_unknown_key_in_a_list_is_found(tmp_path):
    content = {**MINIMAL, "data": {"train": [{"shards": "s", "langauge": "en"}]}}
    with pytest.raises(ConfigError, match="did you mean 'language'"):
        read_run_config(write(tmp_path / "c.yaml", content))


def test_norwegian_is_a_language(tmp_path):
    content = yaml.safe_dump(MINIMAL).replace("shards: s", "language: no\n    shards: s")
    (tmp_path / "c.yaml").write_text(content)
    assert read_run_config(tmp_path / "c.yaml").data.train[0].language == "no"


@pytest.mark.parametrize("value", ["three", True, 2.5, 0, -1])
def test_a_count_is_a_whole_positive_number(tmp_path, value):
    with pytest.raises(ConfigError, match="num_steps"):
        read_run_config(write(tmp_path / "c.yaml", {**MINIMAL, "training": {"num_steps": value}}))


def test_features_of_samples_that_change_are_not_cached(tmp_path):
    data = {**MINIMAL["data"], "feature_cache_dir": "cache", "augmentation": {"time_masks": 2}}
    with pytest.raises(ConfigError, match="feature_cache_dir keeps what the encoder made of a clip"):
        read_run_config(write(tmp_path / "c.yaml", {**MINIMAL, "data": data}))
    del data["augmentation"]
    assert read_run_config(write(tmp_path / "c.yaml", {**MINIMAL, "data": data})).data.feature_cache_gb == 20


def test_overrides_take_the_place_of_values(tmp_path):
    path = write(tmp_path / "c.yaml", MINIMAL)
    config = read_run_config(path, overrides={"optimizer.clip_norm": 0.5, "training.num_steps": 9})
    assert (config.optimizer.clip_norm, config.training.num_steps) == (0.5, 9)
    with pytest.raises(ConfigError, match="run_dir isn't a section"):
        read_run_config(path, overrides={"run_dir.x": 1})


def test_the_adaptor_may_be_aligned_in_all_steps_and_no_more(tmp_path):
    path = write(tmp_path / "c.yaml", {**MINIMAL, "training": {"num_steps": 3, "alignment_steps": 3}})
    assert read_run_config(path).training.alignment_steps == 3
    with pytest.raises(ConfigError, match=r"alignment_steps is 3: give at most training\.num_steps, 2"):
        read_run_config(path, overrides={"training.num_steps": 2})


@pytest.mark.parametrize("text", ["- a list", "a: [unclosed", "!!python/object/apply:os.getcwd []"])
def test_what_is_no_mapping_is_refused(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError):
        read_run_config(tmp_path / "c.yaml")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        read_run_config(tmp_path / "none.yaml")


@pytest.mark.parametrize("key", YAML_OWNED_KEYS)
def test_a_deepspeed_json_that_sets_the_yamls_keys_is_refused(tmp_path, key):
    (tmp_path / "ds.json").write_text(json.dumps({key: 1, "zero_optimization": {"stage": 3}}))
    with pytest.raises(ConfigError, match=key):
        read_deepspeed_config(tmp_path / "ds.json")


def test_a_deepspeed_json_without_zero3_is_refused(tmp_path):
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    with pytest.raises(ConfigError, match="stage 2"):
        read_deepspeed_config(tmp_path / "ds.json")


@pytest.mark.parametrize(
    ("offload", "complaint"),
    [
        ({"offload_optimizer": {"device": "nvme", "nvme_path": "/nvme"}}, 'offload_optimizer.device "nvme"'),
        ({"offload_param": {"device": "nvme", "nvme_path": "/nvme"}}, 'offload_param.device "nvme"'),
        ({"offload_optimizer": {"device": "cpu", "ratio": 0.3}}, "offload_optimizer.ratio 0.3"),
    ],
)
def test_offload_to_disks_and_of_a_part_of_the_optimizer_is_refused(tmp_path, offload, complaint):
    """`doctor` had found the first good: DeepSpeed leaves empty tensors in place of what is on a disk."""
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": 3, **offload}}))
    with pytest.raises(ConfigError, match=complaint):
        read_deepspeed_config(tmp_path / "ds.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("zero_optimization.offload_optimizer.super_offload", True),
        ("zero_optimization.zenflow", {"topk_ratio": 0.05}),
        ("zero_optimization.cpu_offload", True),
        ("zero_optimization.zero_quantized_nontrainable_weights", True),
        ("zero_optimization.mics_shard_size", 8),
        ("weight_quantization", {"quantized_initialization": {"num_bits": 8}}),
        ("bf16.bf16_master_weights_and_grads", True),
        ("bfloat16", {"enabled": True}),
        ("torch_autocast.enabled", True),
        ("managed_gradient_accumulation", False),
        ("gradient_allreduce_op", "sum"),
        ("tensor_parallel.autotp_size", 2),
        ("expert_parallel.enabled", True),
        ("sequence_parallel_size", 2),
        ("hybrid_engine.enabled", True),
        ("data_efficiency.enabled", True),
        ("compression_training", {}),
    ],
)
def test_what_a_run_cannot_follow_is_refused_by_name(tmp_path, key, value):
    """DeepSpeed takes most of these, and the run would be another one; the others it refuses when a model has been loaded."""
    write_deepspeed(tmp_path / "ds.json", {key: value})
    with pytest.raises(ConfigError, match=re.escape(f"ds.json has {key} {json.dumps(value)}; ")):
        read_deepspeed_config(tmp_path / "ds.json")


def test_all_that_a_run_cannot_follow_is_told_at_once(tmp_path):
    write_deepspeed(tmp_path / "ds.json", {"zero_optimization.mics_shard_size": 8, "torch_autocast.enabled": True})
    with pytest.raises(ConfigError, match=r"(?s)torch_autocast.*mics_shard_size"):
        read_deepspeed_config(tmp_path / "ds.json")


def test_keys_that_are_off_and_hpz_pass(tmp_path):
    harmless = {
        "zero_optimization.zenflow": None,
        "zero_optimization.offload_optimizer.device": "none",
        "zero_optimization.cpu_offload": False,
        "zero_optimization.zero_hpz_partition_size": 8,
        "torch_autocast.enabled": False,
        "tensor_parallel.autotp_size": 0,
        "hybrid_engine.enabled": False,
    }
    write_deepspeed(tmp_path / "ds.json", harmless)
    assert read_deepspeed_config(tmp_path / "ds.json")["torch_autocast"] == {"enabled": False}


def test_deepspeed_itself_has_removed_what_is_called_removed():
    """With another version of DeepSpeed the table may have to be another one."""
    from deepspeed.runtime import config as deepspeed_config

    removed = {unserved.key for unserved in _UNSERVED if unserved.reason == _REMOVED}
    of_zero = {f"zero_optimization.{key}" for key in deepspeed_config._REMOVED_ZERO_CONFIG_KEYS}
    assert removed == set(deepspeed_config._REMOVED_TOP_LEVEL_CONFIG_KEYS) | of_zero


@pytest.mark.parametrize("preset", sorted((REPOSITORY / "ds_configs").glob("*.json")), ids=lambda path: path.stem)
def test_presets_are_taken(preset):
    assert read_deepspeed_config(preset) == json.loads(preset.read_text())


def write_deepspeed(path: Path, values: dict[str, object]) -> None:
    """Write a ZeRO-3 JSON with these values of keys, which have a dot after each section's name."""
    content: dict[str, Any] = {"zero_optimization": {"stage": 3}}
    for key, value in values.items():
        *sections, name = key.split(".")
        place = content
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    path.write_text(json.dumps(content))


def test_gradients_are_added_up_in_float32_unless_the_json_says_otherwise():
    bf16 = {"bf16": {"enabled": True}}
    settled = settle_gradients(bf16, world_size=2)
    assert settled == {**bf16, "data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
    said = {**bf16, "data_types": {"grad_accum_dtype": "bf16"}, "communication_data_type": "bf16"}
    assert settle_gradients(said, world_size=2) == said
    # alone, nothing is summed over ranks
    assert "communication_data_type" not in settle_gradients({**bf16, "communication_data_type": "fp32"}, world_size=1)
    assert settle_gradients({"bf16": {"enabled": False}}, world_size=2) == {"bf16": {"enabled": False}}


@pytest.mark.parametrize(
    ("section", "mode"),
    [
        ({}, "adaptor"),
        ({"selection": None}, "adaptor"),
        ({"selection": "s.json"}, "selection"),
        ({"mode": None, "selection": "s.json"}, "selection"),
        ({"mode": "all"}, "all"),
        ({"mode": "lora"}, "lora"),
        ({"mode": "lora", "selection": "s.json", "lora": {"rank": 4}}, "lora"),
    ],
)
def test_what_trains_follows_from_the_selection_unless_a_mode_is_given(tmp_path, section, mode):
    unfreeze = read_run_config(write(tmp_path / "c.yaml", {**MINIMAL, "unfreeze": section})).unfreeze
    assert unfreeze.mode == mode
    assert (unfreeze.lora is not None) == (mode == "lora")


@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        ({"mode": "selection"}, "mode selection needs a selection"),
        ({"mode": "all", "selection": "s.json"}, "mode all takes no selection"),
        ({"mode": "adaptor", "selection": "s.json"}, "mode adaptor takes no selection"),
        ({"selection": "s.json", "lora": {"rank": 4}}, "mode selection takes no lora section"),
        ({"mode": "everything"}, "unfreeze.mode"),
        ({"mode": "lora", "lora": {"rnak": 4}}, "did you mean 'rank'"),
    ],
)
def test_a_mode_that_contradicts_its_section_is_refused(tmp_path, section, complaint):
    with pytest.raises(ConfigError, match=complaint):
        read_run_config(write(tmp_path / "c.yaml", {**MINIMAL, "unfreeze": section}))


def test_a_deepspeed_json_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "ds.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"zero_optimization": {"stage": 3}}).encode())
    assert read_deepspeed_config(path)["zero_optimization"] == {"stage": 3}


NUMBERS = {
    "optimizer": ("clip_norm", "epsilon", "weight_decay", "adaptor_learning_rate", "llm_learning_rate"),
    "batch": ("max_seconds",),
    "training": (
        "stall_seconds",
        "collective_timeout_seconds",
        "time_budget_seconds",
        "evaluate_every_minutes",
        "explode_factor",
    ),
}


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("name", [f"{section}.{key}" for section, keys in NUMBERS.items() for key in keys])
def test_a_number_that_is_not_finite_is_refused_by_name(tmp_path, name, value):
    path = write(tmp_path / "c.yaml", MINIMAL)
    for overrides in ({name: value}, {"data.read.cache_gb": value}):
        with pytest.raises(ConfigError, match=f"{next(iter(overrides))}: "):
            read_run_config(path, overrides=overrides)


SECTIONS = ("zero_optimization", "bf16", "fp16", "data_types")


@pytest.mark.parametrize("name", [*SECTIONS[1:], "zero_optimization.offload_optimizer", "zero_optimization.offload_param"])
def test_a_deepspeed_section_that_is_null_says_as_much_as_one_that_is_left_out(tmp_path, name):
    content = {"zero_optimization": {"stage": 3}, "zero_allow_untested_optimizer": True}
    (tmp_path / "ds.json").write_text(json.dumps(content))
    plain = read_deepspeed_config(tmp_path / "ds.json")
    section, _, key = name.rpartition(".")
    (content[section] if section else content)[key] = None
    (tmp_path / "ds.json").write_text(json.dumps(content))
    assert read_deepspeed_config(tmp_path / "ds.json") == plain


@pytest.mark.parametrize("name", SECTIONS)
@pytest.mark.parametrize("value", [None, 3, "x", [1], True])
def test_a_deepspeed_section_that_is_none_is_refused_by_name(tmp_path, name, value):
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": 3}, name: value}))
    if value is None and name != "zero_optimization":
        return
    with pytest.raises(ConfigError, match=name):
        read_deepspeed_config(tmp_path / "ds.json")


def test_a_deepspeed_json_with_a_key_twice_is_refused(tmp_path):
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 3}, "bf16": {"enabled": true}, "bf16": {}}')
    with pytest.raises(ConfigError, match=r"ds\.json can't be read as JSON: it has 'bf16' twice"):
        read_deepspeed_config(tmp_path / "ds.json")


@pytest.mark.parametrize("text", ['{"a": Infinity}', '{"a": NaN}', "[" * 100_000, "[]", "\x00", '{"a": ' + "9" * 5000 + "}"])
def test_a_deepspeed_json_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "ds.json").write_text(text)
    with pytest.raises(ConfigError, match=r"ds\.json"):
        read_deepspeed_config(tmp_path / "ds.json")


def test_a_key_far_from_all_others_is_told_what_is_valid(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, "batch": {"lr": 1}}))
    with pytest.raises(ConfigError, match=r"batch\.lr: unknown key; valid keys are even_shares") as caught:
        read_run_config(path)
    assert "did you mean" not in str(caught.value)


def test_an_override_reaches_into_a_list(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    config = read_run_config(path, overrides={"data.train.0.language": "fr"})
    assert config.data.train[0].language == "fr"
    for key in ("data.train.7.language", "data.train.one.language", "data.train.9"):
        with pytest.raises(ConfigError, match="is no place in a list of 1, which are counted from 0"):
            read_run_config(path, overrides={key: "fr"})


def test_an_override_leaves_an_alias_as_it_is(tmp_path):
    content = yaml.safe_load(yaml.safe_dump(MINIMAL))
    content["data"]["test"] = content["data"]["train"] = [{"shards": "s", "language": "de"}]
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(content))
    assert "&id001" in path.read_text()
    config = read_run_config(path, overrides={"data.train.0.language": "fr"})
    assert (config.data.train[0].language, config.data.test[0].language) == ("fr", "de")
