"""What happens when a rank fails: one sentence, an exit code, nobody left, nothing lost."""

import os
import signal

import pytest

from jano_dist import Engine, UserError, load_config
from tests.cli.sentence import assert_sentence
from tests.launch.conftest import HERE, finish, gone, wait_for

RECORD = '{"versions": {"jano_dist": "0"}}'


@pytest.fixture
def earlier(tmp_path):
    """A folder with the run of another day."""
    folder = tmp_path / "runs" / "run"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(RECORD)
    (folder / "video.mp4").write_bytes(b"a video")
    return folder


def untouched(folder, snapshots=0):
    """Whether the earlier run is as it was, and nothing is beside it but what is needed to go on."""
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    unfinished = folder.with_name("run.jano-dist-unfinished")
    beside = {folder} | ({unfinished} if snapshots else set())
    return (
        kept == {"run.json": RECORD.encode(), "video.mp4": b"a video"}
        and set(folder.parent.iterdir()) == beside
        and len(list(unfinished.glob("step-*.snapshot"))) == snapshots
    )


def test_a_rank_that_raises(supervised, earlier, tmp_path):
    ended = finish(supervised("raise:1:3", earlier))
    assert ended.code == 1
    assert ended.err.splitlines() == ended.sentences
    (sentence,) = ended.sentences
    assert "rank 1 failed in step 3: ValueError: boom" in sentence
    assert gone(tmp_path, 2)
    assert untouched(earlier)


@pytest.mark.parametrize("supervised", ["forked", "started"], indirect=True)
def test_a_rank_that_is_killed(supervised, earlier, tmp_path):
    ended = finish(supervised("kill:1:3", earlier))
    assert ended.code == 1
    assert ended.err.splitlines() == ended.sentences
    (sentence,) = ended.sentences
    assert "rank 1 was killed by signal SIGKILL in step 3" in sentence
    assert gone(tmp_path, 2)
    assert untouched(earlier)


def test_the_coordinator_killed(supervised, earlier, tmp_path):
    ended = finish(supervised("kill:0:2", earlier))
    assert ended.code == 1
    assert "rank 0 was killed by signal SIGKILL in step 2" in ended.sentences[0]
    assert gone(tmp_path, 2)


def test_a_rank_that_hangs(supervised, earlier, tmp_path):
    ended = finish(supervised("hang:1:3", earlier, "--set", "runtime.timeout_seconds=6"))
    assert ended.code == 1
    assert ended.err.splitlines() == ended.sentences
    (sentence,) = ended.sentences
    assert "rank 0 failed in step 3: contact with another rank was lost" in sentence
    assert "no sign came from rank 1:" in sentence
    assert "runtime.timeout_seconds" in sentence
    assert gone(tmp_path, 2)
    assert untouched(earlier)


@pytest.mark.slow
def test_a_rank_that_raises_under_torchrun(torchrun, generate, earlier, tmp_path):
    ended = torchrun(2, HERE / "broken.py", *generate(earlier), BROKEN="raise:1:3")
    assert ended.code == 1
    assert len(ended.sentences) == 1
    assert "rank 1 failed in step 3: ValueError: boom" in ended.sentences[0]
    assert gone(tmp_path, 2)
    assert untouched(earlier)


def test_a_disk_that_is_full(supervised, earlier, tmp_path):
    ended = finish(supervised("full:0:write", earlier))
    assert ended.code == 1
    assert ended.err.splitlines() == ended.sentences
    (sentence,) = ended.sentences
    assert "the run could not be written" in sentence
    assert "No space left on device" in sentence
    assert sentence.endswith(f"; to go on: jano-dist generate --resume {earlier}")
    assert gone(tmp_path, 2)
    assert untouched(earlier, snapshots=2)


def test_stopped_while_it_writes(supervised, earlier, tmp_path):
    """What is half written goes."""
    process = supervised("hang:0:write", earlier)
    wait_for(tmp_path / "time", process)
    process.terminate()
    ended = finish(process)
    assert ended.code == 143
    assert gone(tmp_path, 2)
    assert untouched(earlier, snapshots=2)


def test_interrupted_before_the_ranks_have_met(supervised, earlier, tmp_path):
    process = supervised("hang:1:1", earlier)
    wait_for(tmp_path / "pid0", process)
    wait_for(tmp_path / "pid1", process)
    os.killpg(process.pid, signal.SIGINT)
    ended = finish(process)
    assert (ended.code, ended.err) == (130, "jano-dist: interrupted: nothing was written\n")
    assert gone(tmp_path, 2)
    assert untouched(earlier)


def test_the_supervisor_killed(supervised, earlier, tmp_path):
    process = supervised("hang:1:1", earlier)
    wait_for(tmp_path / "time", process)
    process.kill()
    assert gone(tmp_path, 2)
    assert untouched(earlier)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_supervisor_stopped(supervised, earlier, tmp_path, number, code):
    """Ctrl-C reaches the whole foreground group; SIGTERM only whom it is sent to."""
    process = supervised("hang:1:1", earlier)
    wait_for(tmp_path / "time", process)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    ended = finish(process)
    assert ended.code == code
    said = ["jano-dist: interrupted: nothing was written"] if number == signal.SIGINT else []
    assert ended.err.splitlines() == said  # who sends SIGTERM knows why
    assert gone(tmp_path, 2)
    assert untouched(earlier)


def by_hand(jano_dist, generate, out, rank, port, *more):
    """One of two ranks started with nothing but an environment."""
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return jano_dist(*generate(out, *more), **place, **address)


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--nproc", 2, "--cfg", 2, "--ulysses", 2], ["4 ranks", "--nproc 4"]),
            (["--nproc", 3, "--cfg", 2], ["--nproc 3"]),
            (["--nproc", 0], ["--nproc"]),
            (["--nproc", 16 * os.cpu_count() + 1], ["--nproc", f"start at most {16 * os.cpu_count()}"]),
        ],
    )
    def test_before_any_rank_is_started(self, cli, generate, tmp_path, options, words):
        result = cli(*generate(tmp_path / "run", *options))
        assert result.code == 2
        assert len(result.err.splitlines()) == 1
        assert all(word in result.err for word in words)

    def test_said_by_one_rank_only(self, jano_dist, generate, tmp_path):
        """4 does not divide the 6 heads, which only the ranks know."""
        call = generate(tmp_path / "run", "--nproc", 4, "--ulysses", 4)
        ended = finish(jano_dist(*call))
        assert ended.code == 2
        assert ended.err.splitlines() == ended.sentences
        (sentence,) = ended.sentences
        assert "--ulysses 4 does not fit 4 ranks with 6 heads" in sentence
        assert "--cfg 2 --kv 1 --ulysses 2" in sentence
        assert not (tmp_path / "run").exists()

    def test_nproc_inside_a_gang(self, cli, generate, tmp_path, monkeypatch):
        for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
            monkeypatch.setenv(name, value)
        from jano_dist.cli.ranks import check_ranks
        from jano_dist.gang import find_place

        with pytest.raises(UserError, match="leave it out"):
            check_ranks(2, load_config("wan-tiny"), find_place(), "local")

    @pytest.mark.slow
    @pytest.mark.parametrize("options", [["--set", "polcy.name=full"], ["--cfg", 2, "--ulysses", 3]])
    def test_once_under_torchrun(self, torchrun, generate, tmp_path, options):
        ended = torchrun(2, "-m", "jano_dist", *generate(tmp_path / "run", *options))
        assert ended.code == 1  # torchrun's own
        assert len(ended.sentences) == 1
        assert ended.err.count("exitcode  : 2") >= 1

    def test_ranks_of_different_configs(self, jano_dist, generate, tmp_path, free_port):
        ranks = [
            by_hand(jano_dist, generate, tmp_path / "run", 0, free_port),
            by_hand(jano_dist, generate, tmp_path / "run", 1, free_port, "--seed", 5),
        ]
        ended = [finish(rank) for rank in ranks]
        assert [each.code for each in ended] == [2, 2]
        (sentence,) = ended[0].sentences + ended[1].sentences
        assert "another config on rank 1 than on rank 0" in sentence

    def test_a_port_in_use(self, jano_dist, generate, tmp_path, taken_port):
        ended = finish(by_hand(jano_dist, generate, tmp_path / "run", 0, taken_port))
        assert ended.code == 2
        (sentence,) = ended.sentences
        assert "in use: set MASTER_PORT to a free port" in sentence

    def test_no_address(self, jano_dist, generate, tmp_path):
        place = {"RANK": "0", "WORLD_SIZE": "2"}
        ended = finish(jano_dist(*generate(tmp_path / "run"), **place))
        assert ended.code == 2
        assert ended.err.splitlines() == ended.sentences
        (sentence,) = ended.sentences
        assert "MASTER_ADDR is not set: start the ranks with --nproc or torchrun" in sentence

    def test_a_rank_without_a_number(self, cli, generate, tmp_path, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.delenv("RANK", raising=False)
        result = cli(*generate(tmp_path / "run"))
        assert_sentence(result, "RANK is not set", "start the ranks with --nproc or torchrun")

    @pytest.mark.parametrize("port", ["free_port", "taken_port"])  # nobody listens, or what is no store
    def test_a_coordinator_that_is_not_there(self, jano_dist, generate, tmp_path, port, request):
        call = ["--set", "runtime.timeout_seconds=3"]
        port = request.getfixturevalue(port)
        ended = finish(by_hand(jano_dist, generate, tmp_path / "run", 1, port, *call))
        assert ended.code == 1
        assert ended.err.splitlines() == ended.sentences
        (sentence,) = ended.sentences
        assert f"rank 0 was not found at 127.0.0.1:{port} within 3 s" in sentence

    def test_a_script_that_has_not_joined(self, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "1")
        with pytest.raises(UserError, match=r"WORLD_SIZE is 2 but .* has not joined"):
            Engine(load_config("wan-tiny"))

    def test_a_rank_that_never_comes(self, jano_dist, generate, tmp_path, free_port):
        call = ["--set", "runtime.timeout_seconds=3"]
        ended = finish(by_hand(jano_dist, generate, tmp_path / "run", 0, free_port, *call))
        assert ended.code == 1
        (sentence,) = ended.sentences
        assert "1 of 2 ranks did not come within 3 s" in sentence


@pytest.fixture
def taken_port():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def free_port():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
