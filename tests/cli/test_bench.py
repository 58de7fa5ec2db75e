"""`jano-dist bench`: bad input, and a whole small measurement of recognition."""

import json

import pytest

from tests.cli.sentence import assert_sentence

RECOGNITION = {
    "torn_list": (["--warmups", "4,x"], ["--warmups '4,x' is no list of numbers"]),
    "empty_list": (["--shifts", ","], ["--shifts is empty"]),
    "warmup_of_all_steps": (["--warmups", "10"], ["--warmups 10 does not fit 12 steps", "from 2 to 9"]),
    "no_shift": (["--shifts", "0"], ["--shifts should be numbers above 0"]),
    "no_number": (["--guidances", "nan"], ["--guidances should be numbers from 0"]),
    "shares": (["--active", "0.8"], ["leave no static blocks", "below 1"]),
    "no_score": (["--outcomes", "guess"], ["--outcomes 'guess' is no score"]),
    "no_prompts": (["--prompts", "nowhere.txt"], ["nowhere.txt"]),
}
SCALING = {
    "worlds": (["--worlds", "1,two"], ["--worlds '1,two' is no list of numbers"]),
    "no_rank": (["--worlds", "0"], ["--worlds 0: give numbers from 1"]),
    "too_many": (["--worlds", "100000"], ["--worlds 100000 is more than", "start at most"]),
    "mesh": (["--meshes", "2x"], ["--meshes '2x' is no mesh", "write auto, all"]),
    "peer": (["--peers", "fastvideo"], ["--peers 'fastvideo' is not known", "diffusers, xdit"]),
    "policy": (["--policies", "full,janno"], ["janno", "jano"]),
    "shares": (["--active", "0.9", "--moderate", "0.2"], ["no shares of the tokens"]),
    "steps": (["--steps", "5"], ["5 steps leave nothing between"]),
    "odd_video": (["--height", "65"], ["65"]),
}


@pytest.mark.parametrize(("options", "words"), RECOGNITION.values(), ids=RECOGNITION)
def test_recognition_refuses(cli, small, tmp_path, options, words):
    result = cli("bench", "recognition", "--config", small, "--out", tmp_path / "x", *options)
    assert_sentence(result, *words)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("options", "words"), SCALING.values(), ids=SCALING)
def test_scaling_refuses(cli, small, tmp_path, options, words):
    result = cli("bench", "scaling", "--config", small, "--out", tmp_path / "x", *options)
    assert_sentence(result, *words)
    assert not (tmp_path / "x").exists()


def test_another_measurement(cli, small, tmp_path):
    (tmp_path / "bench.json").write_text('{"other": 1}')
    for name in ("recognition", "scaling"):
        result = cli("bench", name, "--config", small, "--out", tmp_path)
        assert_sentence(result, "holds a measurement with another", "give a new folder")


def test_recognition_goes_on(cli, small, tmp_path):
    """Every part is made once; the summary is of all; a prompt that comes in between is another question."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a red ball", "seed": 5}\n{"prompt": "a blue box"}\n')
    call = ["bench", "recognition", "--config", small, "--prompts", prompts, "--out", tmp_path / "x"]
    call += ["--shifts", "5", "--warmups", "3", "--outcomes", "none", "--steps", "9"]
    first = cli(*call)
    assert (first.code, first.err) == (0, "")
    parts = sorted((tmp_path / "x" / "parts").iterdir())
    assert [json.loads(path.read_text())["seed"] for path in parts] == [5, 0]
    result = json.loads((tmp_path / "x" / "recognition.json").read_text())
    oracle = next(row for row in result["rows"] if row["score"] == "oracle")
    assert oracle["rank_correlation"] == pytest.approx(1)
    assert (oracle["prompts"], oracle["psnr_mean"], result["figures"]) == (2, None, "measured")
    assert (tmp_path / "x" / "recognition.png").stat().st_size > 1000

    kept = parts[0].stat().st_mtime_ns
    parts[1].unlink()
    again = cli(*call)
    assert (again.code, again.out.count("min left")) == (0, 1)
    assert parts[0].stat().st_mtime_ns == kept
    assert_sentence(cli(*call, "--warmups", "4"), "with another warmups")
