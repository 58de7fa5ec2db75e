"""The search of `tune` on candidates whose figures are known."""

import math
import random

import pytest

from jano_dist.bench.search import (
    CEILING,
    FULL,
    Candidate,
    Measured,
    Search,
    Target,
    divide,
    rungs,
    stand,
)

FULL_SECONDS = 10.0


class World:
    """Candidates with a known speed-up and mean PSNR, and prompts that are harder or easier by some dB."""

    def __init__(self, table, hardness, *, controls=()):
        self.table, self.hardness = table, hardness
        self.candidates = [
            Candidate(name, name.split()[0], control=name.split()[0] in controls) for name in table
        ]
        self.log, self.asked = {}, []

    def measure(self, task):
        assert (task.name, task.prompt) not in self.log, "measured twice"
        self.asked.append(task)
        speed, psnr = (1.0, CEILING) if task.name == FULL else self.table[task.name]
        seconds = FULL_SECONDS / speed
        return Measured(seconds, 1 / speed, psnr - self.hardness[task.prompt], cost=seconds)

    def run(self, target, *, most=10_000):
        search = Search(self.candidates, len(self.hardness), target)
        while most and (task := search.next(self.log)):
            self.log[task.name, task.prompt] = self.measure(task)
            most -= 1
        return search


def front(count, *, best_speed=3.0):
    """Candidates on a line from 50 dB at 1x to 20 dB at `best_speed`, and as many 5 dB below it."""
    table = {}
    for index in range(count):
        speed = 1 + (best_speed - 1) * index / (count - 1)
        psnr = 50 - 30 * index / (count - 1)
        table[f"good {index}"] = (speed, psnr)
        table[f"poor {index}"] = (speed * 0.999, psnr - 5)
    return table


class TestDivide:
    @pytest.mark.parametrize(
        ("prompts", "tuning", "held"),
        [(1, [0], []), (3, [0, 1, 2], []), (4, [0, 2], [1, 3]), (7, [0, 2, 4, 6], [1, 3, 5])],
    )
    def test_every_second_prompt_is_held_out(self, prompts, tuning, held):
        assert divide(prompts) == (tuning, held)

    @pytest.mark.parametrize(("prompts", "sizes"), [(1, [1]), (2, [2]), (3, [2, 3]), (8, [2, 4, 8])])
    def test_rungs_double(self, prompts, sizes):
        assert rungs(prompts) == sizes


class TestStanding:
    def test_figures(self):
        log = {
            (FULL, 0): Measured(10, 1, CEILING, 10),
            (FULL, 1): Measured(14, 1, CEILING, 14),
            (FULL, 2): Measured(99, 1, CEILING, 99),  # the candidate was not measured on it
            ("a", 0): Measured(5, 0.5, 30, 5),
            ("a", 1): Measured(7, 0.3, 40, 7),
        }
        own = stand(log, "a", [0, 1, 2])
        assert (own.prompts, own.wall, own.mean, own.median, own.worst) == (2, 2.0, 35, 35, 30)
        assert own.work == pytest.approx(2.5)  # 1 / mean(0.5, 0.3)
        assert own.error == pytest.approx(5.0)  # deviation sqrt(50), over sqrt(2)

    def test_nothing_measured(self):
        assert stand({}, "a", [0]) is None


class TestChoice:
    @pytest.mark.parametrize(("asked", "best"), [(45, 3), (41, 5), (30, 12), (21, 18)])
    def test_the_fastest_that_reaches_a_psnr(self, asked, best):
        """Prompts are 0.1 dB around their mean, so a candidate 1.6 dB above the target is safely so."""
        world = World(front(20), [0.1, -0.1] * 4)
        search = world.run(Target(psnr=asked))
        # good i has 50 - 30 i / 19 dB.
        assert search.best(world.log) == f"good {best}"
        assert search.reaches(world.log, f"good {best}")

    @pytest.mark.parametrize(("asked", "best"), [(1.05, 1), (1.5, 5), (2.0, 10), (2.9, 19)])
    def test_the_best_that_is_fast_enough(self, asked, best):
        world = World(front(20), [0.0] * 8)
        search = world.run(Target(speedup=asked))
        assert search.best(world.log) == f"good {best}"  # good i is 1 + 2 i / 19 times as fast

    def test_by_work(self):
        world = World({"a": (2.0, 40)}, [0.0])
        world.run(Target(psnr=30))
        search = Search(world.candidates, 1, Target(psnr=30, by="work"))
        odd = {**world.log, ("a", 0): Measured(5, 0.25, 40, 5)}
        assert search.speed(search.standing(odd, "a")) == 4.0

    def test_noisy_prompts(self):
        """Prompts differ by several dB, the same for all: what wins is what wins in the mean."""
        world = World(front(20), [6, -4, 3, -5, 2, -2, 4, -4, 1, -1, 5, -5, 0, 0, 3, -3])
        search = world.run(Target(speedup=2.0))
        assert search.best(world.log) == "good 10"

    def test_a_margin_of_one_standard_error(self):
        """35 +- 5 dB reaches 34 in the mean, but not surely; 41 +- 5 does."""
        table = {"a": (2.0, 35), "b": (1.5, 41)}
        world = World(table, [5, 5, -5, -5])  # 0 and 2 are for choosing: errors of 5 dB
        assert world.run(Target(psnr=34)).best(world.log) == "b"

    def test_the_mean_counts_where_nothing_has_that_margin(self):
        world = World({"a": (2.0, 35), "b": (3.0, 34.5)}, [5, 5, -5, -5])
        assert world.run(Target(psnr=34)).best(world.log) == "b"

    def test_the_nearest_where_nothing_reaches_it(self):
        world = World(front(10), [0.0] * 8)
        search = world.run(Target(psnr=60))
        assert search.best(world.log) == "good 0"
        assert not search.reaches(world.log, "good 0")

    def test_the_fastest_where_nothing_is_fast_enough(self):
        world = World(front(10), [0.0] * 8)
        search = world.run(Target(speedup=9))
        assert search.best(world.log) == "good 9"
        assert not search.reaches(world.log, "good 9")

    def test_nothing_measured(self):
        search = Search([Candidate("a", "a")], 4, Target(psnr=30))
        assert search.best({}) is None
        assert search.best_control({}) is None

    def test_held_out_prompts_do_not_choose(self):
        """They are much easier: who counted them would take a faster one."""
        world = World(front(20), [0, -20] * 8)
        assert world.run(Target(psnr=30)).best(world.log) == "good 12"


class TestHalving:
    def test_fewer_runs_than_trying_all(self):
        world = World(front(20), [0.0] * 16)
        world.run(Target(psnr=30))
        tuning = [task for task in world.asked if not task.held and task.name != FULL]
        # 40 on 2 prompts, 20 on 2 more, 10 on 4 more: half of all candidates on all 8 prompts.
        assert len(tuning) == 40 * 2 + 20 * 2 + 10 * 4

    def test_what_is_far_below_the_front_goes_first(self):
        world = World(front(20), [0.0] * 8)
        world.run(Target(psnr=30))
        late = {task.name for task in world.asked if task.rung == 1 and task.name != FULL}
        assert late
        assert not [name for name in late if name.startswith("poor")]

    def test_controls_stay(self):
        """Far too bad to win, and in the last rung all the same: two of each family."""
        hopeless = {f"fewer {n}": (1 + n / 5, 10 - n) for n in range(4)}
        hopeless |= {f"uniform {n}": (1 + n / 5, 9 - n) for n in range(4)}
        world = World(front(20) | hopeless, [0.0] * 16, controls=("fewer", "uniform"))
        search = world.run(Target(psnr=40))
        last = {task.name for task in world.asked if task.rung == 2}
        assert {"fewer 0", "fewer 1", "uniform 0", "uniform 1"} <= last
        assert "fewer 3" not in last
        assert search.best_control(world.log) == "fewer 0"

    def test_a_second_chance(self):
        """Four easy prompts promise too much: those that stay, nearest to the target, fail on the others. One
        that was dropped for being too good is fetched back."""
        hardness = [-8] * 4 + [8] * 4
        world = World(front(20), [each for pair in zip(hardness, hardness, strict=True) for each in pair])
        search = world.run(Target(psnr=46))
        last = {task.name for task in world.asked if task.rung == 2}
        assert search.best(world.log) == "good 2"  # 46.8 dB; good 3 has 45.3
        assert search.reaches(world.log, "good 2")
        assert "good 0" not in last  # only as many come back as are needed

    def test_controls_win_where_they_are_best(self):
        world = World({"jano 1": (2.0, 30), "fewer 25": (2.0, 33)}, [0.0] * 4, controls=("fewer",))
        search = world.run(Target(speedup=1.9))
        assert search.best(world.log) == search.best_control(world.log) == "fewer 25"


class TestGoingOn:
    def test_after_any_end_the_same_tasks_follow(self):
        whole = World(front(8), [1, -2, 3, 0, -1, 2, -3, 0])
        whole.run(Target(psnr=35))
        parts = World(front(8), [1, -2, 3, 0, -1, 2, -3, 0])
        while len(parts.log) < len(whole.log):
            parts.run(Target(psnr=35), most=random.Random(len(parts.log)).randint(1, 5))
        assert parts.asked == whole.asked  # World fails where something is measured twice

    def test_full_runs_come_before_what_is_compared_with_them(self):
        world = World(front(6), [0.0] * 8)
        world.run(Target(psnr=35))
        seen = set()
        for task in world.asked:
            seen.add((task.name, task.prompt))
            assert (FULL, task.prompt) in seen
        assert len({task.prompt for task in world.asked if task.name == FULL}) == 8  # each once

    def test_where_time_ends_early_all_are_known_a_little(self):
        world = World(front(5), [0.0] * 8)
        world.run(Target(psnr=35), most=11)
        assert [task.prompt for task in world.asked] == [
            0
        ] * 11  # the full run and all 10 on the first prompt

    def test_a_choice_from_what_there_is(self):
        world = World(front(20), [0.0] * 8)
        search = world.run(Target(psnr=30), most=30)  # not even the first rung
        tried = {name for name, _ in world.log if name != FULL}
        able = {name for name in tried if world.table[name][1] >= 30}
        assert search.best(world.log) == max(able, key=lambda name: world.table[name])

    def test_no_time_left_for_choosing(self):
        world = World(front(20), [0.0] * 8)
        search = world.run(Target(psnr=30), most=30)
        task = search.next(world.log, over=True)
        assert (task.name, task.prompt, task.held) == (FULL, 1, True)
        names = set()
        while task := search.next(world.log, over=True):
            world.log[task.name, task.prompt] = world.measure(task)
            names.add(task.name)
        assert names == {FULL, search.best(world.log)}

    def test_all_that_is_chosen_is_seen_on_every_prompt_held_out(self):
        world = World(front(8), [0.0] * 7)
        search = world.run(Target(psnr=30))
        held = search.standing(world.log, search.best(world.log), held=True)
        assert held.prompts == 3
        assert math.isclose(held.mean, world.table[search.best(world.log)][1])
