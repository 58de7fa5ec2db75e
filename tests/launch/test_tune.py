"""`tune` on several ranks, however they are started: the search of one process, and its figures."""

import json

import pytest

from tests.launch.conftest import finish

PROMPTS = ["a red ball moves left over a navy background", "a blue ball moves right over a white background"]


@pytest.fixture
def arguments(small, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))

    def make(*more):
        options = ("--config", small, "--frames", 1, "--height", 32, "--width", 32, "--by", "work")
        files = ("--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "out")
        return [str(part) for part in ("tune", *options, *files, *more)]

    return make


def read(tmp_path):
    content = json.loads((tmp_path / "out" / "tune.json").read_text())
    return content, {(run["name"], run["prompt"]): run["outcome"] for run in content["runs"]}


def test_nproc(jano_dist, cli, arguments, tmp_path):
    """Two ranks, one per branch, do what one process does."""
    ended = finish(jano_dist(*arguments("--speedup", 2.2, "--nproc", 2)))
    assert (ended.code, ended.err) == (0, "")
    assert "none was held out" in ended.out
    content, runs = read(tmp_path)
    assert content["where"]["mesh"] == {"cfg": 2, "kv": 1, "ulysses": 1, "world": 2}
    (tmp_path / "out").rename(tmp_path / "two")
    assert cli(*arguments("--speedup", 2.2)).code == 0
    alone, others = read(tmp_path)
    assert alone["result"]["best"] == content["result"]["best"]
    assert list(others) == list(runs)
    assert all(others[key].get("quality") == outcome.get("quality") for key, outcome in runs.items())


def test_not_reached_with_nproc(jano_dist, arguments, tmp_path):
    ended = finish(jano_dist(*arguments("--speedup", 40, "--nproc", 2)))
    assert ended.code == 1
    assert ended.err.startswith("jano-dist: a speed-up of 40 by counted work was not reached")
    assert (tmp_path / "out" / "preset.yaml").exists()


@pytest.mark.slow
def test_torchrun(torchrun, arguments, tmp_path):
    ended = torchrun(2, "-m", "jano_dist", *arguments("--speedup", 2.2))
    assert (ended.code, ended.sentences) == (0, [])
    assert read(tmp_path)[0]["where"]["mesh"]["world"] == 2
    ended = torchrun(2, "-m", "jano_dist", *arguments("--speedup", 40))
    assert ended.code == 1
    (sentence,) = ended.sentences
    assert "was not reached" in sentence
