"""Command lines of jano-dist in docs and cluster files are taken by its own command line; none is run."""

import shlex

import pytest
import typer

from jano_dist.cli.app import app
from tests.launch.cluster_files import CLUSTER, documents
from tests.launch.test_clusters_doc import those

GROUP = typer.main.get_command(app)


def parsed(words):
    """The values of a command's parameters; one that it does not know fails."""
    with GROUP.make_context("jano-dist", list(words), resilient_parsing=True) as context:
        _, command, rest = GROUP.resolve_command(context, list(words))
        return command.make_context(command.name, rest, parent=context).params


@pytest.mark.parametrize("words", those("jano-dist"), ids=lambda words: " ".join(words[1:4]))
def test_docs(words):
    values = parsed(words[1:])
    if words[1] == "submit":
        assert values["folder"] == "/shared"  # else the folder one is in, which the head need not have
        values = parsed(values["command"])
    assert values["nproc"] > 1


def test_rayjob():
    (job,) = documents(CLUSTER / "kuberay" / "rayjob.yaml")
    values = parsed(shlex.split(job["spec"]["entrypoint"])[1:])
    assert (values["launcher"], values["nproc"]) == ("ray", 16)


def test_slurm_ray(shell):
    """What the job adds is overridden by what the user gives."""
    (words,) = [words for words in those("sbatch") if "slurm_ray" in words[5]]
    job = {"SLURM_JOB_ID": 1, "SLURM_JOB_NODELIST": "localhost,b,c", "SLURM_GPUS_ON_NODE": 8}
    assert shell(CLUSTER.parent / words[5], *words[6:], **job).returncode == 0
    values = parsed(shell.only("jano-dist").arguments)
    assert (values["launcher"], values["address"]) == ("ray", "localhost:6379")
    assert (values["nproc"], values["prompt"]) == (16, "a panda drinks coffee")
