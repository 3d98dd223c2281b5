"""The examples for Kubernetes and SkyPilot: the fields that their schemas have, and commands that torchrun and this project take.

There is no cluster where the tests run. The fields are those of Kubeflow's training operator v1 (PyTorchJob) and Trainer
v1alpha1 (TrainJob, TrainingRuntime), of JobSet v1alpha2, of Kubernetes' own Job and Pod, and of SkyPilot's task. A field that
isn't known here is refused: look it up before it is added.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import config_from_args, parse_args

from tests.patience import patience

LAUNCH = Path(__file__).parents[2] / "launch"
FILES = sorted((LAUNCH / "kubernetes").glob("*.yaml"))
# where a list stands in a schema, each of its items is of that form; "*" is any key; a type is a value
QUANTITIES = {"*": int | str}
RESOURCES = {"limits": QUANTITIES, "requests": QUANTITIES}
CONTAINER = {
    "name": str,
    "image": str,
    "workingDir": str,
    "command": [str],
    "args": [str],
    "env": [{"name": str, "value": str}],
    "resources": RESOURCES,
    "volumeMounts": [{"name": str, "mountPath": str}],
}
VOLUME = {"name": str, "persistentVolumeClaim": {"claimName": str}, "emptyDir": {"medium": str}}
POD = {
    "metadata": {"labels": {"*": str}},
    "spec": {
        "restartPolicy": str,
        "terminationGracePeriodSeconds": int,
        "securityContext": {"fsGroup": int},
        "containers": [CONTAINER],
        "volumes": [VOLUME],
    },
}
JOB = {
    "metadata": {"labels": {"*": str}},
    "spec": {"parallelism": int, "completions": int, "completionMode": str, "backoffLimit": int, "template": POD},
}
JOBSET = {
    "failurePolicy": {"maxRestarts": int},
    "network": {"enableDNSHostnames": bool, "publishNotReadyAddresses": bool},
    "replicatedJobs": [{"name": str, "replicas": int, "template": JOB}],
}
REPLICA = {"replicas": int, "restartPolicy": str, "template": POD}
TOP = {"apiVersion": str, "kind": str, "metadata": {"name": str}}
SCHEMAS: dict[tuple[str, str], dict[str, Any]] = {
    ("kubeflow.org/v1", "PyTorchJob"): {
        "runPolicy": {"cleanPodPolicy": str, "backoffLimit": int},
        "pytorchReplicaSpecs": {"Master": REPLICA, "Worker": REPLICA},
    },
    ("trainer.kubeflow.org/v1alpha1", "TrainingRuntime"): {
        "mlPolicy": {"numNodes": int, "torch": {}},
        "template": {"spec": JOBSET},
    },
    ("trainer.kubeflow.org/v1alpha1", "TrainJob"): {
        "runtimeRef": {"name": str, "apiGroup": str, "kind": str},
        "trainer": {
            "image": str,
            "command": [str],
            "args": [str],
            "env": [{"name": str, "value": str}],
            "numNodes": int,
            "numProcPerNode": int,
            "resourcesPerNode": RESOURCES,
        },
    },
    ("jobset.x-k8s.io/v1alpha2", "JobSet"): JOBSET,
}
SKYPILOT = {
    "name": str,
    "workdir": str,
    "num_nodes": int,
    "resources": {"accelerators": str},
    "volumes": {"*": str},
    "envs": {"*": str},
    "setup": str,
    "run": str,
}
# what the operators and Kubernetes set in the second of two pods
SECOND_POD = {
    "pytorchjob": {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "kappaspeech-master-0", "MASTER_PORT": "23456"},
    "trainjob": {
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "8",
        "PET_NODE_RANK": "1",
        "PET_MASTER_ADDR": "kappaspeech-node-0-0.kappaspeech",
        "PET_MASTER_PORT": "29500",
    },
    "jobset": {"JOB_COMPLETION_INDEX": "1"},
    "skypilot": {
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NUM_GPUS_PER_NODE": "8",
        "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "CONFIG": "run.yaml",
    },
}

# `python -m kappaspeech.processors N` on 100 cores
SHARE = "import sys; from kappaspeech import processors as p; p.count_cores = lambda: 100; print(p._share_named(sys.argv[3]))"


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def faults(value: Any, schema: Any, place: str = "") -> list[str]:
    """The places of a document that its schema hasn't."""
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [f"{place}: {value!r}"]
        unknown = [f"{place}.{key}" for key in value if key not in schema and "*" not in schema]
        known = [item for key in value if key in schema or "*" in schema for item in [(key, schema.get(key, schema.get("*")))]]
        return unknown + [fault for key, inner in known for fault in faults(value[key], inner, f"{place}.{key}")]
    if isinstance(schema, list):
        if not isinstance(value, list) or not value:
            return [f"{place}: {value!r}"]
        return [fault for number, item in enumerate(value) for fault in faults(item, schema[0], f"{place}.{number}")]
    is_wrong = not isinstance(value, schema) or (isinstance(value, bool) and schema is not bool)
    return [f"{place}: {value!r}"] if is_wrong else []


def pods(value: Any) -> Iterator[dict[str, Any]]:
    """Every pod's spec in a document."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for inner in value.values():
            yield from pods(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from pods(inner)


def scripts(path: Path) -> Iterator[str]:
    for document in documents(path):
        for holder in (document.get("spec", {}).get("trainer", {}), *(pod["containers"][0] for pod in pods(document))):
            if "args" in holder:
                assert holder["command"] == ["bash", "-c"]
                yield holder["args"][0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_field_is_one_that_the_schema_has(path):
    for document in documents(path):
        schema = SCHEMAS[document["apiVersion"], document["kind"]]
        assert faults(document, {**TOP, "spec": schema}) == []
        assert document["spec"].keys() <= schema.keys()


def test_a_wrong_field_is_found():
    (document,) = documents(LAUNCH / "kubernetes/jobset.yaml")
    document["spec"]["replicatedJobs"][0]["template"]["spec"]["paralellism"] = 2
    document["spec"]["failurePolicy"]["maxRestarts"] = "20"
    assert faults(document["spec"], JOBSET) == [
        ".failurePolicy.maxRestarts: '20'",
        ".replicatedJobs.0.template.spec.paralellism",
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_mounts_have_volumes_and_ranks_share_memory(path):
    found = [pod for document in documents(path) for pod in pods(document)]
    assert found
    for pod in found:
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounts == {"data": "/data", "shm": "/dev/shm"}
        assert {volume["name"] for volume in pod["volumes"]} == set(mounts)


def test_numbers_that_say_the_same_are_the_same():
    (job,) = documents(LAUNCH / "kubernetes/pytorchjob.yaml")
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert set(replicas) == {"Master", "Worker"}
    assert replicas["Master"]["template"]["spec"]["containers"][0]["name"] == "pytorch"
    assert f"--nnodes={sum(item['replicas'] for item in replicas.values())} " in next(
        scripts(LAUNCH / "kubernetes/pytorchjob.yaml")
    )
    (job,) = documents(LAUNCH / "kubernetes/jobset.yaml")
    (replicated,) = job["spec"]["replicatedJobs"]
    inner = replicated["template"]["spec"]
    assert inner["completionMode"] == "Indexed"
    assert f"--nnodes={inner['parallelism']} " in next(scripts(LAUNCH / "kubernetes/jobset.yaml"))
    assert inner["parallelism"] == inner["completions"]
    name = job["metadata"]["name"]
    assert f"--master-addr={name}-{replicated['name']}-0-0.{name} " in next(scripts(LAUNCH / "kubernetes/jobset.yaml"))
    runtime, job = documents(LAUNCH / "kubernetes/trainjob.yaml")
    assert job["spec"]["runtimeRef"] == {"kind": runtime["kind"], "name": runtime["metadata"]["name"]}
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    assert replicated["template"]["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    assert (replicated["name"], next(pods(runtime))["containers"][0]["name"]) == ("node", "node")


def test_skypilots_task_has_the_fields_that_a_task_has():
    (task,) = documents(LAUNCH / "skypilot/train.yaml")
    assert faults(task, SKYPILOT) == []


def lines_of(name: str) -> list[str]:
    """The scripts of an example: of its pods, or of each host."""
    if name == "skypilot":
        return [documents(LAUNCH / "skypilot/train.yaml")[0]["run"]]
    return list(scripts(LAUNCH / f"kubernetes/{name}.yaml"))


def run_script(script: str, folder: Path, variables: dict[str, str], *, status: int = 0, then: str = "") -> Any:
    """Run an example's script with commands in the place of torchrun and kappaspeech that keep their words, on 100 cores."""
    binaries = folder / "bin"
    share = f'{sys.executable} -c "{SHARE}" "$@"'
    cores = f'[ "$1 $2" = "-m kappaspeech.processors" ] && exec env PYTHONPATH="{LAUNCH.parent / "pipeline"}" {share}'
    binaries.mkdir(exist_ok=True)
    (folder / ".venv/bin").mkdir(parents=True, exist_ok=True)
    (folder / ".venv/bin/activate").write_text("")
    for name, code in (("torchrun", f"{then}exit 3"), ("kappaspeech", f"exit {status}"), ("python", cores)):
        path = binaries / name
        path.write_text(f'#!/bin/bash\nprintf "%s\\0" "$@" > "{folder}/{name}.words"\n{code}\n')
        path.chmod(0o755)
    environment = {"PATH": f"{binaries}:/usr/bin:/bin", **variables}
    return subprocess.Popen(["bash", "-c", script.replace("cd /data", "true")], cwd=folder, env=environment)


def words_of(folder: Path, name: str) -> list[str]:
    return (folder / f"{name}.words").read_text().split("\0")[:-1]


@pytest.mark.parametrize("name", sorted(SECOND_POD))
def test_the_second_pod_starts_the_second_hosts_ranks(name, tmp_path, monkeypatch):
    # torchrun sets it where it isn't
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for script in lines_of(name):
        assert run_script(script, tmp_path, SECOND_POD[name]).wait(patience(30)) == 0
        for variable, value in SECOND_POD[name].items():
            monkeypatch.setenv(variable, value)
        arguments = parse_args(words_of(tmp_path, "torchrun"))
        config, _, _ = config_from_args(arguments)
        assert (config.min_nodes, config.max_nodes, config.nproc_per_node) == (2, 2, 8)
        assert (arguments.node_rank, arguments.module) == (1, True)
        address = {"pytorchjob": "kappaspeech-master-0:23456", "trainjob": "kappaspeech-node-0-0.kappaspeech:29500"}
        other = {"jobset": "kappaspeech-host-0-0.kappaspeech:29500", "skypilot": "10.0.0.1:29500"}
        assert config.rdzv_endpoint == {**address, **other}[name]
        assert [arguments.training_script, *arguments.training_script_args] == ["kappaspeech", "train", "run.yaml"]
        assert words_of(tmp_path, "kappaspeech") == ["status", "run.yaml"]


@pytest.mark.parametrize("name", sorted(SECOND_POD))
def test_ranks_share_out_the_cores_of_their_host(name, tmp_path):
    """Of torchrun each has one, and an optimizer that is offloaded computes there."""
    keep = f'printf %s "$OMP_NUM_THREADS" > "{tmp_path}/threads"; '
    for script in lines_of(name):
        for given, threads in (({}, "12"), ({"OMP_NUM_THREADS": ""}, "12"), ({"OMP_NUM_THREADS": "8"}, "8")):
            assert run_script(script, tmp_path, {**SECOND_POD[name], **given}, then=keep).wait(patience(30)) == 0
            assert (tmp_path / "threads").read_text() == threads


@pytest.mark.parametrize("number", ["auto", "gpu", "cpu", ""])
def test_a_trainjob_may_leave_the_number_of_ranks_to_torchrun(number, tmp_path):
    keep = f'printf %s "$OMP_NUM_THREADS" > "{tmp_path}/threads"; '
    (script,) = lines_of("trainjob")
    variables = {**SECOND_POD["trainjob"], "PET_NPROC_PER_NODE": number}
    assert run_script(script, tmp_path, variables, then=keep).wait(patience(30)) == 0
    assert (tmp_path / "threads").read_text() == "1"


@pytest.mark.parametrize("name", ["pytorchjob", "trainjob", "jobset"])
def test_a_pod_hands_on_the_wish_to_stop_and_ends_as_the_run_does(name, tmp_path):
    script = lines_of(name)[0]
    # as torchrun, which takes a moment to end
    begun, stopped = tmp_path / "begun", tmp_path / "stopped"
    waits = f'trap \'sleep 0.2; touch "{stopped}"; exit 0\' TERM; touch "{begun}"; while :; do sleep 0.05; done; '
    process = run_script(script, tmp_path, SECOND_POD[name], status=1, then=waits)
    limit = patience(30)
    while not begun.exists() and limit > 0:
        limit -= 0.05
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
    process.terminate()
    assert process.wait(patience(30)) == 1
    assert stopped.exists()
