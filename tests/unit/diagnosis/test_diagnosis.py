"""Findings of `kappaspeech doctor`: each check against a machine or configuration that is wrong in one way."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from kappaspeech.commands import main
from kappaspeech.config.run_config import RunConfig, read_run_config
from kappaspeech.diagnosis import host
from kappaspeech.diagnosis.arithmetic import check_dtype
from kappaspeech.diagnosis.configuration import check_configuration, check_disk, check_ranks, resumes
from kappaspeech.diagnosis.finding import Finding, RankFindings, combine
from kappaspeech.diagnosis.host import (
    check_build_folder,
    check_open_files,
    check_port,
    check_shared_memory,
    find_build_folder,
    find_taken_gpus,
)
from kappaspeech.diagnosis.packages import compare_versions
from kappaspeech.model.precision import choose_dtype
from kappaspeech.ranks.cluster import SingleProcess
from kappaspeech.runs.lease import EXPIRY_SECONDS, Holder, Lease
from tests import tiny


def statuses(findings, area):
    return [finding.status for finding in findings if finding.area == area]


def test_questions_are_read_as_an_evaluation_reads_them(home, tmp_path):
    right, wrong = tmp_path / "right.jsonl", tmp_path / "wrong.jsonl"
    right.write_text(2 * '{"question": "turn", "choices": ["on", "off"], "answer": 0}\n')
    wrong.write_text('{"question": "turn", "choices": ["on", "off"], "answer": 2}\n')
    both = tmp_path / "both.jsonl"
    both.write_text(right.read_text() + 3 * '{"instruction": "shout", "checks": [{"kind": "upper_case"}]}\n')
    findings = examine(home, tmp_path, data__tasks={"en": str(right), "de": str(wrong), "nl": str(both)})
    (good,) = [item for item in findings if str(right) in item.found]
    (bad,) = [item for item in findings if str(wrong) in item.found]
    assert (good.status, good.found) == ("ok", f"data.tasks: {right} has 2 questions")
    assert (bad.status, "line 1: answer is 2" in bad.found) == ("problem", True)
    (mixed,) = [item for item in findings if str(both) in item.found]
    assert mixed.found == f"data.tasks: {both} has 2 questions and 3 instructions"


def examine(home, folder, **changes):
    """The findings on a configuration with these changes."""
    environment = {"HOME": str(folder), "AWS_SECRET_ACCESS_KEY": "hush"}
    config = read_run_config(tiny.write_config(folder / "run.yaml", home, folder / "run", **changes))
    return check_configuration(config, world_size=2, environment=environment)


def test_a_sound_configuration_has_no_problem(home, tmp_path):
    findings = examine(home, tmp_path)
    assert {finding.status for finding in findings} == {"ok"}, findings
    assert {"ranks", "DeepSpeed JSON", "tokenizer", "models", "data", "disk"} == {finding.area for finding in findings}
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


@pytest.mark.parametrize(
    ("area", "changes", "said"),
    [
        ("models", {"model__encoder": "gigantic"}, "gigantic"),
        ("models", {"unfreeze__selection": "none.json"}, "none.json"),
        ("tokenizer", {"model__llm": "/no/where"}, "/no/where"),
        ("data", {"data__train": [{"shards": "none-*.tar"}]}, "none-*.tar"),
        ("data", {"data__text": {"en": "none.txt"}}, "none.txt"),
        ("DeepSpeed JSON", {"deepspeed": "none.json"}, "none.json"),
    ],
)
def test_what_is_missing_is_a_problem_that_names_it(home, tmp_path, area, changes, said):
    problems = [finding for finding in examine(home, tmp_path, **changes) if finding.status == "problem"]
    assert any(finding.area == area and said in finding.found for finding in problems), problems


def test_settings_that_act_on_nothing_are_warnings(home, tmp_path):
    findings = examine(home, tmp_path, classp={}, optimizer__weight_decay=0.1, unfreeze={"mode": "adaptor"})
    told = {finding.area: finding for finding in findings if finding.area in ("optimizer", "unfreeze")}
    assert (told["optimizer"].status, "optimizer.weight_decay 0.1" in told["optimizer"].found) == ("warning", True)
    assert (told["unfreeze"].status, "classp is without effect" in told["unfreeze"].found) == ("warning", True)


def test_offload_needs_no_compiler_but_deepspeeds_leave_to_use_torchs_optimizer(home, tmp_path):
    preset = Path(__file__).parents[3] / "ds_configs/zero3_offload_optimizer.json"
    assert statuses(examine(home, tmp_path, deepspeed=str(preset)), "DeepSpeed JSON") == ["ok", "ok"]
    content = json.loads(preset.read_text())
    del content["zero_force_ds_cpu_optimizer"]
    (tmp_path / "ds.json").write_text(json.dumps(content))
    findings = examine(home, tmp_path, deepspeed=str(tmp_path / "ds.json"))
    assert statuses(findings, "DeepSpeed JSON") == ["ok", "problem"]
    assert any('"zero_force_ds_cpu_optimizer": false' in (finding.remedy or "") for finding in findings)
    content["zero_optimization"]["offload_optimizer"] = {"device": "nvme", "nvme_path": str(tmp_path)}
    (tmp_path / "ds.json").write_text(json.dumps(content))
    assert statuses(examine(home, tmp_path, deepspeed=str(tmp_path / "ds.json")), "DeepSpeed JSON") == ["problem"]


def test_a_shard_that_has_changed_is_a_problem(home, tmp_path):
    shards = shutil.copytree(home / "shards/train", tmp_path / "shards")
    for path in shards.glob("en-*.tar"):
        path.write_bytes(path.read_bytes()[:-512])
    findings = examine(home, tmp_path, data__train=[{"shards": str(shards / "en-*.tar")}])
    assert "problem" in statuses(findings, "data")


def test_credentials_are_looked_for_and_never_shown(home, tmp_path):
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text("aws_secret_access_key = hush")
    remote = [{"shards": "s3://127.0.0.1.invalid/none/x.tar"}, {"shards": "gs://none/x.tar"}]
    findings = examine(home, tmp_path, data__train=remote, data__read={"attempts": 1, "stall_seconds": 1.0})
    assert statuses(findings, "credentials") == ["ok", "warning"]
    assert "hush" not in repr(findings)


def test_locks_of_killed_builds_are_problems_and_young_ones_warnings(tmp_path):
    folder = find_build_folder({"TORCH_EXTENSIONS_DIR": str(tmp_path)})
    assert statuses(check_build_folder(folder, now=0), "build folder") == ["ok"]
    for name, age in (("old", 3_600), ("young", 60)):
        (folder / name).mkdir()
        (folder / name / "lock").touch()
        os.utime(folder / name / "lock", (1e9 - age, 1e9 - age))
    old, young = check_build_folder(folder, now=1e9)
    assert (old.status, old.remedy) == ("problem", f"If nothing is being built: rm {folder / 'old/lock'}")
    assert young.status == "warning"
    assert find_build_folder({"HOME": "/h"}).as_posix() == "/h/.cache/torch_extensions"


def test_limits_that_are_low_have_a_remedy():
    assert check_open_files(1024, 4096).remedy.startswith("ulimit -n 4096")
    assert check_open_files(65_536, 65_536).status == "ok"
    assert check_open_files(256, 512).remedy.startswith("ulimit -n 512")


def test_a_port_in_use_is_told():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert check_port(str(port)).status == "warning"
    assert check_port(str(port)).status == "ok"


def test_a_port_that_is_none_is_a_problem_and_no_traceback():
    assert (check_port("12ab").status, check_port("70000").status) == ("problem", "problem")


def test_gpus_that_share_their_hosts_memory_are_told_without_it(monkeypatch):
    monkeypatch.setattr(host, "_ask", lambda *_: "580.95, NVIDIA GB10, [N/A], [N/A]\n580.95, NVIDIA A100, 40000, 81920")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.nccl.version", lambda: (2, 27, 3))
    found = [finding.found for finding in host.check_gpus()]
    assert found[0].startswith("2 × NVIDIA GB10, driver 580.95")
    assert found[1:] == ["GPU 1 has 39.1 of 80 GiB in use"]


def test_a_small_shared_memory_is_a_problem(tmp_path, monkeypatch):
    def has(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 34, 0, free))
        return check_shared_memory(tmp_path).status

    assert [has(64 << 20), has(512 << 20), has(8 << 30)] == ["problem", "warning", "ok"]


def test_a_disk_without_room_for_checkpoints_is_a_problem(tmp_path):
    space, _ = check_disk(tmp_path / "not/there/yet", needed_bytes=1 << 60)
    assert space.status == "problem"
    assert list(tmp_path.iterdir()) == []


def test_hosts_that_try_one_folder_at_once_leave_each_other_alone(tmp_path):
    # the numbers of containers' processes are small and alike
    others = tmp_path / f".kappaspeech-doctor-{os.getpid()}"
    others.touch()
    assert check_disk(tmp_path, needed_bytes=0)[1].status != "problem"
    assert list(tmp_path.iterdir()) == [others]


def test_a_folder_that_cannot_be_written_is_a_problem():
    assert [finding.status for finding in check_disk(Path("/proc/run"), needed_bytes=0)][1] == "problem"


@pytest.mark.parametrize(("micro_batches", "world_size", "better"), [(16, 8, None), (16, 64, 64), (3, 2, 4), (1, 1, None)])
def test_ranks_that_would_idle_are_told_with_a_number_that_helps(micro_batches, world_size, better):
    finding = check_ranks(micro_batches, world_size)
    assert finding.status == ("ok" if better is None else "warning")
    assert better is None or f"micro_batches_per_step to {better}" in finding.remedy


def test_versions_out_of_bounds_and_missing_packages_are_problems():
    wanted = [Requirement("torch>=2.6,<2.14"), Requirement("numpy>=1.26,<3"), Requirement("gone>=1")]
    findings = compare_versions(wanted, {"torch": "2.13.0+cpu", "numpy": "3.0.1", "python": "3.12.0"})
    assert [finding.found for finding in findings if finding.status == "problem"] == [
        "numpy 3.0.1; wanted is <3,>=1.26",
        "gone is not installed; wanted is >=1",
    ]
    assert findings[-1].found == "1 packages within their bounds, Python 3.12.0"


def test_hosts_that_differ_are_named_and_what_all_share_is_told_once():
    good, bad = Finding("GPUs", "ok", "8 × H100"), Finding("GPUs", "problem", "7 × H100", "Look.")
    reports = [
        RankFindings("a", (good,), {"torch": "2.13.0"}, 10.0),
        RankFindings("a", (), {"torch": "2.13.0"}, 10.0),
        RankFindings("b", (bad,), {"torch": "2.12.1"}, 15.5),
    ]
    findings = combine(reports)
    assert [finding.status for finding in findings] == ["problem", "problem", "warning", "ok"]
    assert findings[0].found == "7 × H100 (on b)"
    assert findings[1].found == "torch differs between hosts: 2.12.1 on b; 2.13.0 on a"
    assert "5.50 s apart" in findings[2].found
    assert "a is the slowest, b the fastest" in findings[2].found
    assert [finding.found for finding in combine(reports[:2])] == ["8 × H100"]


def test_the_dtype_is_told_with_its_reason_and_the_slower_one_warned_of(home, tmp_path, monkeypatch):
    config = read_run_config(tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run"))
    auto = tmp_path / "auto.json"
    auto.write_text(json.dumps({"bf16": {"enabled": "auto"}, "zero_optimization": {"stage": 3}}))

    def find(rates, asked):
        for module in ("kappaspeech.diagnosis.arithmetic", "kappaspeech.training.arithmetic"):
            monkeypatch.setattr(f"{module}.measure_rates", lambda *_: rates)
        (finding,) = check_dtype(asked, SingleProcess())
        return finding

    free = config.model_copy(update={"deepspeed": str(auto)})
    fast, slow = {"float32": 1.0, "bfloat16": 2.0}, {"float32": 100.0, "bfloat16": 1.0}
    for asked in (None, free):
        finding = find(fast, asked)
        assert (finding.status, finding.found) == ("ok", f"training computes in bfloat16: {choose_dtype(fast, 'cpu').reason}")
        finding = find(slow, asked)
        assert (finding.status, finding.found) == ("ok", f"training computes in float32: {choose_dtype(slow, 'cpu').reason}")
    assert find(fast, config).status == "ok"
    # tests/zero3.json says bfloat16
    finding = find(slow, config)
    assert finding.status == "warning"
    assert finding.found.startswith(f"training computes in bfloat16: as {config.deepspeed} says; in float32 this would be faster")
    assert finding.remedy.startswith("For float32")


def test_a_model_that_cannot_be_read_has_no_dtype_and_is_a_problem_elsewhere(home, tmp_path):
    config = read_run_config(tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run", model__llm="/no/where"))
    assert check_dtype(config, SingleProcess()) == []


def test_exit_codes_are_of_problems_and_of_usage(home, tmp_path, capsys):
    config = tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run")
    assert main(["doctor", str(config)]) == 0
    assert main(["doctor", str(config), "--set", "model.encoder=gigantic"]) == 1
    printed = capsys.readouterr().out
    assert "PROBLEM  models: 'gigantic' is neither a file nor one of openai-whisper's names" in printed
    assert "0 problem(s)" in printed
    assert main(["doctor", str(tmp_path / "none.yaml")]) == 2
    assert main(["doctor", "--set", "seed=1"]) == 2


def test_models_that_cannot_be_read_leave_the_size_of_checkpoints_unknown(tmp_path):
    space, _ = check_disk(tmp_path, needed_bytes=None)
    assert space.status == "warning"
    assert "0.0" not in space.found
    assert "checkpoints take 30 kB" in check_disk(tmp_path, needed_bytes=30_000)[0].found


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch):
    from huggingface_hub import constants

    from kappaspeech.diagnosis import configuration

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(configuration, "hub_answers", lambda: False)
    (finding,) = configuration.check_hub("meta-llama/Llama-3.1-8B")
    assert finding.status == "warning"
    assert constants.HF_HUB_OFFLINE
    assert configuration.check_hub(".") == []


def test_a_run_that_goes_on_in_the_folder_is_a_warning(home, tmp_path, capsys):
    config = tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text(json.dumps({"schema_version": 1, "status": "running"}))
    lease = Lease(tmp_path / "run", "another start")
    lease.acquire()
    try:
        assert main(["doctor", str(config)]) == 0
    finally:
        lease.release()
    assert "warning  run folder: " in capsys.readouterr().out


@pytest.mark.parametrize(("machine", "status"), [(None, "ok"), ("another boot", "warning")])
def test_what_a_dead_start_left_in_the_folder_is_looked_at_alone(tmp_path, machine, status):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"schema_version": 1, "status": "running"}))
    dead = subprocess.Popen(["sleep", "60"])
    here = Holder.here("a dead start")
    place = [*(here.place or ())[:2], dead.pid, 0]
    dead.kill()
    dead.wait()
    lease = {"schema_version": 1, **asdict(here), "machine": machine or here.machine, "place": place}
    (run / "lease.json").write_text(json.dumps(lease))
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.iterdir()}
    began = time.monotonic()
    (finding,) = resumes(RunConfig.model_construct(run_dir=str(run)))
    assert time.monotonic() - began < EXPIRY_SECONDS / 2
    assert finding.status == status
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.iterdir()} == before


def test_json_holds_the_findings_and_nothing_else(capsys):
    main(["doctor", "--json"])
    content = json.loads(capsys.readouterr().out)
    assert {finding["status"] for finding in content["findings"]} <= {"ok", "warning", "problem"}
    assert len(content["findings"]) > 4


def test_the_folder_of_a_run_is_recognised(home, tmp_path, capsys):
    config = tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text(json.dumps({"schema_version": 1, "status": "resumable"}))
    assert main(["doctor", str(config)]) == 0
    assert "holds a run that is resumable" in capsys.readouterr().out


def test_texts_may_be_a_folder_as_an_evaluation_reads_it(home, tmp_path):
    prose, empty = tmp_path / "prose", tmp_path / "empty"
    for folder in (prose, empty):
        folder.mkdir()
    (prose / "a.txt").write_text("Once upon a time.", encoding="utf-8")
    path = tiny.write_config(tmp_path / "c.yaml", home, tmp_path / "run", data__text={"en": str(prose), "de": str(empty)})
    findings = check_configuration(read_run_config(path), world_size=1, environment={})
    status = {folder: [item.status for item in findings if str(folder) in item.found] for folder in (prose, empty)}
    assert status == {prose: ["ok"], empty: ["problem"]}


def test_text_that_is_replayed_and_measured_is_a_problem(home, tmp_path):
    path = tmp_path / "replay.txt"
    path.write_text("schalte die rote Lampe ein\n", encoding="utf-8")
    for texts, status in ({"de": str(path)}, "ok"), ({"en": str(home / "text.txt")}, "problem"):
        config = read_run_config(tiny.write_config(tmp_path / "c.yaml", home, tmp_path / "run", replay={"texts": texts}))
        findings = check_configuration(config, world_size=1, environment={})
        assert [item.status for item in findings if "replay.texts" in item.found] == [status]


def test_gpus_that_others_hold_are_named_and_memory_that_a_driver_doesnt_know_is_no_fault():
    """A GPU that shares its host's memory has none of its own to tell, and doctor ended there."""
    h100 = ["570.12", "NVIDIA H100 80GB HBM3"]
    rows = [[*h100, "3", "81559"], [*h100, "40960", "81559"], ["580.1", "NVIDIA GB10", "[N/A]", "[N/A]"]]
    assert [finding.found for finding in find_taken_gpus(rows)] == ["GPU 1 has 40.0 of 80 GiB in use"]
