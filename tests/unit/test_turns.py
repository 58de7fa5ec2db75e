"""Tasks that take turns: one at a time, in an order that does not depend on how long anything takes."""

import signal
import threading
import time

import pytest
import torch

from jano_dist.turns import Turns

CPU = torch.device("cpu")


def play(lengths, pauses=()):
    """Tasks of so many parts, with a turn passed on between two of them; what ran when, and the results."""
    turns, seen, running = Turns(CPU), [], []

    def task(name, parts):
        for part in range(parts):
            running.append(name)
            if (name, part) in pauses:
                time.sleep(0.02)
            assert running == [name]  # nobody else runs meanwhile
            seen.append((name, part))
            running.clear()
            if part < parts - 1:
                turns.pass_on()
        return name, torch.is_inference_mode_enabled()

    with torch.inference_mode():
        results = turns.run([lambda n=name, p=parts: task(n, p) for name, parts in enumerate(lengths)])
    return seen, results


@pytest.mark.parametrize("pauses", [(), {(0, 1)}, {(1, 0), (1, 2)}])
def test_in_turns_whatever_takes_long(pauses):
    seen, results = play([3, 3], pauses)
    assert seen == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
    assert results == [(0, True), (1, True)]


def test_who_has_ended_is_left_out():
    assert play([1, 3, 2])[0] == [(0, 0), (1, 0), (2, 0), (1, 1), (2, 1), (1, 2)]
    assert play([4])[0] == [(0, part) for part in range(4)]


@pytest.mark.parametrize("fails", [0, 1, 2])
def test_an_error_ends_all(fails):
    turns, ended = Turns(CPU), []

    def task(index):
        try:
            for part in range(5):
                if index == fails and part == 2:
                    raise ValueError(f"boom {index}")
                turns.pass_on()
        finally:
            ended.append(index)

    threads = threading.active_count()
    with pytest.raises(ValueError, match=f"boom {fails}"):
        turns.run([lambda i=index: task(i) for index in range(3)])
    assert sorted(ended) == [0, 1, 2]
    assert threading.active_count() == threads
    assert turns.run([lambda: 7, lambda: 8]) == [7, 8]  # and is of use again


def test_a_task_that_has_not_begun_does_not_after_an_error():
    begun = []

    def fail():
        raise ValueError("at once")

    with pytest.raises(ValueError, match="at once"):
        Turns(CPU).run([fail, lambda: begun.append(1)])
    assert begun == []


def test_a_signal_is_heard_when_the_turn_is_back():
    """The first thread is Python's main one: what a signal raises there must not run beside the second."""
    turns, seen = Turns(CPU), []

    def first():
        seen.append("first")
        turns.pass_on()
        seen.append("not reached")

    def second():
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
        time.sleep(0.05)  # long enough to be heard, were it heard
        seen.append("second")
        turns.pass_on()
        seen.append("second again")

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            turns.run([first, second])
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == ["first", "second"]
