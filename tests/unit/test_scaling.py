"""Figures of `bench scaling` from made-up parts, by formulas written down again; cases; the folder."""

import json
from statistics import median

import pytest

from jano_dist.bench.parts import PartsFolder
from jano_dist.bench.scaling_cases import Case, Question, check_shares, parse_meshes, short, turns
from jano_dist.bench.scaling_report import notes, plot
from jano_dist.bench.scaling_summary import imbalance, spread, summarise
from jano_dist.config import load_config
from jano_dist.degrees import Degrees
from jano_dist.errors import UserError
from jano_dist.tokens.schedule import Schedule


def step(kind, *ranks, waits=0.0, nbytes=0):
    """One step; `ranks`: seconds of each, of which the first waits."""
    waiting = [waits] + [0.0] * (len(ranks) - 1)
    own = {"seconds": list(ranks), "comm_seconds": waiting}
    return {
        "kind": kind,
        "seconds": max(ranks),
        "comm_seconds": min(waiting),
        "comm_bytes": nbytes,
        "ranks": own,
    }


def part(world, side, turn, steps, mesh=(1, 1, 1), **more):
    degrees = dict(zip(("cfg", "kv", "ulysses"), mesh, strict=True))
    facts = {"levels": {"active": 0.2}, "work": 0.5, "crowded": False, "peer": False}
    memory = {"cache_bytes_per_rank": 1, "peak_bytes_per_rank": 2}
    what = {"side": side, "world": world, "round": turn, "mesh": degrees, "steps": steps, "memory": memory}
    return {**facts, **what, **more}


def loops(world, full, jano, turn, mesh=(1, 1, 1)):
    """A full and a jano loop of four steps each; a sparse step takes `jano` seconds."""
    ranks = [1.0] * (world - 1)
    whole = [step("full", full, *(full * each for each in ranks)) for _ in range(4)]
    sparse = [step("full", full, *(full * each for each in ranks))] * 2
    sparse = sparse + [step("active", jano, *(jano * each for each in ranks))] * 2
    return [part(world, "full", turn, whole, mesh), part(world, "jano", turn, sparse, mesh)]


ROUNDS = {1: (1.0, 0.2, 0.6, 0.15), 2: (1.1, 0.2, 0.5, 0.12), 3: (0.9, 0.3, 0.55, 0.2)}


@pytest.fixture
def parts():
    found = []
    for turn, (full, jano, full2, jano2) in ROUNDS.items():
        found += loops(1, full, jano, turn)
        found += loops(2, full2, jano2, turn, (2, 1, 1))
    return found


def of(summary, world, side, mesh=None):
    (row,) = [
        row
        for row in summary["rows"]
        if (row["world"], row["side"]) == (world, side) and mesh in (None, row["mesh"])
    ]
    return row


class TestFigures:
    def test_efficiency_gain_and_retention(self, parts):
        gains, retentions, efficiencies = [], [], []
        for full, jano, full2, jano2 in ROUNDS.values():
            one, two = 4 * full / (2 * full + 2 * jano), 4 * full2 / (2 * full2 + 2 * jano2)
            gains.append(two)
            retentions.append(two / one)
            efficiencies.append((2 * full + 2 * jano) / (2 * (2 * full2 + 2 * jano2)))
        row = of(summarise(parts), 2, "jano")
        for key, values in (("gain", gains), ("retention", retentions), ("efficiency", efficiencies)):
            expected = {"median": median(values), "lowest": min(values), "highest": max(values)}
            assert row[key] == pytest.approx(expected), key
        assert of(summarise(parts), 1, "jano")["retention"] == {"median": 1, "lowest": 1, "highest": 1}
        assert of(summarise(parts), 2, "full")["retention"] is None

    def test_retention_of_kinds_is_not_moved_by_one_slow_step(self, parts):
        slow = json.loads(json.dumps(parts))
        slow[3]["steps"][2]["seconds"] = 9.0  # round 1, two ranks, jano
        steady = of(summarise(parts), 2, "jano")["retention_of_kinds"]
        medians = [median(values) for values in zip(*ROUNDS.values(), strict=True)]
        full, jano, full2, jano2 = medians
        # In a round all full steps take the same time here, so their median is that of the rounds.
        expected = (4 * full2 / (2 * full2 + 2 * jano2)) / (4 * full / (2 * full + 2 * jano))
        assert steady == pytest.approx(expected)
        assert of(summarise(slow), 2, "jano")["retention_of_kinds"] == pytest.approx(steady, rel=0.1)
        assert of(summarise(slow), 2, "jano")["retention"]["lowest"] < 0.3

    def test_rounds_are_paired(self, parts):
        """A round that only one of two sides has finished says nothing of their ratio."""
        cut = [each for each in parts if (each["world"], each["side"], each["round"]) != (2, "full", 2)]
        row = of(summarise(cut), 2, "jano")
        gains = [4 * full / (2 * full + 2 * jano) for _, _, full, jano in (ROUNDS[1], ROUNDS[3])]
        assert row["gain"]["median"] == pytest.approx(median(gains))
        assert row["rounds"] == 3

    def test_a_round_that_the_base_lacks(self, parts):
        cut = [each for each in parts if (each["world"], each["side"], each["round"]) != (1, "jano", 2)]
        retentions = [
            (4 * full2 / (2 * full2 + 2 * jano2)) / (4 * full / (2 * full + 2 * jano))
            for full, jano, full2, jano2 in (ROUNDS[1], ROUNDS[3])
        ]
        row = of(summarise(cut), 2, "jano")
        assert row["retention"]["median"] == pytest.approx(median(retentions))
        assert row["gain"]["highest"] == pytest.approx(
            max(4 * f / (2 * f + 2 * j) for _, _, f, j in ROUNDS.values())
        )

    def test_base_is_the_fewest_ranks_on_their_fastest_mesh(self, parts):
        two = [each for each in parts if each["world"] == 2]
        four = loops(4, 0.4, 0.1, 1, (2, 2, 1)) + loops(4, 0.3, 0.1, 1, (2, 1, 2))
        summary = summarise([*two, *four])
        assert summary["fewest_ranks"] == 2
        full2 = ROUNDS[1][2]
        assert of(summary, 4, "full", "2x1x2")["efficiency"]["median"] == pytest.approx(2 * full2 / (4 * 0.3))

    def test_imbalance(self):
        """Own computing is what is not spent in collectives; the first of two ranks waits for the other."""
        one = part(2, "jano", 1, [step("full", 3.0, 3.0, waits=1.0), step("active", 1.0, 1.0, waits=0.5)])
        assert imbalance(one) == pytest.approx((3 + 1) / (((3 - 1) + (1 - 0.5) + 3 + 1) / 2))

    def test_bytes_and_kinds(self):
        steps = [step("full", 1.0, nbytes=7), step("active", 0.2, nbytes=3), step("active", 0.4, nbytes=3)]
        row = of(summarise([part(1, "full", 1, steps)]), 1, "full")
        assert row["bytes_sent"] == 13
        assert row["kinds"]["active"] == {"steps": 2, "seconds": pytest.approx(0.3)}

    def test_spread_of_nothing(self):
        assert spread([]) is None

    def test_peers(self, parts):
        theirs = [
            part(2, "diffusers", 1, [step("full", 0.9)] * 4, (1, 1, 2), peer=True, max_difference=1e-6),
            {"side": "xdit", "world": 2, "round": 1, "mesh": None, "crowded": True, "not_run": "no GPU"},
        ]
        summary = summarise([*parts, *theirs])
        assert of(summary, 2, "full")["over_peers"]["diffusers"]["median"] == pytest.approx(0.9 / 0.6)
        assert of(summary, 2, "diffusers")["gain"] is None
        assert of(summary, 2, "diffusers")["max_difference"] == 1e-6
        assert summary["not_run"] == [{"ranks": 2, "side": "xdit", "reason": "no GPU"}]
        said = notes(summary)
        assert "2 ranks: xdit not run: no GPU" in said
        assert "2 ranks (2x1x1), full: 1.5 times as fast as diffusers" in said
        assert said[-1].startswith("with 2 ranks a machine has fewer cores than ranks")

    def test_a_plot_of_one_world(self, parts, tmp_path):
        plot(tmp_path / "x.png", summarise([each for each in parts if each["world"] == 1]))
        assert (tmp_path / "x.png").stat().st_size > 1000


class TestCases:
    def question(self, **changes):
        configs = {name: load_config("wan-tiny", policy=name) for name in ("full", "jano")}
        facts = {"configs": configs, "meshes": (), "active": 0.2, "moderate": 0.2, "peers": ("diffusers",)}
        return Question(**{**facts, **changes})

    def names(self, world, **changes):
        found = self.question(**changes).cases(world, heads=4, guided=True)
        return [case.part(world, 1).removeprefix(f"ranks-{world:04}-round-001-") for case in found]

    def test_chosen_by_the_engine(self):
        assert self.names(2) == ["full-auto", "jano-auto", "diffusers-auto"]

    def test_given_meshes_are_for_their_number_of_ranks(self):
        meshes = parse_meshes(["2x1x1", "1x1x2", "2x1x2"])
        assert self.names(2, meshes=meshes) == [
            "full-2x1x1", "jano-2x1x1", "full-1x1x2", "jano-1x1x2", "diffusers-auto",
        ]  # fmt: skip
        assert self.names(1, meshes=meshes)[0] == "full-auto"

    def test_all(self):
        found = self.names(4, meshes=parse_meshes(["all"]), peers=())
        assert found[::2] == ["full-2x1x2", "full-2x2x1", "full-1x1x4", "full-1x2x2", "full-1x4x1"]

    def test_config_of_a_case(self):
        mesh = self.question().config(Case("jano", Degrees(2, 1, 4))).mesh
        assert (mesh.cfg, mesh.kv, mesh.ulysses) == (2, 1, 4)

    @pytest.mark.parametrize("word", ["2x1", "2x1x0", "axbxc", "2*1*1"])
    def test_no_mesh(self, word):
        with pytest.raises(UserError, match="is no mesh"):
            parse_meshes([word])

    def test_no_shares(self):
        with pytest.raises(UserError, match="no shares of the tokens"):
            check_shares(0.9, 0.2)

    def test_everything_in_every_round(self):
        assert list(turns((1, 2), 2)) == [(1, 1), (1, 2), (2, 1), (2, 2)]

    def test_the_first_run_meets_every_kind(self):
        config = load_config("wan-tiny")
        policy = short(config).policy
        steps = short(config).sampling.steps
        intervals = policy.static_interval, policy.moderate_interval
        schedule = Schedule(steps, policy.warmup, policy.cooldown, *intervals)
        met = {schedule.kind(each).value for each in range(steps)}
        assert met == {"full", "refresh", "moderate", "active"}


class TestFolder:
    def test_goes_on(self, tmp_path):
        folder = PartsFolder(tmp_path / "x", {"a": (1, 2)})
        folder.begin()
        folder.keep("b", {"n": 2})
        folder.keep("a", {"n": 1})
        again = PartsFolder(tmp_path / "x", {"a": [1, 2]})
        again.begin()
        assert again.has("a")
        assert not again.has("c")
        assert [each["n"] for each in again.parts()] == [1, 2]

    def test_another_measurement(self, tmp_path):
        PartsFolder(tmp_path, {"steps": 1, "same": 0}).begin()
        with pytest.raises(UserError, match="with another steps: give a new folder"):
            PartsFolder(tmp_path, {"steps": 2, "same": 0}).begin()

    def test_no_measurement(self, tmp_path):
        (tmp_path / "mine.txt").touch()
        with pytest.raises(UserError, match="holds no measurement of ours"):
            PartsFolder(tmp_path, {}).begin()
        assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]

    def test_a_file(self, tmp_path):
        (tmp_path / "x").touch()
        with pytest.raises(UserError, match="is not a folder"):
            PartsFolder(tmp_path / "x", {}).begin()

    def test_what_cannot_be_written_leaves_what_was_there(self, tmp_path):
        folder = PartsFolder(tmp_path, {})
        folder.begin()
        folder.keep("a", {"n": 1})
        with pytest.raises(UnicodeEncodeError):
            folder.write("parts/a.json", "\ud800")
        assert folder.parts() == [{"n": 1}]

    def test_half_a_part_is_none(self, tmp_path):
        folder = PartsFolder(tmp_path, {})
        folder.begin()
        (tmp_path / "parts" / "a.json.unfinished").write_text("{")
        assert folder.parts() == []
        assert not folder.has("a")
