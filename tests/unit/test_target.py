"""The folder of a run: whole at every moment, whatever ends the process, and one run's at a time."""

import errno
import gc
import os
import shutil
import signal
import subprocess
import sys

import pytest

from jano_dist import UserError, target

OLD, NEW = '{"versions": {"jano_dist": "old"}}', '{"versions": {"jano_dist": "new"}}'


@pytest.fixture
def out(tmp_path):
    """An earlier run, with a file and a folder of the user's in it, alone in its parent."""
    folder = tmp_path / "runs" / "run"
    (folder / "mine").mkdir(parents=True)
    (folder / "run.json").write_text(OLD)
    (folder / "video.mp4").write_text("old")
    (folder / "latents.safetensors").write_text("old")
    (folder / "notes.txt").write_text("mine")
    (folder / "mine" / "more.txt").write_text("mine")
    return folder


def write(out):
    """A new run without latents in the place of the earlier one."""
    with target.making(out) as folder:
        (folder / "run.json").write_text(NEW)
        (folder / "video.mp4").write_text("new")
        target.replace(out)


def state(out):
    """Which run is in a folder; None if it is not whole."""
    found = {path.name: path.read_text() for path in out.iterdir() if path.name in target.FILES}
    if found == {"run.json": OLD, "video.mp4": "old", "latents.safetensors": "old"}:
        return "old"
    return "new" if found == {"run.json": NEW, "video.mp4": "new"} else None


def check_whole(out, which):
    assert state(out) == which
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "mine" / "more.txt").read_text() == "mine"
    assert len(list(out.iterdir())) == {"old": 5, "new": 4}[which]
    assert list(out.parent.iterdir()) == [out]


class TestReplace:
    def test_all_of_it(self, out):
        write(out)
        check_whole(out, "new")

    def test_a_new_folder_has_the_rights_of_any(self, tmp_path):
        write(tmp_path / "a" / "run")
        (tmp_path / "other").mkdir()
        assert (tmp_path / "a" / "run").stat().st_mode == (tmp_path / "other").stat().st_mode

    def test_the_rights_of_the_earlier_one_stay(self, out):
        out.chmod(0o750)
        write(out)
        assert out.stat().st_mode & 0o777 == 0o750

    def test_through_a_link(self, out, tmp_path):
        (tmp_path / "link").symlink_to(out)
        write(tmp_path / "link")
        assert (tmp_path / "link").is_symlink()
        check_whole(out, "new")

    def test_killed_at_any_moment(self, out, tmp_path):
        """The process ends before its n-th change of the file system, for every n; then another starts."""
        seen, calls, killed = set(), 0, True
        while killed:
            copy = tmp_path / str(calls) / "run"
            shutil.copytree(out, copy)
            killed = ends_before(calls, write, copy)
            found = state(copy) if copy.exists() else "missing"
            with target.reserve(copy):
                pass
            check_whole(copy, "new" if found == "new" else "old")
            seen.add(found)
            calls += 1
        assert seen == {"old", "missing", "new"}  # never a mix
        assert calls > 8

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_comes_too_late(self, out, monkeypatch, number):
        rename, heard = os.rename, []

        def interrupted(*arguments):
            os.kill(os.getpid(), number)
            rename(*arguments)

        before = signal.signal(number, lambda *_: heard.append(number))
        monkeypatch.setattr(os, "rename", interrupted)
        try:
            write(out)
            assert heard == []
            os.kill(os.getpid(), number)
            assert heard == [number]  # as before
        finally:
            signal.signal(number, before)
        check_whole(out, "new")

    def test_the_second_rename_fails(self, out, monkeypatch):
        rename = os.rename

        def failing(source, goal):
            if str(source).endswith(".jano-dist-new"):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            rename(source, goal)

        monkeypatch.setattr(os, "rename", failing)
        with pytest.raises(OSError, match="Input/output"):
            write(out)
        check_whole(out, "old")

    def test_ended_while_it_is_made(self, out):
        def fail():
            with target.making(out) as folder:
                (folder / "video.mp4").write_text("half")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fail()
        check_whole(out, "old")


def ends_before(calls, function, *arguments):
    """Run a function in a process that is killed before its `calls`-th change of the file system, if it
    makes so many; whether it was killed."""
    child = os.fork()
    if child == 0:
        gc.disable()  # a store that another test has left would take this process with it
        left = [calls]

        def ending(change):
            def count(*arguments, **options):
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)
                return change(*arguments, **options)

            return count

        for name in ("mkdir", "rename", "unlink", "rmdir", "chmod"):
            setattr(os, name, ending(getattr(os, name)))
        function(*arguments)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


class TestReserve:
    def test_a_second_run_is_refused(self, tmp_path):
        with target.reserve(tmp_path / "run"):
            (tmp_path / "link").symlink_to(tmp_path)
            for name in ("run", "x/../run", "link/run"):
                with (
                    pytest.raises(UserError, match=r"in use by another run .*: wait for it, or give another"),
                    target.reserve(tmp_path / name),
                ):
                    pass
            with target.reserve(tmp_path / "other"):
                pass
        with target.reserve(tmp_path / "run"):
            pass

    def test_nothing_is_left_of_a_process_that_is_killed(self, tmp_path):
        code = (
            "import os, sys; from pathlib import Path; from jano_dist.target import reserve\n"
            "with reserve(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
        )
        call = [sys.executable, "-c", code, tmp_path / "run"]
        with subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(UserError, match="in use"), target.reserve(tmp_path / "run"):
                pass
            holder.kill()
        with target.reserve(tmp_path / "run"):
            assert list(tmp_path.iterdir()) == []

    def test_the_folder_one_is_in(self, out, monkeypatch):
        """It would be replaced under one's feet."""
        monkeypatch.chdir(out / "mine")
        for name in (out, out / "mine" / ".."):
            with pytest.raises(UserError, match=r"is the folder you are in"), target.reserve(name):
                pass

    def test_a_mount_point(self, out, monkeypatch):
        """It cannot be renamed, which would be noticed only after the run."""
        monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == str(out))
        with pytest.raises(UserError, match=f"is a mount point, .* such as --out {out}/run"):
            target.check_target(out)

    def test_a_file_that_is_written_as_if_it_were_not_there(self, tmp_path):
        (tmp_path / "file").write_text("mine")
        for name in ("new/../file", "new/../file/.", "file/../file", "new/../file/run"):
            with pytest.raises(UserError, match="not a folder"), target.reserve(tmp_path / name):
                pass
        assert (tmp_path / "file").read_text() == "mine"

    def test_links_in_a_circle(self, tmp_path):
        (tmp_path / "run").symlink_to(tmp_path / "run")
        with pytest.raises(UserError, match="run"), target.reserve(tmp_path / "run"):
            pass

    def test_no_torch_is_waited_for(self):
        code = "import sys, jano_dist.target; assert 'torch' not in sys.modules"
        subprocess.run([sys.executable, "-c", code], check=True)
