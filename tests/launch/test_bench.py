"""`jano-dist bench scaling` on real ranks: what it writes follows from what it measured, and it goes on."""

import json

import pytest

from tests.launch.conftest import finish

CASES = ("full", "jano", "diffusers", "xdit")


@pytest.fixture
def scaling(small, tmp_path):
    """`scaling(*more)`: the arguments of a quick measurement."""

    def arguments(*more):
        call = ["bench", "scaling", "--config", str(small), "--steps", "8", "--rounds", "1"]
        return [*call, "--active", "0.25", "--out", str(tmp_path / "bench"), *map(str, more)]

    return arguments


def parts(folder):
    found = [json.loads(path.read_text()) for path in sorted((folder / "parts").iterdir())]
    return {(part["world"], part["side"]): part for part in found}


def test_one_and_two_ranks(jano_dist, scaling, tmp_path):
    """The figures are those of the step records, and the same command goes on where something is missing."""
    folder = tmp_path / "bench"
    ended = finish(jano_dist(*scaling("--worlds", "1,2")))
    assert (ended.code, ended.err) == (0, "")
    assert "not run: xDiT needs a GPU build of torch" in ended.out
    measured = parts(folder)
    assert set(measured) == {(world, side) for world in (1, 2) for side in CASES}

    seconds = {
        key: sum(step["seconds"] for step in part["steps"])
        for key, part in measured.items()
        if key[1] != "xdit"
    }
    result = json.loads((folder / "scaling.json").read_text())
    rows = {(row["world"], row["side"]): row for row in result["rows"]}
    for (world, side), own in seconds.items():
        assert rows[world, side]["seconds"]["median"] == pytest.approx(own)
        efficiency = seconds[1, side] / (world * own)
        assert rows[world, side]["efficiency"]["median"] == pytest.approx(efficiency)
    gains = [seconds[world, "full"] / seconds[world, "jano"] for world in (1, 2)]
    assert rows[2, "jano"]["retention"]["median"] == pytest.approx(gains[1] / gains[0])
    assert (result["figures"], result["ran"]["versions"]["jano_dist"]) == ("measured", "0.1.0")

    kinds = [step["kind"] for step in measured[2, "jano"]["steps"]]
    assert kinds == ["full"] * 4 + ["refresh", "active", "full", "full"]
    tokens = {step["kind"]: step["tokens"] for step in measured[2, "jano"]["steps"]}
    assert tokens == {"full": 32, "refresh": 32, "active": 8}  # a quarter
    assert measured[2, "full"]["mesh"] == {"cfg": 2, "kv": 1, "ulysses": 1, "world": 2}
    # The same video by another engine: in one process to the bit, spread by Ulysses but for rounding.
    assert measured[1, "diffusers"]["max_difference"] == 0
    assert measured[2, "diffusers"]["max_difference"] < 1e-4

    again = folder / "parts" / "ranks-0001-round-001-jano-auto.json"
    before = {path: path.stat().st_mtime_ns for path in (folder / "parts").iterdir()}
    again.unlink()
    ended = finish(jano_dist(*scaling("--worlds", "1,2")))
    assert (ended.code, ended.err) == (0, "")
    assert "going on: 1 of 2 turns are done" in ended.out
    assert {path for path, at in before.items() if path.stat().st_mtime_ns != at} == {again}


def test_torchrun_measures_the_ranks_that_there_are(torchrun, jano_dist, scaling, tmp_path):
    folder = tmp_path / "bench"
    assert finish(jano_dist(*scaling("--worlds", "1", "--peers", "none"))).code == 0
    ended = torchrun(2, "-m", "jano_dist", *scaling("--worlds", "1", "--meshes", "1x1x2", "--peers", "none"))
    assert (ended.code, ended.sentences) == (0, [])
    assert set(parts(folder)) == {(1, "full"), (1, "jano"), (2, "full"), (2, "jano")}
    rows = json.loads((folder / "scaling.json").read_text())["rows"]
    assert {(row["world"], row["mesh"]) for row in rows} == {(1, "1x1x1"), (2, "1x1x2")}
    assert all(row["efficiency"] for row in rows)
