"""The loop of `tune` with a clock and a model that are none: budget, going on, several ranks."""

import json
import math

import pytest

from jano_dist.bench.search import FULL, Candidate, Target
from jano_dist.bench.space import Prediction
from jano_dist.bench.tune_state import TuneFolder, facts_of
from jano_dist.bench.tuning import Tuning
from jano_dist.bench.verdict import sentences, verdict
from jano_dist.errors import UserError

SECONDS = 10.0  # of a full run


class Ended(Exception):  # noqa: N818
    """The process was killed."""


class Fake:
    """Runner, board and clock: candidate -> (work, PSNR); a run takes what its work says."""

    def __init__(self, table, known=(), *, most=math.inf, fits=True):
        self.table, self.now, self.made, self.most = table, 0.0, [], most
        self.known, self.fits, self.told = set(known), fits, []

    def agree(self, *numbers):
        self.told.append(numbers)
        return numbers

    def full(self, prompt):
        return self._make(FULL, prompt, 1.0) and {"seconds": {"denoise": SECONDS, "whole": SECONDS}}

    def measure(self, candidate, prompt):
        work, psnr = self.table[candidate.name]
        self._make(candidate.name, prompt, work)
        seconds = {"denoise": SECONDS * work, "whole": SECONDS * work}
        return {"seconds": seconds, "work": work, "quality": {"psnr": psnr}}

    def predict(self, candidates, prompts):
        assert {(FULL, prompt) for prompt in prompts} <= {*self.made, *self.known}
        if not self.fits:
            return {}, {each.name: "does not fit" for each in candidates}
        return {each.name: Prediction(self.table[each.name][0]) for each in candidates}, {}

    def _make(self, name, prompt, work):
        if len(self.made) >= self.most:
            raise Ended
        self.now += SECONDS * work
        self.made.append((name, prompt))
        return True

    def task(self, task, done, left):
        return

    def ran(self, run):
        return

    def say(self, line):
        return


class Follower(Fake):
    """Another rank: it is told what the coordinator was."""

    def agree(self, *numbers):
        return self.told.pop(0)

    def predict(self, candidates, prompts):
        return {}, {}


def front(count):
    """From 0.9 of the work and 50 dB to 0.3 and 20 dB."""
    return {
        f"c {n}": (round(0.9 - 0.6 * n / (count - 1), 4), 50 - 30 * n / (count - 1)) for n in range(count)
    }


@pytest.fixture
def call(tmp_path):
    """One call of the command: `call(table, target, ...) -> (fake, tuning, state)`."""

    def begin(table, target, *, prompts=8, seconds=None, most=math.inf, fits=True, out="o"):
        candidates = [Candidate(name, "c") for name in table]
        folder = TuneFolder(tmp_path / out)
        facts = facts_of({"model": 1}, [(f"prompt {n}", 0) for n in range(prompts)], candidates)
        state = folder.begin(facts)
        state.calls += 1
        fake = Fake(table, state.log(), most=most, fits=fits)
        tuning = Tuning(
            fake,
            candidates,
            prompts=prompts,
            target=target,
            board=fake,
            folder=folder,
            state=state,
            seconds=seconds,
            clock=lambda: fake.now,
        )
        try:
            tuning.run()
        except Ended:
            return fake, None, folder.begin(facts)
        return fake, tuning, state

    return begin


class TestRun:
    def test_finds_the_best(self, call):
        fake, tuning, state = call(front(13), Target(psnr=35))
        assert tuning.search.best(state.log()) == "c 6"  # 50 - 30 n / 12
        assert not tuning.out_of_time
        assert len(fake.made) == len(set(fake.made))

    def test_held_out_prompts_are_measured_for_the_choice(self, call):
        fake, _, _ = call(front(13), Target(psnr=35))
        assert [prompt for name, prompt in fake.made if name == "c 6"] == [0, 2, 4, 6, 1, 3, 5, 7]
        assert [name for name, prompt in fake.made if prompt % 2] == [FULL, "c 6"] * 4

    def test_nobody_fits(self, call):
        fake, _, state = call(front(3), Target(psnr=35), prompts=2, fits=False)
        assert [name for name, _ in fake.made] == [FULL, FULL]
        assert set(state.left_out.values()) == {"does not fit"}


class TestBudget:
    @pytest.mark.parametrize("seconds", [35, 60, 100, 200, 400, 700])
    def test_is_kept(self, call, seconds):
        fake, tuning, _ = call(front(13), Target(psnr=35), seconds=seconds)
        assert fake.now <= seconds
        assert tuning.out_of_time or fake.now < seconds

    @pytest.mark.parametrize("seconds", [100, 200, 400, 700])
    def test_is_used(self, call, seconds):
        """It ends long before it must only where nothing is left to try."""
        fake, _, _ = call(front(13), Target(psnr=35), seconds=seconds)
        whole, _, _ = call(front(13), Target(psnr=35), out="all")
        assert fake.now > min(seconds - 3 * 4 * SECONDS, whole.now) * 0.6

    def test_leaves_time_for_held_out_prompts(self, call):
        _, tuning, state = call(front(13), Target(psnr=35), seconds=300)
        best = tuning.search.best(state.log())
        assert tuning.search.standing(state.log(), best, held=True).prompts == 4

    def test_fewer_candidates_where_there_is_less_time(self, call):
        fake, _, state = call(front(13), Target(psnr=35), seconds=150)
        late = [name for name, why in state.left_out.items() if why == "there is no time for it"]
        assert late
        assert not {name for name, _ in fake.made} & set(late)

    def test_all_calls_together(self, call):
        first, _, state = call(front(13), Target(psnr=35), seconds=400, most=10)
        assert state.spent == first.now
        second, _, after = call(front(13), Target(psnr=35), seconds=400)
        assert first.now + second.now <= 400
        assert after.spent == first.now + second.now

    def test_more_time_goes_on(self, call):
        first, tuning, _ = call(front(13), Target(psnr=35), seconds=100)
        assert tuning.out_of_time
        second, tuning, state = call(front(13), Target(psnr=35))
        assert not set(first.made) & set(second.made)
        assert tuning.search.best(state.log()) == "c 6"

    def test_too_little_for_anything(self, call):
        _, tuning, state = call(front(13), Target(psnr=35), seconds=12)
        result = verdict(tuning.search, state, out_of_time=True) if state.predictions else {}
        assert not result.get("best")


class TestGoingOn:
    @pytest.mark.parametrize("most", [1, 2, 3, 9, 20, 33])
    def test_nothing_is_measured_twice(self, call, most):
        whole, _, _ = call(front(13), Target(psnr=35), out="whole")
        made = []
        for _ in range(100):
            fake, tuning, _ = call(front(13), Target(psnr=35), most=most)
            made += fake.made
            if tuning:
                break
        assert made == whole.made

    def test_another_target_uses_what_is_there(self, call):
        first, _, _ = call(front(13), Target(psnr=35))
        second, tuning, state = call(front(13), Target(psnr=40))
        assert not set(first.made) & set(second.made)
        assert tuning.search.best(state.log()) == "c 4"

    def test_the_file_is_whole_after_every_run(self, call, tmp_path):
        _, _, state = call(front(13), Target(psnr=35), most=7)
        content = json.loads((tmp_path / "o" / "tune.json").read_text())
        assert len(content["runs"]) == 7 == len(state.runs)
        assert [path.name for path in (tmp_path / "o").iterdir()] == ["tune.json"]

    def test_another_tuning(self, call):
        call(front(13), Target(psnr=35), most=7)
        with pytest.raises(UserError, match=r"another tuning \(the list of prompts is not the same"):
            call(front(13), Target(psnr=35), prompts=6)
        with pytest.raises(UserError, match="the list of candidates"):
            call(front(12), Target(psnr=35))

    @pytest.mark.parametrize("content", ["", "{}", "[]", '{"jano_dist_tune": 2}', "{"])
    def test_no_tuning(self, call, tmp_path, content):
        (tmp_path / "o").mkdir()
        (tmp_path / "o" / "tune.json").write_text(content)
        with pytest.raises(UserError, match="not the folder of a tuning"):
            call(front(3), Target(psnr=35))


class TestOtherRanks:
    def test_make_what_the_coordinator_says(self, call):
        """They have no state, and look at no clock."""
        table, target = front(5), Target(psnr=35)
        fake, _, _ = call(table, target)
        follower = Follower(table)
        follower.told = list(fake.told)
        candidates = [Candidate(name, "c") for name in table]
        Tuning(follower, candidates, prompts=8, target=target, board=follower).run()
        assert follower.made == fake.made
        assert not follower.told


class TestVerdict:
    def test_says_what_was_reached(self, call):
        _, tuning, state = call(front(13), Target(psnr=35))
        result = verdict(tuning.search, state, out_of_time=False)
        assert (result["best"], result["reached"], result["held_out_reached"]) == ("c 6", True, True)
        text = " ".join(sentences(result, state, tuning.search))
        assert "35.0 dB in the mean" in text
        assert "On 4 held-out prompts" in text

    def test_not_reached(self, call):
        _, tuning, state = call(front(13), Target(psnr=55))
        result = verdict(tuning.search, state, out_of_time=False)
        assert (result["best"], result["reached"]) == ("c 0", False)
        assert "was not reached" in sentences(result, state, tuning.search)[0]

    @pytest.mark.parametrize("prompts", [1, 3])
    def test_few_prompts(self, call, prompts):
        _, tuning, state = call(front(13), Target(psnr=35), prompts=prompts)
        result = verdict(tuning.search, state, out_of_time=False)
        assert result["held_out_reached"] is None
        assert "none was held out" in " ".join(sentences(result, state, tuning.search))
