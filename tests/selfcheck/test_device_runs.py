"""What a self-check makes of the gate's verdicts on runs of the same, without a device."""

import pytest
from builders import cell, counted, run_on_a_machine, timed

from gradbench.records.selfcheck import Check
from gradbench.selfcheck import device_checks
from gradbench.selfcheck.device_checks import Question
from gradbench.selfcheck.device_runs import of_both

BUSY = {"others_busy_cores": 1.5}
SLOW = 3.0


def a_run(name: str, factor: float = 1.0, *, size: int = 64, **notes):
    times = [round(factor * 1_000_000 * (1 + 0.001 * (i % 7))) for i in range(40)]
    return run_on_a_machine(
        [timed(cell(), times, **notes), counted(cell(), size)], name=name, when=f"2026-01-0{name}"
    )


def judged(first, second, third=None, fourth=None):
    """Return both lines, and how often two runs more were made."""
    asked = []

    def again(names):
        asked.append(names)
        return [third, fourth]

    exact, others = of_both(first, second, again)
    return exact, others, len(asked)


def test_times_that_agree_need_no_more_runs():
    exact, others, asked = judged(a_run("1"), a_run("2"))
    assert (exact.status, others.status, asked) == ("ok", "ok", 0)


def test_one_byte_is_bad_however_busy_the_machine_was():
    exact, others, asked = judged(a_run("1"), a_run("2", size=65, **BUSY))
    assert (exact.status, others.status, asked) == ("BAD", "ok", 0)


def test_a_run_that_was_slowed_down_once_is_outvoted_by_two_more():
    """The gate then sees how much runs differ here, and gives no verdict."""
    _, others, asked = judged(a_run("1"), a_run("2", SLOW), a_run("3"), a_run("4"))
    assert (others.status, asked) == ("ok", 1)


@pytest.mark.parametrize(("notes", "status"), [({}, "BAD"), (BUSY, "unreadable")])
def test_times_that_stay_apart_are_bad_and_on_a_busy_machine_unknown(notes, status):
    first, fourth = a_run("1", **notes), a_run("4", **notes)
    second, third = a_run("2", SLOW, **notes), a_run("3", SLOW, **notes)
    _, others, asked = judged(first, second, third, fourth)
    assert (others.status, asked) == (status, 1)
    assert ("idle machine" in others.detail) == bool(notes)


class Answers:
    """A process that gives one list of lines after the other."""

    def __init__(self, *tries):
        self.tries = list(tries)

    def run(self, *_, **__):
        yield from self.tries.pop(0)


def line(name, *, passed):
    return Check(name, 1.0, "share", "", "", passed)


def test_a_line_that_is_bad_is_asked_again_and_counts_as_it_was_best():
    question = Question(about="clocks", ask=lambda _: iter(()), tries=3)
    server = Answers(
        [line("a", passed=True), line("b", passed=False), line("c", passed=False)],
        [line("a", passed=False), line("b", passed=True), line("c", passed=False)],
        [line("c", passed=False)],
    )
    checks = {check.name: check.passed for check in device_checks.answers(server, question, "cuda")}
    assert checks == {"a": True, "b": True, "c": False}
    assert server.tries == []


def test_a_line_of_bytes_is_asked_once():
    question = Question(about="ledger", ask=lambda _: iter(()))
    server = Answers([line("a", passed=False)], [line("a", passed=True)])
    (check,) = device_checks.answers(server, question, "cuda")
    assert check.passed is False
