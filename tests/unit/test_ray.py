"""How many ranks go to which nodes, and what is said of a cluster that cannot be used."""

import os
import socket

import pytest

from jano_dist.errors import UserError
from jano_dist.launchers.ray import Shape, choose_shape, connected, kept_logs


def nodes(*gpus, cpus=8):
    return [{"CPU": cpus, "GPU": each} if each else {"CPU": cpus} for each in gpus]


@pytest.mark.parametrize(
    ("ranks", "cluster", "shape"),
    [
        (8, nodes(8), Shape(1, 8, "GPU")),
        (8, nodes(0, 8, 8), Shape(1, 8, "GPU")),
        (16, nodes(0, 8, 8), Shape(2, 8, "GPU")),
        (8, nodes(4, 4, 4), Shape(2, 4, "GPU")),
        (6, nodes(4, 4, 4), Shape(2, 3, "GPU")),  # equally many on each
        (12, nodes(8, 4, 4), Shape(3, 4, "GPU")),
        (5, nodes(4, 4), None),  # 5 nodes of one, or one of 5
        (2, nodes(1, 1), Shape(2, 1, "GPU")),
        (16, nodes(8, 4), None),
        (4, nodes(0, 0, cpus=2), Shape(2, 2, "CPU")),
        (4, nodes(1, 0, cpus=8), None),  # where there are GPUs every rank has one
        (1, nodes(0), Shape(1, 1, "CPU")),
        (3, [], None),
    ],
)
def test_shape(ranks, cluster, shape):
    assert choose_shape(ranks, cluster) == shape


@pytest.fixture
def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "nowhere.invalid:1", "127.0.0.1", "127.0.0.1:x"])
def test_nobody_answers(address, free_port):
    address = address.format(port=free_port)
    with pytest.raises(UserError, match=f"no Ray cluster answers at {address}"), connected(address):
        pass


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.9\n    Python: 3.9"),
        ConnectionError("Could not find any running Ray instance."),
    ],
)
def test_a_cluster_that_cannot_be_used(error, monkeypatch):
    import ray

    def init(**_):
        raise error

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    sentence = " ".join(str(error).split())
    with pytest.raises(UserError) as raised, connected("auto"):
        pass
    assert f"the Ray cluster auto cannot be used ({sentence})" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_own_cluster_asks_for_a_token(monkeypatch):
    """And leaves neither that nor a folder behind."""
    import ray

    seen = {}

    def init(**options):
        seen.update(options, mode=os.environ["RAY_AUTH_MODE"], token=os.environ["RAY_AUTH_TOKEN"])

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    with connected(None):
        assert os.path.isdir(seen["_temp_dir"])
        assert (os.stat(seen["_temp_dir"]).st_mode & 0o777) == 0o700
    assert seen["mode"] == "token"
    assert len(seen["token"]) == 64
    assert seen["include_dashboard"] is False
    assert seen["_node_ip_address"] == "127.0.0.1"
    assert "RAY_AUTH_TOKEN" not in os.environ
    assert not os.path.exists(seen["_temp_dir"])
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)


def test_logs_of_a_gang_that_was_never_started_leave_nothing(tmp_path):
    """But what ranks have said stays where a run has failed."""
    folder = tmp_path / "run.jano-dist-unfinished"
    with pytest.raises(UserError), kept_logs(folder, tmp_path / "run"):
        raise UserError("the cluster is too small")
    assert list(tmp_path.iterdir()) == []
    failing = kept_logs(folder, tmp_path / "run")
    (failing.__enter__() / "rank-1.log").write_text("said")
    error = UserError("a rank failed")
    assert not failing.__exit__(UserError, error, None)
    assert (folder / "logs" / "rank-1.log").read_text() == "said"
