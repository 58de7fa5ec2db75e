"""Outputs that cannot be written, locales that cannot show a letter, and Ctrl-C from the start."""

import io
import json
import subprocess
import sys

import pytest

from jano_dist import cli as command_line
from tests.cli.sentence import BALL

FULL = "/dev/full"  # every write fails: no space left on device
PLAN = ["plan", "--config", "wan-tiny", "--gpus", "2", "--gpu-memory", "80"]


@pytest.mark.parametrize("arguments", [["doctor", "--json"], ["doctor"], [*PLAN, "--json"], PLAN])
def test_output_that_cannot_be_written(capfd, monkeypatch, arguments):
    with open(FULL, "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        code = command_line.run(arguments)
    out, err = capfd.readouterr()
    assert code == 1
    assert out == ""
    said = "the output cannot be written (No space left on device): make room, or send it elsewhere"
    assert err == f"jano-dist: {said}\n"


def test_output_that_cannot_be_written_by_a_process(command):
    """Python itself has nothing to add at its end."""
    call, environment = command
    with open(FULL, "w") as full:
        done = subprocess.run(
            [*call, "--help"], env=environment, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "the output cannot be written" in done.stderr


def test_a_reader_that_has_seen_enough(command):
    """`jano-dist --help | head -0`"""
    call, environment = command
    with subprocess.Popen(
        [*call, "--help"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        child.stdout.close()
        assert child.stderr.read() == b""
    assert child.returncode == 1


def test_a_run_goes_on_without_its_log(capfd, monkeypatch, small, tmp_path):
    arguments = ["generate", BALL, "--out", str(tmp_path / "run"), "--config", str(small), "--steps", "9"]
    with open(FULL, "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert command_line.run(arguments) == 0
    assert capfd.readouterr().err == ""
    assert (tmp_path / "run" / "run.json").exists()


def test_a_locale_without_utf8(capfd, monkeypatch, small, tmp_path):
    """Python hands over the bytes of what it cannot decode, and stdout cannot show it."""
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", screen)
    out = tmp_path / "vid\u00e9o"
    typed = "a red b\u00e4ll".encode().decode("ascii", "surrogateescape")
    options = ["--out", str(out), "--config", str(small), "--policy", "full", "--steps", "1"]
    options += ["--set", "sampling.negative_prompt=" + "\u00fc".encode().decode("ascii", "surrogateescape")]
    assert command_line.run(["generate", typed, *options]) == 0
    assert b"vid?o" in screen.buffer.getvalue()
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert record["prompt"] == "a red b\u00e4ll"
    assert record["config"]["sampling"]["negative_prompt"] == "\u00fc"
    assert "does not know b" in capfd.readouterr().err


# Ctrl-C while MODULE is looked for; as some libraries do, it is swallowed if it is an exception.
STRIKE = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
class Strike:
    def find_spec(self, name, path=None, target=None):
        if name == "MODULE":
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except BaseException:
                print("swallowed")
sys.meta_path.insert(0, Strike())
from jano_dist.cli import main
main()
"""


@pytest.mark.parametrize("module", ["typer", "pydantic", "torch", "diffusers"])
def test_interrupted_from_the_start(command, unchanged, small, tmp_path, module):
    _, environment = command
    code = STRIKE.replace("MODULE", module)
    arguments = ["generate", BALL, "--out", tmp_path / "run", "--config", small]
    with unchanged(tmp_path):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True
        )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "jano-dist: interrupted: nothing was written\n"
