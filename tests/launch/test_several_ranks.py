"""Several ranks make the video of one process, however they are started."""

import json

import pytest
from safetensors.torch import load_file

from tests.launch.conftest import HERE, finish

FILES = {"video.mp4", "complexity.png", "timeline.png", "latents.safetensors", "run.json"}


@pytest.fixture(scope="module")
def alone(small, tmp_path_factory):
    """The same video by one process in this one."""
    from jano_dist import cli

    out = tmp_path_factory.mktemp("alone") / "run"
    call = ["generate", "a red ball", "--config", str(small), "--out", str(out), "--save-latents"]
    assert cli.run(call) == 0
    return load_file(out / "latents.safetensors")["latents"]


def check(out, alone, mesh):
    latents = load_file(out / "latents.safetensors")["latents"]
    # 12 coarse steps amplify rounding; how close meshes come is the subject of tests/gang/test_parity.py.
    assert (latents - alone).abs().max() <= 3e-4
    assert {path.name for path in out.iterdir()} == FILES
    record = json.loads((out / "run.json").read_text())
    assert record["mesh"] == dict(zip(("cfg", "kv", "ulysses", "world"), mesh, strict=True))
    ranks = mesh[-1]
    for step in record["steps"]:
        assert {len(values) for values in step["ranks"].values()} == {ranks}
        assert set(step["ranks"]) == {"tokens", "seconds", "comm_seconds", "comm_bytes"}
        assert sum(step["ranks"]["tokens"]) == step["tokens"] * mesh[0]  # each branch computes them all
        assert sum(step["ranks"]["comm_bytes"]) == step["comm_bytes"] > 0
        seconds, in_collectives = step["ranks"]["seconds"], step["ranks"]["comm_seconds"]
        assert all(0 < part < whole for part, whole in zip(in_collectives, seconds, strict=True))
        assert step["seconds"] == max(seconds)
        assert step["comm_seconds"] == min(in_collectives)  # tests/gang/test_parity.py says what is counted


def test_nproc(start, command, generate, tmp_path, alone):
    """Two ranks, by default one per branch: which does not even change the order of summation."""
    ended = finish(start(*command[0], *generate(tmp_path / "run", "--nproc", 2, "--save-latents")))
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.count("denoise") == 1
    assert "2 ranks: cfg 2 x kv 1 x ulysses 1" in ended.out
    check(tmp_path / "run", alone, (2, 1, 1, 2))
    assert (load_file(tmp_path / "run" / "latents.safetensors")["latents"] == alone).all()


def test_torchrun(torchrun, generate, tmp_path, alone):
    call = generate(tmp_path / "run", "--ulysses", 2, "--save-latents")
    ended = torchrun(2, "-m", "jano_dist", *call)
    assert (ended.code, ended.sentences) == (0, [])
    check(tmp_path / "run", alone, (1, 1, 2, 2))


def test_a_program_of_ones_own(torchrun, small, tmp_path, alone):
    assert torchrun(2, HERE / "script.py", small, tmp_path / "latents").code == 0
    assert (load_file(tmp_path / "latents")["latents"] == alone).all()


@pytest.mark.parametrize(("options", "mesh"), [(["--nproc", 3, "--kv", 3], (1, 3, 1, 3)),
                                               (["--nproc", 4, "--kv", 2], (2, 2, 1, 4))])  # fmt: skip
def test_kv(jano_dist, generate, tmp_path, alone, options, mesh):
    ended = finish(jano_dist(*generate(tmp_path / "run", *options, "--save-latents")))
    assert (ended.code, ended.err) == (0, "")
    check(tmp_path / "run", alone, mesh)


@pytest.mark.slow
def test_two_nodes(start, generate, tmp_path, alone):
    """Two torchrun agents on this machine, as on two: one rank each."""
    import sys

    agents = [
        start(
            sys.executable, "-m", "torch.distributed.run", "--nnodes", 2, "--nproc-per-node", 1,
            "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:29741", "--rdzv-id", tmp_path.name,
            "-m", "jano_dist", *generate(tmp_path / "run", "--save-latents"),
        )
        for _ in range(2)
    ]  # fmt: skip
    ended = [finish(agent) for agent in agents]
    assert [(each.code, each.sentences) for each in ended] == [(0, []), (0, [])]
    check(tmp_path / "run", alone, (2, 1, 1, 2))
