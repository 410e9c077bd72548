"""The files that start a run on a cluster: each is run or read, with commands that write down what they are given."""

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from encoders.cli.parser import parse_words

ROOT = Path(__file__).parents[1]
CLUSTERS = ROOT / "experiments" / "clusters"
WORDS = ["bert", "--only", "bert-large", "--set", "mesh.fsdp=16", "name=a b"]
# In the place of the clusters' commands: appends its arguments as a line of JSON. The first call of `srun` and of
# `gcloud` ends as a run does that was stopped with steps left.
STAND_IN = """#!/usr/bin/env python3
import json, os, sys
from pathlib import Path
calls = Path(os.environ["CALLS"])
is_first = not calls.exists()
with calls.open("a") as file:
    file.write(json.dumps([Path(sys.argv[0]).name, *sys.argv[1:]]) + "\\n")
sys.exit(75 if is_first and Path(sys.argv[0]).name in ("srun", "gcloud") else 0)
"""
ENVIRONMENT = {
    **{"TPU": "my-slice", "ZONE": "zone-a", "HOSTS": "host-0 host-1", "CLUSTER": "mine", "IMAGE": "an/image"},
    **{"TPU_TYPE": "v5litepod-16", "SLICES": "2", "SLURM_JOB_ID": "7"},
}


def run_script(name: str, folder: Path, environment=ENVIRONMENT) -> tuple[int, list[list[str]]]:
    """Run a file of `CLUSTERS` with the words of a run; return its status and the commands that it calls."""
    for command in ("gcloud", "xpk", "ssh", "srun", "scontrol"):
        (folder / command).write_text(STAND_IN)
        (folder / command).chmod(0o755)
    path = {"PATH": f"{folder}:{os.environ['PATH']}", "CALLS": str(folder / "calls")}
    status = subprocess.run(["bash", CLUSTERS / name, *WORDS], env=path | environment, capture_output=True).returncode
    lines = (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []
    return status, [json.loads(line) for line in lines]


def parse_train_words(command: str | list[str]) -> dict:
    """Return the arguments of `launch.py train` in a command of a shell, as the command line parses them."""
    words = shlex.split(command) if isinstance(command, str) else command
    return parse_words(words[words.index("launch.py") + 1 :])


def assert_trains(arguments: dict, **expected) -> None:
    assert arguments["verb"] == "train" and arguments["experiment"] == "bert"
    assert arguments["only"] == ["bert-large"] and arguments["settings"] == ["mesh.fsdp=16", "name=a b"]
    assert {name: arguments.get(name) for name in expected} == expected


def test_on_a_tpu_slice_every_host_trains_until_the_run_is_done(tmp_path):
    status, calls = run_script("tpu_pod.sh", tmp_path)
    assert status == 0 and len(calls) == 2 and calls[0] == calls[1]  # the first was stopped with steps left
    assert {"gcloud", "my-slice", "--zone=zone-a", "--worker=all"} <= {*calls[0]}
    assert_trains(parse_train_words(calls[0][-1]), coordinator="auto")


def test_xpk_starts_slices_that_start_again(tmp_path):
    status, (call,) = run_script("xpk.sh", tmp_path)
    assert status == 0
    assert {"--cluster=mine", "--tpu-type=v5litepod-16", "--num-slices=2", "--docker-image=an/image"} <= {*call}
    assert_trains(parse_train_words(call[-1].removeprefix("--command=")), coordinator="auto")


def test_over_ssh_each_host_has_its_index_and_the_first_coordinates(tmp_path):
    status, calls = run_script("ssh_hosts.sh", tmp_path)
    assert status == 0 and sorted(call[1] for call in calls) == ["host-0", "host-1"]
    for index, call in enumerate(sorted(calls)):
        words = {"coordinator": "host-0:8476", "num_processes": 2, "process_id": index}
        assert_trains(parse_train_words(" ".join(call[2:])), **words)


@pytest.mark.parametrize("name", ["slurm.sbatch", "sweep.sbatch"])
def test_slurm_queues_a_run_again_that_has_steps_left(name, tmp_path):
    status, (trained, queued) = run_script(name, tmp_path)
    assert status == 75 and queued == ["scontrol", "requeue", "7"]
    assert_trains(parse_train_words(trained))


def test_the_job_set_trains_on_every_host_of_every_slice():
    manifest = yaml.safe_load((CLUSTERS / "gke_jobset.yaml").read_text())
    (job,) = manifest["spec"]["replicatedJobs"]
    hosts, pod = job["template"]["spec"], job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    arguments = parse_train_words(container["command"] + container["args"])
    assert arguments["coordinator"] == "auto" and arguments["only"] == ["bert-large"]
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert (
        hosts["parallelism"]
        == hosts["completions"]
        == rows * columns / container["resources"]["limits"]["google.com/tpu"]
    )
    assert job["replicas"] == 2 and hosts["backoffLimit"] == 0 and manifest["spec"]["failurePolicy"]["maxRestarts"] > 0
    (mounted,), (volume,) = container["volumeMounts"], pod["volumes"]
    assert mounted["name"] == volume["name"] and arguments["runs"].startswith(mounted["mountPath"])


@pytest.mark.parametrize("name, variable", [("tpu_pod.sh", "TPU"), ("ssh_hosts.sh", "HOSTS"), ("xpk.sh", "CLUSTER")])
def test_a_script_without_its_variable_starts_nothing(name, variable, tmp_path):
    environment = {key: value for key, value in ENVIRONMENT.items() if key != variable}
    status, calls = run_script(name, tmp_path, environment)
    assert status != 0 and not calls


def test_every_file_for_a_cluster_is_tested_here():
    tested = (ROOT / "tests" / "test_clusters.py").read_text(encoding="utf-8")
    assert all(path.name in tested for path in CLUSTERS.iterdir())
