import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from llamarl.cli.jobs_of_clusters import ClusterJob, kubernetes_manifests, slurm_script
from llamarl.cli.main import main
from llamarl.recipes import recipe_path

DEMO = str(recipe_path("demo"))
KUBERNETES = ["--kubernetes", "--image", "registry/llamarl:1", "--claim", "shared", "--run-dir", "/shared/run"]


def job(nodes: int = 2, run_dir: str = "/shared/my run") -> ClusterJob:
    return ClusterJob("llamarl-demo", "/shared/it's.toml", run_dir, "/opt/python", nodes, ["--seed", "3"])


def check_shell(script: str) -> None:
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize("nodes", [1, 2, 5])
def test_scripts_are_shell_whatever_the_names_are(nodes: int) -> None:
    check_shell(slurm_script(job(nodes), {"time": "01:00:00", "partition": None}))
    (manifest,) = kubernetes_manifests(
        job(nodes), image="i", claim="c", mount="/shared", gpus=0, cpus=None, memory=None
    )
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    check_shell(container["command"][-1])


def test_a_pod_whose_worker_has_ended_ends(tmp_path: Path) -> None:
    """It must not wait for the run's end without one: Kubernetes starts only what has ended again."""
    (manifest,) = kubernetes_manifests(
        ClusterJob("demo", "/shared/demo.toml", str(tmp_path / "run"), "false", 2),
        **{"image": "i", "claim": "c", "mount": "/shared", "gpus": 0, "cpus": None, "memory": None},
    )
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    pod = {**os.environ, "JOB_COMPLETION_INDEX": "1", "POD_IP": "127.0.0.1"}
    done = subprocess.run(container["command"], env=pod, timeout=120, check=False)  # a hang is what is tested
    assert done.returncode == 1


def test_the_jobs_secret_is_found_whatever_the_recipe_calls_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    own = ["--placement.secret-env", "MINE"]
    assert main(["launch", DEMO, "--slurm", "--run-dir", "/shared/run", *own]) == 0
    begin, go_on = (line for line in capsys.readouterr().out.splitlines() if "--placement.hosts-folder" in line)
    assert all(" --placement.secret-env LLAMARL_SECRET --placement.hosts" in line for line in (begin, go_on))


def test_a_manifest_shows_its_script_and_notes_what_pods_may_not_see(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", DEMO, *KUBERNETES]) == 0
    printed = capsys.readouterr()
    assert '\n          export hosts=/shared/run.hosts\n          mkdir -p "$hosts"\n' in printed.out
    assert f"under /shared; {DEMO} must be in one of them" in printed.err


def test_the_secret_is_in_no_script(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMARL_SECRET", "0123456789abcdef" * 2)
    for words in (["--slurm", "--run-dir", "/shared/run"], KUBERNETES):
        assert main(["launch", DEMO, *words]) == 0
        assert "0123456789abcdef" not in "".join(capsys.readouterr())


def test_one_node_may_be_reached_by_loopback_and_several_may_not() -> None:
    assert "--across-hosts" not in slurm_script(job(1), {})
    assert "--across-hosts" in slurm_script(job(2), {})


def test_directives_and_settings_stand_where_they_belong(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--nodes", "3", "--gpus-per-node", "8", "--time", "04:00:00", "--run-dir", "/shared/run"]
    assert main(["launch", DEMO, "--slurm", *options, "--num-generators", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    directives = [line for line in lines if line.startswith("#SBATCH")]
    assert {"#SBATCH --nodes=3", "#SBATCH --gpus-per-node=8", "#SBATCH --time=04:00:00"} <= set(directives)
    assert not any("partition" in line for line in directives)
    (train,) = (line for line in lines if " -m llamarl train " in line)
    assert f"train {DEMO} --run-dir /shared/run --plain --num-generators 2 --engine monarch" in train


@pytest.mark.parametrize(("nodes", "gpus"), [(1, 0), (2, 0), (4, 8)])
def test_manifests_are_valid(nodes: int, gpus: int, capsys: pytest.CaptureFixture[str]) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    sizes = ["--nodes", str(nodes), "--gpus-per-node", str(gpus), "--cpus-per-node", "4", "--memory-per-node", "64Gi"]
    assert main(["launch", DEMO, *KUBERNETES, *sizes, "--num-generators", "3"]) == 0
    printed = capsys.readouterr()
    for manifest in yaml.safe_load_all(printed.out):
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
        assert manifest["spec"]["parallelism"] == nodes
        broken = json.loads(json.dumps(manifest))
        broken["spec"]["parallelism"] = "two"
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(broken, kubernetes_validate.latest_version(), strict=True)
    assert "kubectl create secret generic llamarl-demo" in printed.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give one of --slurm and --kubernetes"),
        (["--slurm", "--kubernetes"], "give one of --slurm and --kubernetes"),
        (["--slurm", "--nodes", "4"], "num_generators=1 leaves 2 of the others without a generator"),
        (["--slurm", "--placement.local", '["judge"]'], "placement: the job places executors by itself"),
        (["--kubernetes"], "--kubernetes needs --image and --claim"),
        (["--kubernetes", "--image", "i", "--claim", "c"], "pods share /shared alone, where --claim is mounted"),
        (["--slurm", "--schedule.stps", "3"], "--schedule.stps: unknown key"),
    ],
)
def test_what_cannot_be_launched_is_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["launch", DEMO, "--run-dir", str(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err


def test_where_there_is_no_cluster_submitting_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["launch", DEMO, "--slurm", "--run-dir", str(tmp_path / "run"), "--submit"]) == 2
    assert "sbatch: not on this machine" in capsys.readouterr().err
