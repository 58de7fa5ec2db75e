"""docs/clusters.md: its commands are taken by what they call, and the files it names are there."""

import itertools
import re
import shlex

import pytest

from tests.launch.cluster_files import ROOT, ray_start

DOC = ROOT / "docs" / "clusters.md"


def commands():
    """Every command of the code blocks, as a list of words; comments dropped, continued lines joined."""
    blocks = re.findall(r"^ *```\n(.*?)^ *```$", DOC.read_text(), re.MULTILINE | re.DOTALL)
    lines = re.sub(r"\\\n\s*", " ", "".join(blocks)).splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def those(*start):
    found = [words for words in commands() if words[: len(start)] == list(start)]
    assert found, f"no command begins with {start}"
    return found


def test_files_exist():
    named = set(re.findall(r"\b(?:launchers|cluster|docs|configs)/[\w./-]*\w", DOC.read_text()))
    assert len(named) > 5
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_links_lead_somewhere():
    headings = re.findall(r"^#+ (.*)$", DOC.read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for link in re.findall(r"\]\(([^)]+)\)", DOC.read_text()):
        place = link.removeprefix("#")
        assert place in anchors if place != link else (DOC.parent / link).exists(), link


def test_configs_exist():
    for words in commands():
        for option, value in itertools.pairwise(words):
            assert option != "--config" or (ROOT / "configs" / f"{value}.yaml").exists()


@pytest.mark.parametrize("words", those("launchers/torchrun.sh"), ids=lambda words: " ".join(words[1:5]))
def test_torchrun(shell, words):
    done = shell(ROOT / words[0], *(word.replace("HOST", "localhost") for word in words[1:]))
    assert (done.returncode, done.stderr) == (0, "")
    assert len(shell.calls("torchrun")) == 1


@pytest.mark.parametrize("words", those("sbatch"), ids=lambda words: words[5])
def test_sbatch(shell, words):
    given = dict(zip(words[1:5:2], words[2:5:2], strict=True))
    assert set(given) == {"--nodes", "--gpus-per-node"}
    nodes = ",".join(["localhost", "node-2", "node-3"][: int(given["--nodes"])])
    gpus = given["--gpus-per-node"]
    job = {"SLURM_JOB_ID": 1, "SLURM_JOB_NODELIST": nodes, "SLURM_GPUS_ON_NODE": gpus}
    done = shell(ROOT / words[5], *words[6:], **job)
    assert (done.returncode, done.stderr) == (0, "")


def test_ray_start():
    head, worker = (ray_start(words[2:]) for words in those("ray", "start"))
    assert (head["head"], head["dashboard_host"]) == (True, "127.0.0.1")
    assert worker["address"] == f"HEAD:{head['port']}"


def test_no_token_is_written_for_all_to_read():
    """Ray gives its file the rights that the umask leaves, which are usually everybody's."""
    files = [DOC, *(path for path in (ROOT / "cluster").rglob("*") if path.is_file())]
    lines = [line for path in files for line in path.read_text().splitlines() if "--generate" in line]
    assert lines
    assert [line for line in lines if "umask 077" not in line] == []
