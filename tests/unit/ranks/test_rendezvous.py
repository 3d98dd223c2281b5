"""A process's rank, and the place where its ranks meet, from each launcher's variables."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kappaspeech.errors import ClusterError, ConfigError
from kappaspeech.ranks.rendezvous import (
    Launch,
    count_local_rank,
    explained_meeting,
    find_launch,
    first_host,
    job_port,
    prepare_rendezvous,
)
from kappaspeech.ranks.start import _choose_gpu, hide_unwanted_gpus, start_training_cluster
from tests.conftest import clean_environment
from tests.patience import patience

STEP = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",
}


@pytest.fixture
def environment(monkeypatch):
    """Exactly these variables in os.environ."""

    def put(**variables: str) -> None:
        for name in set(os.environ) - {"PATH", "HOME"}:
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        # what the code under test adds must go again
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            if name not in variables:
                monkeypatch.setenv(name, "")
                monkeypatch.delenv(name)

    return put


def test_a_task_of_a_step_is_a_rank_but_a_batch_script_is_alone():
    assert find_launch(STEP) == Launch(3, 4, 1, "slurm")
    batch = {name: value for name, value in STEP.items() if "STEP" not in name} | {"SLURM_PROCID": "0"}
    assert find_launch(batch) == Launch(0, 1, 0, "none")


def test_a_launcher_inside_a_step_is_believed_before_slurm():
    assert find_launch({**STEP, "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == Launch(5, 8, 1, "torch")


@pytest.mark.parametrize(
    "variables, local_rank",
    [
        # exported by hand from srun's, as many job scripts do; and MPICH's PMI under srun
        ({**STEP, "RANK": "3", "WORLD_SIZE": "4"}, 1),
        ({**STEP, "PMI_RANK": "3", "PMI_SIZE": "4"}, 1),
        # srun started one launcher a node, whose number isn't its ranks'
        ({**STEP, "RANK": "6", "WORLD_SIZE": "16"}, None),
        ({"RANK": "1", "WORLD_SIZE": "2"}, None),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, None),
        ({"RANK": "0", "WORLD_SIZE": "1"}, 0),
    ],
)
def test_a_rank_of_its_host_isnt_guessed(variables, local_rank):
    """It was 0 if a launcher didn't say it, and all ranks of a host would have shared its first GPU."""
    assert find_launch(variables).local_rank == local_rank


def test_ranks_are_counted_on_their_hosts():
    hosts = ["a", "b", "a", "a", "b"]
    assert [count_local_rank(rank, hosts) for rank in range(5)] == [0, 0, 1, 2, 1]


@pytest.mark.parametrize("variables", [{"RANK": "x", "WORLD_SIZE": "2"}, {"RANK": "2", "WORLD_SIZE": "2"}])
def test_variables_that_make_no_sense_are_refused(variables):
    with pytest.raises(ConfigError, match="RANK"):
        find_launch(variables)


@pytest.mark.parametrize(
    "node_list, host",
    [
        ("n1", "n1"),
        ("n[1-2]", "n1"),
        ("login,gpu[1-2]", "login"),
        ("gpu[003,007-012]-ib,gpu900", "gpu003-ib"),
        ("rack[2-3]node[11,13],x", "rack2node11"),
        ("a-1.cluster.org,b", "a-1.cluster.org"),
    ],
)
def test_the_first_host_of_a_list(node_list, host):
    assert first_host(node_list) == host


def test_srun_meets_on_the_first_host_of_the_step_and_not_where_it_was_typed(environment):
    environment(**STEP)
    prepare_rendezvous(find_launch(os.environ))
    assert os.environ["MASTER_ADDR"] == "gpu07"
    assert os.environ["MASTER_PORT"] == str(20000 + 4711)
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["LOCAL_RANK"]) == ("3", "4", "1")


def test_tasks_of_one_host_meet_on_loopback(environment):
    environment(**STEP, SLURM_STEP_NUM_NODES="1")
    prepare_rendezvous(find_launch(os.environ))
    assert os.environ["MASTER_ADDR"] == "127.0.0.1"


def test_pmi_ranks_of_a_step_meet_as_slurm_says(environment):
    environment(**STEP, PMI_RANK="3", PMI_SIZE="4")
    prepare_rendezvous(find_launch(os.environ))
    assert os.environ["MASTER_ADDR"] == "gpu07"


def test_a_given_address_and_port_stay(environment):
    environment(**STEP, MASTER_ADDR="head", MASTER_PORT="1234")
    prepare_rendezvous(find_launch(os.environ))
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("head", "1234")


def test_an_address_and_a_port_that_are_set_to_nothing_are_not_set(environment):
    environment(**STEP, MASTER_ADDR="", MASTER_PORT="")
    prepare_rendezvous(find_launch(os.environ))
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("gpu07", str(job_port(STEP)))


@pytest.mark.parametrize("port", ["29500x", "-1", "65536", "²"])
def test_a_port_that_is_none_is_refused_by_name(environment, port):
    environment(RANK="0", WORLD_SIZE="2", MASTER_ADDR="head", MASTER_PORT=port)
    with pytest.raises(ConfigError, match=f"MASTER_PORT is {port!r}, which is no port"):
        prepare_rendezvous(find_launch(os.environ))


def test_ranks_without_a_place_to_meet_are_refused(environment):
    environment(RANK="0", WORLD_SIZE="2")
    with pytest.raises(ConfigError, match="MASTER_ADDR isn't set"):
        prepare_rendezvous(find_launch(os.environ))


def test_mpi_ranks_whose_mpi_sees_one_are_refused():
    """In a process of its own, which MPI may take over."""
    code = "import os; from kappaspeech.ranks.rendezvous import *; prepare_rendezvous(find_launch(os.environ))"
    variables = clean_environment(OMPI_COMM_WORLD_RANK="0", OMPI_COMM_WORLD_SIZE="2")
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=patience(60))
    assert "started 2 processes (openmpi), but mpi4py's MPI sees 1" in done.stderr


def test_an_mpi_that_cannot_be_loaded_is_told_with_a_way_without_it(environment, monkeypatch):
    environment(OMPI_COMM_WORLD_RANK="0", OMPI_COMM_WORLD_SIZE="2")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ConfigError, match=r"mpi4py can't be loaded by .*or set MASTER_ADDR and MASTER_PORT"):
        prepare_rendezvous(find_launch(os.environ))


def test_neighbouring_jobs_and_steps_have_ports_of_their_own_below_those_of_outgoing_connections():
    ids = [(job, step) for job in range(11_990, 12_030) for step in range(4)]
    ports = {job_port({"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)}) for job, step in ids}
    assert len(ports) == len(ids)
    assert min(ports) >= 20_000
    assert max(ports) < 32_768


@pytest.mark.parametrize("local_rank, num_visible, gpu", [(0, 8, 0), (7, 8, 7), (3, 1, 0)])
def test_a_rank_takes_its_hosts_next_gpu_or_the_only_one_it_sees(local_rank, num_visible, gpu):
    assert _choose_gpu(Launch(8, 16, local_rank, "slurm"), num_visible) == gpu


def test_more_ranks_than_gpus_are_refused():
    with pytest.raises(ConfigError, match="shows it 2 GPUs"):
        _choose_gpu(Launch(2, 4, 2, "slurm"), 2)


NCCL_ERROR = (
    "NCCL error in: ../torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:3690, {kind} (run with NCCL_DEBUG=WARN for details), "
    "NCCL version 2.29.3\nnccl{kind}: This usually reflects something.\nLast error:\n{last}\n"
)


def test_ranks_that_share_a_gpu_are_told_so(environment):
    environment(MASTER_ADDR="127.0.0.1", MASTER_PORT="1234")
    error = NCCL_ERROR.format(kind="invalid usage", last="Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000")
    with pytest.raises(ConfigError, match="shares a GPU with another rank"), explained_meeting(Launch(1, 2, 1, "torch")):
        raise RuntimeError(error)


def test_the_reason_that_nccl_gives_last_is_told(environment):
    environment(MASTER_ADDR="10.0.0.1", MASTER_PORT="1234")
    error = NCCL_ERROR.format(kind="remote process exited", last="socketProgress: Connection closed by remote peer gpu07<4242>")
    with pytest.raises(ClusterError, match=r"NCCL error in: .* Connection closed by remote peer gpu07"):
        with explained_meeting(Launch(1, 2, 1, "torch")):
            raise RuntimeError(error)


@pytest.mark.parametrize(
    "before, after",
    [
        ({"DS_ACCELERATOR": "cpu"}, {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}),
        ({"DS_ACCELERATOR": "cuda", "CUDA_VISIBLE_DEVICES": "3"}, {"DS_ACCELERATOR": "cuda", "CUDA_VISIBLE_DEVICES": "3"}),
        ({}, {}),
    ],
)
def test_gpus_are_hidden_from_a_training_that_is_to_use_processors(before, after):
    """DeepSpeed took the processors, and torch's NCCL the GPUs: the first broadcast failed."""
    environment = dict(before)
    hide_unwanted_gpus(environment)
    assert environment == after


def test_beside_gpus_none_of_deepspeeds_ops_is_tried(environment, monkeypatch):
    """Each rank tried all, and printed a warning for each that wants the CUDA toolkit, which images without a compiler lack."""
    import deepspeed
    import torch

    met: list[str] = []

    def meet(*, dist_backend: str, **_: object) -> None:
        met.append(dist_backend)
        raise InterruptedError

    environment()
    for name, answer in (("is_available", lambda: True), ("device_count", lambda: 1), ("set_device", met.append)):
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.delitem(vars(deepspeed.ops), "__compatible_ops__", raising=False)
    monkeypatch.setattr(deepspeed.ops, "_probe_compatible_ops", lambda: pytest.fail("its ops were tried"))
    monkeypatch.setattr(deepspeed, "init_distributed", meet)
    with pytest.raises(InterruptedError):
        start_training_cluster(timeout_seconds=patience(5))
    assert met == [0, "nccl"]
