"""Training over two hosts: the same losses as on one, and how each fault of a cluster ends."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import pytest

from tests import tiny
from tests.hosts.conftest import Launch
from tests.patience import patience
from tests.ranks.test_training import assert_same_steps

pytestmark = pytest.mark.slow

# How long nothing may move in these tests; what else there is to an end: ssh's keep-alive, ending leftovers, a busy machine.
STALL_SECONDS = 10
END_SECONDS = 75
ENDLESS = {"training__num_steps": 4000, "training__checkpoint_every_steps": 1}
QUICK = {"training__stall_seconds": STALL_SECONDS}


def wait_for_steps(run: Launch, count: int) -> None:
    deadline = time.monotonic() + patience(120)
    while run.num_steps() < count:
        assert run.process.poll() is None, run.wait(timeout=5)
        assert time.monotonic() < deadline
        time.sleep(0.05)


def end_of(run: Launch) -> tuple[int, str]:
    """Exit code and output of a run that a fault has hit just now, once it has ended within the stated time."""
    return run.wait(timeout=END_SECONDS)


def test_two_hosts_train_to_the_losses_of_one_also_over_a_slow_network(hosts, launch, one_rank):
    hosts[1].slow_down("2mbit")
    run = launch("--set", "arm=largest κ; 100% of $HOME")
    code, output = run.wait(timeout=patience(150))
    assert code == 0, output
    assert run.status() == "finished"
    assert_same_steps(run.run_dir, one_rank)


def test_a_killed_rank_is_named_with_its_host_and_nothing_is_left_behind(hosts, launch):
    run = launch(**ENDLESS, **QUICK)
    wait_for_steps(run, 2)
    hosts[1].run("kill", "-9", *hosts[1].ranks())
    code, output = end_of(run)
    assert code == 1, output
    assert "rank 1 on h2 ended without a word" in output
    assert hosts[0].ranks() == hosts[1].ranks() == []


def test_a_crashed_host_is_left_out_and_the_run_goes_on_without_it_to_the_same_losses(hosts, launch, one_rank):
    run = launch("--max-restarts", 2, training__checkpoint_every_steps=1, **QUICK)
    wait_for_steps(run, 1)
    hosts[1].crash()
    code, output = run.wait(timeout=patience(2 * END_SECONDS))
    assert code == 0, output
    assert "h2 is left out" in output
    assert "--exclude h2" in output
    assert_same_steps(run.run_dir, one_rank)


def test_a_cut_network_ends_the_ranks_on_both_sides(hosts, launch):
    run = launch(**ENDLESS, **QUICK)
    wait_for_steps(run, 2)
    hosts[1].unplug()
    code, output = end_of(run)
    assert code == 1, output
    assert "h2" in output.split("error: ", 1)[1]
    deadline = time.monotonic() + patience(END_SECONDS)
    while hosts[1].ranks():
        assert time.monotonic() < deadline, "the rank behind the cut lives on"
        time.sleep(0.5)


def test_another_copy_of_code_and_data_on_a_host_is_told_at_the_start(hosts, launch, home, tmp_path):
    package = Path(__file__).parents[2] / "pipeline/kappaspeech"
    other = tmp_path / "kappaspeech"
    shutil.copytree(package, other)
    with (other / "errors.py").open("a") as file:
        file.write("# changed\n")
    hosts[1].replace(package, other)
    try:
        code, output = end_of(launch(**QUICK))
    finally:
        hosts[1].put_back(package)
    assert code == 2, output
    assert "kappaspeech's code is" in output.split("error: rank 1 on h2: ")[1]
    shards = tmp_path / "train"
    tiny_speech = tiny.make_recordings(tmp_path / "speech", num_clips=12, seed=99)
    pack_anew(tiny_speech, shards)
    hosts[1].replace(home / "shards/train", shards)
    try:
        code, output = end_of(launch(**QUICK))
    finally:
        hosts[1].put_back(home / "shards/train")
    assert code == 2, output
    assert "the training data is" in output.split("error: rank 1 on h2: ")[1]


def pack_anew(recordings: Path, shards: Path) -> None:
    from kappaspeech.speech.layouts import find_recordings
    from kappaspeech.speech.packing import pack

    pack(find_recordings(recordings), shards, shard_size=5, num_processes=1)


def test_clocks_apart_are_warned_of_with_the_skew(hosts, launch, tmp_path):
    wrong, right = tmp_path / "wrong", tmp_path / "clock"
    for folder in (wrong, right):
        folder.mkdir()
    (wrong / "sitecustomize.py").write_text("import time\nreal = time.time\ntime.time = lambda: real() + 90\n")
    hosts[1].replace(right, wrong)
    try:
        path = f"{right}:{Path(__file__).parents[2]}"
        code, output = launch(variables={"PYTHONPATH": path}, training__num_steps=1).wait(timeout=patience(120))
    finally:
        hosts[1].put_back(right)
    assert code == 0, output
    assert "warning: the clock of h2 is 90 s ahead of that of h1" in output


def test_a_full_disk_ends_the_run_and_room_lets_it_go_on(hosts, home, tmp_path, one_rank):
    folder = tmp_path / "small"
    folder.mkdir()
    hosts[0].run("mount", "-t", "tmpfs", "-o", "size=2m", "none", folder)
    try:
        config = tiny.write_config(tmp_path / "run.yaml", home, folder / "run", data__test=[], training__checkpoint_every_steps=1)
        hosts[0].run("fallocate", "-l", "1500k", folder / "ballast")
        words = [str(config), "--hostfile", str(hostfile_of_one(tmp_path))]
        code, output = Launch(hosts[0], folder / "run", words).wait(timeout=patience(120))
        assert code == 1, output
        assert "rank 0 on h1" in output
        assert "are free. Make room" in output
        hosts[0].run("rm", folder / "ballast")
        code, output = Launch(hosts[0], folder / "run", words).wait(timeout=patience(120))
        assert code == 0, output
        hosts[0].run("cp", "-r", folder / "run", tmp_path / "run")
    finally:
        hosts[0].put_back(folder)
    assert_same_steps(tmp_path / "run", one_rank)


def test_a_file_system_that_stalls_ends_the_run_and_the_same_command_goes_on_once_it_answers(hosts, launch, tmp_path, one_rank):
    image, folder = tmp_path / "image", tmp_path / "run"
    folder.mkdir()
    hosts[0].run("bash", "-c", f"truncate -s 32M {image} && mkfs.ext4 -q {image}")
    device = hosts[0].run("losetup", "--find", "--show", image).strip()
    try:
        for host in hosts:
            host.run("mount", device, folder)
        run = launch(training__checkpoint_every_steps=1, **QUICK)
        wait_for_steps(run, 1)
        hosts[0].run("fsfreeze", "--freeze", folder)
        try:
            code, output = end_of(run)
        finally:
            hosts[0].run("fsfreeze", "--unfreeze", folder)
        assert code == 1, output
        assert f"error: the file system of {folder} hasn't answered on h1 for" in output
        code, output = launch(training__checkpoint_every_steps=1, **QUICK).wait(timeout=patience(120))
        assert code == 0, output
        hosts[0].run("cp", "-r", folder, tmp_path / "copy")
    finally:
        for host in hosts:
            host.run("umount", "--lazy", folder)
        hosts[0].run("losetup", "--detach", device)
    assert_same_steps(tmp_path / "copy", one_rank)


def hostfile_of_one(tmp_path: Path) -> Path:
    path = tmp_path / "hostfile"
    path.write_text("h1 slots=1\n")
    return path


def test_a_taken_port_is_named(hosts, home, tmp_path):
    config = tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run", data__test=[])
    taker = "import socket, time; s = socket.socket(); s.bind(('', 29555)); s.listen(); time.sleep(100)"
    launcher = f"{sys.executable} -m deepspeed.launcher.runner -q --hostfile {hostfile_of_one(tmp_path)} --force_multi"
    script = (
        f'{sys.executable} -c "{taker}" >/dev/null 2>&1 & taker=$!; sleep 0.5; '
        f"{launcher} --master_port 29555 launch/train.sh {config} 2>&1; kill $taker"
    )
    output = hosts[0].run("env", "DS_ACCELERATOR=cpu", "bash", "-c", script, timeout=patience(60))
    assert "rank 0 on h1 can't listen on port 29555" in output


def test_another_host_is_refused_while_one_trains_and_goes_on_once_that_has_crashed(hosts, home, tmp_path):
    folder = tmp_path / "run"
    configs = [
        tiny.write_config(tmp_path / f"{name}.yaml", home, folder, **{"data__test": [], **ENDLESS}) for name in ("a", "b", "c")
    ]
    started = [Launch(hosts[0], folder, [str(configs[0]), "--nproc", "1"])]
    try:
        wait_for_steps(started[0], 2)
        started.append(Launch(hosts[1], folder, [str(configs[1]), "--nproc", "1"]))
        code, output = started[1].wait(timeout=patience(60))
        assert code == 2, output
        assert "has been trained in for" in output
        assert " on h1. Two starts would" in output
        assert started[0].process.poll() is None
        hosts[0].crash()
        reached = len((folder / "steps.jsonl").read_text().split("\n"))
        started.append(Launch(hosts[1], folder, [str(configs[2]), "--nproc", "1"]))
        wait_for_steps(started[2], reached + 2)
        (folder / "STOP").touch()
        code, output = started[2].wait(timeout=patience(60))
        assert code == 0, output
        assert "for a sign of its life" in output
    finally:
        for run in started:
            run.end()
