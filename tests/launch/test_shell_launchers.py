"""torchrun.sh and the SLURM jobs: how they call torchrun, srun and Ray, and what they refuse."""

import argparse
import os
import re
import subprocess
from pathlib import Path

import pytest
from torch.distributed import run as torchrun

from tests.launch.cluster_files import HEALTH, ROOT, ray_start

LAUNCHERS = ROOT / "launchers"
SCRIPTS = sorted((*LAUNCHERS.glob("*.sh"), *LAUNCHERS.glob("*.sbatch")))
NODES = ["localhost", "gpu-2", "gpu-3"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_it_is_a_script(script):
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True).stderr == ""
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in script.read_text()


def test_all_are_there():
    assert {script.name for script in SCRIPTS} == {"torchrun.sh", "slurm_torchrun.sbatch", "slurm_ray.sbatch"}
    assert os.access(LAUNCHERS / "torchrun.sh", os.X_OK)


class TestTorchrun:
    SCRIPT = LAUNCHERS / "torchrun.sh"
    RUN = (
        "generate",
        "a red ball; $HOME 'and' \"more\"",
        "--out",
        "out/a b",
        "--set",
        "sampling.steps=5",
        "--",
        "-x",
    )

    def test_one_node(self, shell):
        done = shell(self.SCRIPT, "--nproc", 4, *self.RUN)
        assert (done.returncode, done.stderr) == (0, "")
        call = shell.only("torchrun")
        given = torchrun.parse_args(call.arguments)  # torchrun's own reading of them
        assert (given.nnodes, given.nproc_per_node, given.max_restarts) == ("1", "4", 2)
        assert (given.standalone, given.local_addr) == (True, "localhost")
        assert (given.module, given.training_script) == (True, "jano_dist")
        assert tuple(given.training_script_args) == self.RUN
        loopback = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
        own = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "1"}
        assert call.environment.items() >= (loopback | own).items()

    def test_a_measurement(self, shell):
        """It has no --check, and nothing but the one call is made."""
        words = ("bench", "scaling", "--out", "out/a b")
        done = shell(self.SCRIPT, "--nproc", 2, *words)
        assert (done.returncode, done.stderr) == (0, "")
        assert tuple(torchrun.parse_args(shell.only("torchrun").arguments).training_script_args) == words
        assert shell.calls("jano-dist") == []

    def test_several_nodes(self, shell):
        """The first node, which is this one: whatever it is called, it is told to host the meeting."""
        host = "127.0.0.1:29500"
        options = ("--nproc=8", "--nodes", 2, f"--rdzv={host}", "--rdzv-id", "panda", "--max-restarts=0")
        done = shell(self.SCRIPT, *options, *self.RUN)
        assert (done.returncode, done.stderr) == (0, "")
        call = shell.only("torchrun")
        given = torchrun.parse_args(call.arguments)
        assert (given.nnodes, given.nproc_per_node, given.max_restarts) == ("2", "8", 0)
        assert (given.rdzv_backend, given.rdzv_endpoint, given.rdzv_id) == (
            "c10d",
            "localhost:29500",
            "panda",
        )
        assert (given.standalone, given.local_addr) == (False, "127.0.0.1")
        assert tuple(given.training_script_args) == self.RUN
        assert call.environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
        assert "GLOO_SOCKET_IFNAME" not in call.environment  # the loopback would not reach the other node

    def test_another_node(self, shell):
        """Its address is the one from which the way to the first node begins."""
        (shell.bin / "python3").write_text("#!/usr/bin/env bash\necho 192.0.2.2\n")
        (shell.bin / "python3").chmod(0o755)
        assert (
            shell(self.SCRIPT, "--nproc=8", "--nodes=2", "--rdzv=[2001:db8::1]:1", *self.RUN).returncode == 0
        )
        given = torchrun.parse_args(shell.only("torchrun").arguments)
        assert (given.rdzv_endpoint, given.local_addr) == ("[2001:db8::1]:1", "192.0.2.2")

    def test_from_the_environment(self, shell):
        """As in a container of which only the variables can be set."""
        names = ("NPROC_PER_NODE", "NNODES", "RDZV_ENDPOINT", "RDZV_ID", "MAX_RESTARTS")
        values = dict(zip((f"PET_{name}" for name in names), (8, 3, "localhost:1", "fox", 7), strict=True))
        values["PET_LOCAL_ADDR"] = "192.0.2.7"
        assert shell(self.SCRIPT, "--nodes", 2, *self.RUN, **values).returncode == 0
        given = torchrun.parse_args(shell.only("torchrun").arguments)
        assert (given.nproc_per_node, given.nnodes, given.max_restarts) == ("8", "2", 7)
        assert (given.rdzv_endpoint, given.rdzv_id) == ("localhost:1", "fox")
        assert given.local_addr == "192.0.2.7"

    def test_what_the_user_has_set_stays(self, shell):
        own = {"OMP_NUM_THREADS": "8", "GLOO_SOCKET_IFNAME": "eth1", "NCCL_SOCKET_IFNAME": "ib0"}
        shell(self.SCRIPT, "--nproc", 2, *self.RUN, **own)
        assert shell.only("torchrun").environment.items() >= own.items()

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            ((), "give --nproc, the ranks of this node"),
            (("--nproc",), "--nproc needs a value"),
            (("--nproc", "two", "generate"), "--nproc must be a whole number, 1 or more, not 'two'"),
            (("--nproc", "0", "generate"), "--nproc must be a whole number, 1 or more, not '0'"),
            (("--nproc=2", "--nodes=1:2", "generate"), "--nodes must be a whole number, 1 or more, not"),
            (("--nproc=2", "--max-restarts=-1", "generate"), "--max-restarts must be a whole number, 0 or"),
            (("--nproc=2", "--nodes=2", "generate"), "--nodes 2 needs --rdzv HOST:PORT"),
            (("--nproc=2", "--rdzv=localhost", "generate"), "--rdzv must be HOST:PORT, not 'localhost'"),
            (("--nproc=2", "--rdzv=a..b:1", "generate"), "--rdzv a..b:1: this node knows no way to that"),
            (("--nproc=2", "--seed=3", "generate"), "--seed is not known here"),
            (("--nproc=2",), "what to run must be 'generate', a prompt and options of it, not ''"),
            (("--nproc=2", "a red ball"), "what to run must be 'generate', a prompt and options of"),
        ],
    )  # fmt: skip
    def test_one_sentence(self, shell, arguments, sentence):
        done = shell(self.SCRIPT, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"torchrun.sh: {sentence}")
        assert done.stderr.count("\n") == 1
        assert shell.calls("torchrun") == []

    def test_what_cannot_run_is_not_started(self, shell):
        """torchrun would start it again, and each time its sentence would be said."""
        done = shell(self.SCRIPT, "--nproc=4", "--nodes=2", "--rdzv=localhost:1", *self.RUN, CHECK=2)
        assert done.returncode == 2
        assert shell.calls("torchrun") == []
        check = shell.only("jano-dist")
        assert check.arguments == ["generate", "--check", *self.RUN[1:]]
        place = {"RANK": "0", "WORLD_SIZE": "8", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "4"}
        assert check.environment.items() >= place.items()

    def test_without_torchrun(self, shell):
        (shell.bin / "torchrun").unlink()
        (shell.bin / "bash").symlink_to("/bin/bash")
        done = shell(self.SCRIPT, "--nproc", 2, *self.RUN, PATH=shell.bin)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "torchrun is not on the PATH" in done.stderr

    def test_help(self, shell):
        done = shell(self.SCRIPT, "--help")
        assert (done.returncode, done.stderr) == (0, "")
        options = set(re.findall(r"^ +(--[a-z-]+) ", done.stdout, re.MULTILINE))
        assert options == {"--nproc", "--nodes", "--rdzv", "--rdzv-id", "--max-restarts"}


# Options of SLURM's that these files use, as `sbatch` and `srun` know them: whether they take a value.
SBATCH = {
    "--job-name": True, "--nodes": True, "--ntasks-per-node": True, "--gpus-per-node": True, "--time": True,
    "--output": True, "--exclusive": False, "--no-kill": False, "--no-requeue": False,
}  # fmt: skip
SRUN = {
    "--ntasks-per-node": True, "--cpu-bind": True, "--kill-on-bad-exit": True, "--output": True,
    "--no-kill": False,
}  # fmt: skip


def slurm_options(known: dict[str, bool], arguments: list[str]) -> dict[str, str | bool]:
    """Arguments as SLURM's commands read them; one that is not known, or without its value, fails."""
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    for name, takes_value in known.items():
        parser.add_argument(name, dest=name, **({} if takes_value else {"action": "store_true"}))
    return {name: value for name, value in vars(parser.parse_args(arguments)).items() if value}


def directives(script: Path) -> list[str]:
    """The `#SBATCH` lines that sbatch reads: those before the first command."""
    lines = script.read_text().splitlines()
    end = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    late = [line for line in lines[end:] if "#SBATCH" in line]
    assert late == [], "sbatch does not read directives after the first command"
    return [line.removeprefix("#SBATCH ") for line in lines[:end] if line.startswith("#SBATCH")]


JOBS = [LAUNCHERS / "slurm_torchrun.sbatch", LAUNCHERS / "slurm_ray.sbatch"]
JOB = {"SLURM_JOB_ID": 4711, "SLURM_JOB_NODELIST": ",".join(NODES), "SLURM_GPUS_ON_NODE": 8}
RUN = ("a red ball; $HOME", "--out", "/shared/out/a b", "--", "-x")


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
class TestSlurm:
    def test_directives(self, job):
        options = slurm_options(SBATCH, directives(job))
        assert options["--ntasks-per-node"] == "1"  # each starts the ranks of its node
        assert options["--exclusive"]
        assert options["--no-requeue"]  # it would begin at the first step
        assert int(options["--nodes"]) >= 1
        assert int(options["--gpus-per-node"]) >= 1
        assert re.fullmatch(r"\d+:\d\d:\d\d", options["--time"])
        assert "%j" in options["--output"]  # or jobs write over each other's
        # Only Ray goes on without a node; torchrun would wait for it until the time is over.
        assert options.get("--no-kill", False) == (job.name == "slurm_ray.sbatch")

    @pytest.mark.parametrize(
        ("arguments", "missing", "sentence"),
        [
            ((), "", "give a prompt and --out FOLDER"),
            (RUN, "SLURM_JOB_NODELIST", "this is no SLURM job: start this file with sbatch"),
            (RUN, "SLURM_GPUS_ON_NODE", "the job has no GPUs: ask for them with --gpus-per-node"),
        ],
    )
    def test_one_sentence(self, shell, job, arguments, missing, sentence):
        done = shell(job, *arguments, **{name: value for name, value in JOB.items() if name != missing})
        assert done.returncode == 2
        assert sentence in done.stderr
        assert done.stderr.count("\n") == 1
        assert shell.calls("srun") == []

    def test_a_copy_runs_anywhere(self, shell, job, tmp_path):
        """sbatch runs a copy of the file, in the folder it was called from."""
        copy = tmp_path / "slurm_script"
        copy.write_text(job.read_text())
        assert shell(copy, *RUN, **JOB).returncode == 0
        assert shell.calls("torchrun") or shell.calls("jano-dist")


def test_slurm_torchrun(shell):
    done = shell(LAUNCHERS / "slurm_torchrun.sbatch", *RUN, **JOB)
    assert (done.returncode, done.stderr) == (0, "")
    step = shell.only("srun").arguments
    options = slurm_options(SRUN, step[: step.index("bash")])
    assert options == {"--ntasks-per-node": "1", "--cpu-bind": "none", "--kill-on-bad-exit": "1"}
    agents = shell.calls("torchrun")
    assert len(agents) == len(NODES)
    for agent in agents:
        given = torchrun.parse_args(agent.arguments)
        assert (given.nnodes, given.nproc_per_node, given.rdzv_backend) == ("3", "8", "c10d")
        assert (given.rdzv_endpoint, given.rdzv_id) == ("localhost:29500", "jano-dist-4711")
        assert tuple(given.training_script_args) == ("generate", *RUN)


class TestSlurmRay:
    SCRIPT = LAUNCHERS / "slurm_ray.sbatch"

    def test_what_is_run(self, shell):
        done = shell(self.SCRIPT, *RUN, **JOB)
        assert (done.returncode, done.stderr) == (0, "")
        step = shell.only("srun").arguments
        options = slurm_options(SRUN, step[: step.index("bash")])
        assert options == {
            "--ntasks-per-node": "1",
            "--cpu-bind": "none",
            "--no-kill": True,
            "--output": "jano-dist-%j-ray.log",
        }
        arguments = shell.only("jano-dist").arguments
        assert tuple(arguments[-len(RUN) :]) == RUN
        assert arguments[: -len(RUN)] == [
            "generate", "--launcher", "ray", "--address", "localhost:6379", "--wait", "300", "--nproc", "24",
        ]  # fmt: skip

    def test_ray_is_started_as_ray_reads_it(self, shell):
        shell(self.SCRIPT, *RUN, **JOB)
        starts = [call for call in shell.calls("ray") if call.arguments[0] == "start"]
        assert [call.environment["SLURM_PROCID"] for call in starts] == ["0", "1", "2"]
        assert starts[0].environment.items() >= HEALTH.items()
        head, *workers = [ray_start(call.arguments[1:]) for call in starts]
        assert (head["head"], head["port"], head["dashboard_host"]) == (True, 6379, "127.0.0.1")
        for worker in workers:
            assert (worker["head"], worker["address"]) == (False, "localhost:6379")
        for node in (head, *workers):
            assert (node["num_gpus"], node["block"], node["disable_usage_stats"]) == (8, True, True)

    def test_the_run_waits_for_ray(self, shell):
        """Ray's own start waits for the head, too, but a run asks for nodes that are there."""
        shell(self.SCRIPT, *RUN, **JOB)
        (check,) = [call.arguments for call in shell.calls("ray") if call.arguments[0] != "start"]
        assert check == ["status", "--address=localhost:6379"]

    def test_ray_that_does_not_start(self, shell):
        """`timeout` gives up at once here, instead of after 300 s."""
        (shell.bin / "timeout").write_text("#!/usr/bin/env bash\nexit 124\n")
        (shell.bin / "timeout").chmod(0o755)
        done = shell(self.SCRIPT, *RUN, **JOB)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "Ray did not start on localhost within 300 s: see jano-dist-4711-ray.log" in done.stderr
        assert (shell.calls("jano-dist"), list(shell.home.iterdir())) == ([], [])

    def test_the_token(self, shell):
        """One for the job, for its owner alone, the same for all; nothing is left of it."""
        shell(self.SCRIPT, *RUN, **JOB)
        calls = shell.calls("ray")
        assert {(call.folder / "mode").read_text() for call in calls} == {"600\n"}
        (token,) = {(call.folder / "token").read_text() for call in calls}
        assert re.fullmatch(r"[0-9a-f]{64}", token)
        for call in (*calls, *shell.calls("jano-dist")):
            assert call.environment["RAY_AUTH_MODE"] == "token"
            assert call.environment["RAY_AUTH_TOKEN_PATH"].startswith(f"{shell.home}/")
            assert not [
                argument for argument in call.arguments if token in argument
            ]  # `ps` shows them to everyone
        assert list(shell.home.iterdir()) == []

    def test_the_exit_code_is_the_runs(self, shell):
        done = shell(self.SCRIPT, *RUN, **JOB, CODE=1)
        assert done.returncode == 1
        assert list(shell.home.iterdir()) == []

    def test_nothing_ends_others(self):
        assert "ray stop" not in self.SCRIPT.read_text()
