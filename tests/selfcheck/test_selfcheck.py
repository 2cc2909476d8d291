"""The self-check: its own judgement against cases whose answer is known."""

import json
import random
import re

import pytest
from typer.testing import CliRunner

from gradbench.cli import app
from gradbench.exit_status import ExitStatus
from gradbench.records import selfcheck as saved_checks
from gradbench.records.selfcheck import Check
from gradbench.selfcheck import checks as selfcheck
from gradbench.selfcheck.checks import summarise
from gradbench.selfcheck.effort import QUICK, THOROUGH, TINY, Effort, Subject, paired_ratio
from gradbench.selfcheck.peers import _pytest_trials, differ
from gradbench.selfcheck.trials import Pad, Trial, measure_pad, padded, waste
from gradbench.stats.estimates import Estimate

pytestmark = pytest.mark.usefixtures("shared_fork_servers")

SUBJECT = Subject("net", TINY, 1.0, 200)


def estimate(low, point, high):
    return Estimate(point=point, low=low, high=high, confidence=0.95, rounds=99)


SAME, MORE = estimate(0.99, 1.0, 1.01), estimate(1.01, 1.02, 1.03)


def judged(injected, ratios):
    outcome = summarise(injected, ratios)
    return selfcheck._subject_check(SUBJECT, outcome, "")


def test_a_trial_is_judged_by_the_ratio_of_variant_to_base():
    base = [random.Random(i).randint(90, 110) for i in range(200)]
    variant = [value * 1.02 for value in base]
    assert paired_ratio(Trial(0.02, [base, variant], [1] * 200)).point == pytest.approx(1.02)


def test_a_summary_counts_intervals_that_exclude_1():
    outcome = summarise(0.02, [SAME, MORE, MORE])
    assert (outcome.trials, outcome.detected) == (3, 2)
    assert outcome.estimate == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("false_alarms", "trials", "passed"),
    [
        (10, 200, True),
        (14, 200, True),
        (15, 200, False),
        (3, 200, False),
        (3, 60, True),
        (12, 60, False),
        (0, 60, True),
    ],
)
def test_false_alarms_are_held_against_the_nominal_share(false_alarms, trials, passed):
    alarm = judged(0.0, [MORE] * false_alarms + [SAME] * (trials - false_alarms))
    assert alarm.passed is passed
    assert alarm.value == false_alarms / trials


@pytest.mark.parametrize(("injected", "passed"), [(0.02, False), (0.005, False), (0.01, None)])
def test_a_missed_target_is_called_missed_and_no_target_is_no_verdict(injected, passed):
    check = judged(injected, [SAME] * 10 + [MORE] * 10)
    assert check.passed is passed
    assert "error" in check.detail


@pytest.mark.parametrize(
    ("target", "width", "passed"), [(None, 0.5, None), (0.01, 0.009, True), (0.01, 0.011, False)]
)
def test_a_half_width_is_held_against_its_target_where_it_has_one(target, width, passed):
    subject = Subject("net", TINY, 1.0, 200, half_width=target)
    check = selfcheck._width(subject, [width] * 9, "")
    assert (check.value, check.passed) == (width, passed)


def test_welch_tells_samples_apart_and_not_from_themselves():
    rng = random.Random(0)
    base = [rng.gauss(100, 1) for _ in range(50)]
    assert differ(base, [value + 3 for value in base])
    assert not differ(base, base)


def test_waste_of_a_given_time_comes_out_of_the_cost_of_a_turn():
    assert Pad(each_ns=5).iterations(1000) == 200


def test_the_cost_of_waste_is_read_from_a_short_and_a_long_loop():
    """A clock that moves 300 ns a reading, and 4 ns for each turn of the loop before it."""
    now, turns = [0], iter([size for size in (100, 20_000) for _ in range(50)])

    def clock():
        now[0] += 300 + (4 * next(turns) if clock.odd else 0)
        clock.odd = not clock.odd
        return now[0]

    clock.odd = False
    pad = measure_pad(clock, repeats=50)
    assert pad.each_ns == pytest.approx(4)


def test_a_padded_arm_does_the_step_and_then_the_waste(monkeypatch):
    log = []
    monkeypatch.setattr("gradbench.selfcheck.trials.waste", log.append)
    arm = type("Arm", (), {"step": staticmethod(lambda: log.append("step"))})()
    padded(arm, 7).step()
    padded(arm, 0).step()
    assert log == ["step", 17, "step", 10]
    waste(3)


def test_checks_survive_being_saved_and_words_have_units(tmp_path):
    checks = [
        Check("a", 0.0312, "share", "x", "<= 5%", True),
        Check("b", 3.3, "ns", "y"),
        Check("c", 0.001, "points", "z", "<= 0.5 points", True),
        Check("d", 2048, "bytes", "w", "0 B", False),
        Check("e", 0.5, "share", "v"),
    ]
    selfcheck.save(checks, {"cpu": "a chip"}, tmp_path / "deep" / "check.json")
    assert saved_checks.load(tmp_path / "deep" / "check.json") == (checks, {"cpu": "a chip"})
    assert [check.words for check in checks] == ["3.12%", "3.3 ns", "0.10 points", "2,048 B", "50%"]
    assert [check.verdict for check in checks] == ["met", "", "met", "missed", ""]


def test_what_could_not_be_read_has_a_reason_and_no_figure():
    check = Check.unreadable("energy", "no counter")
    assert (check.words, check.status, check.verdict, check.detail) == (
        "",
        "unreadable",
        "",
        "no counter",
    )
    assert Check("a", None, "", "raised", passed=False).status == "BAD"
    assert Check("a", 0, "bytes", "", "0 B", passed=True).status == "ok"


def test_each_device_has_a_file_of_its_own(tmp_path):
    assert saved_checks.load_all(tmp_path) == {}
    for device in ("cpu", "cuda", "cuda:1"):
        facts = {"cpu": "a chip"} | ({} if device == "cpu" else {"device": device})
        selfcheck.save([Check(device, 1, "ns", "")], facts, saved_checks.path(tmp_path, device))
    found = saved_checks.load_all(tmp_path)
    assert {device: checks[0].name for device, (checks, _) in found.items()} == {
        device: device for device in ("cpu", "cuda", "cuda:1")
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "cuda"], "cuda: torch finds no CUDA device|cuda: this build of torch"),
        (["--device", "toaster"], "unknown device"),
        (["--device", "cuda", "--thorough"], "leave it out"),
    ],
)
def test_what_cannot_be_checked_here_is_one_line(tmp_path, monkeypatch, arguments, words):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    answer = CliRunner().invoke(app, ["selfcheck", "--results", str(tmp_path), *arguments])
    assert answer.exit_code == ExitStatus.USAGE
    assert re.search(words, answer.stderr)
    assert not list(tmp_path.iterdir())


MISSED, BROKEN = (
    Check("loop overhead a call", 6.2, "ns", "", "<= 5 ns", passed=False),
    Check("memory: a forward", 4, "bytes", "", "0 B", passed=False),
)


@pytest.mark.parametrize(
    ("checks", "arguments", "status"),
    [
        ([MISSED], [], ExitStatus.OK),
        ([MISSED], ["--strict"], ExitStatus.CHECK_FAILED),
        ([MISSED, BROKEN], [], ExitStatus.CHECK_FAILED),
        ([MISSED, BROKEN], ["--json"], ExitStatus.CHECK_FAILED),
    ],
)
def test_a_missed_target_of_times_is_the_machine_s_and_one_of_bytes_fails(
    tmp_path, monkeypatch, checks, arguments, status
):
    facts = {"cpu": "a chip", "cores": 2, "torch": "2", "load_before": 0, "load_after": 0}
    monkeypatch.setattr(selfcheck, "run", lambda effort, say: (checks, facts))
    answer = CliRunner().invoke(app, ["selfcheck", "--results", str(tmp_path), *arguments])
    assert answer.exit_code == status, answer.output


@pytest.mark.parametrize("content", ["", "{}", '{"checks": [{"odd": 1}], "facts": {}}', "[1]"])
def test_a_file_that_is_no_self_check_is_none(tmp_path, content):
    (tmp_path / "check.json").write_text(content)
    assert saved_checks.load(tmp_path / "check.json") is None
    assert saved_checks.load(tmp_path / "nothing.json") is None


@pytest.mark.slow
def test_a_small_self_check_runs_end_to_end_and_memory_matches_arithmetic(tmp_path):
    effort = Effort(
        subjects=(Subject("tiny MLP", TINY, 0.05, 2, {0.05: 2}),),
        neighbour=(Subject("tiny MLP", TINY, 0.05, 2),),
        peers=1,
        processes=2,
        turns=2,
        bias_s=0.2,
    )
    said = []
    checks, facts = selfcheck.run(effort, said.append)
    selfcheck.save(checks, facts, tmp_path / "check.json")
    json.loads((tmp_path / "check.json").read_text())
    by_name = {check.name: check for check in checks}
    assert len(by_name) == len(checks)
    assert by_name["memory: mlp_tiny forward against arithmetic"].passed
    for tool in ("gradbench", "Timer", "pytest-benchmark"):
        shares = [check.value for name, check in by_name.items() if f", {tool}:" in name]
        assert len(shares) == 2
        assert all(0 <= share <= 1 for share in shares)
    (detected,) = [check for name, check in by_name.items() if name.startswith("+5.0% detected")]
    assert "of 2 intervals" in detected.detail
    assert any("neighbour" in name for name in by_name)
    bias = by_name["bias of interleaving: global_on / no_grad, tiny MLP"]
    together, lowest, highest, apart, low, high = map(float, re.findall(r"\d\.\d{4}", bias.detail))
    assert lowest <= together <= highest and low <= apart <= high
    assert bias.value == pytest.approx(abs(together - apart), abs=1e-4)
    assert {"cpu", "cores", "torch", "load_before", "load_after", "when"} <= facts.keys()
    assert len(said) >= 7


@pytest.mark.slow
def test_the_benchmarks_given_to_pytest_benchmark_run_and_are_read_back():
    (trial,) = _pytest_trials(1, 0.02, [0.5])
    injected, base, variant = trial
    assert injected == 0.5
    assert min(len(base), len(variant)) >= 5
    assert min(*base, *variant) > 0


def test_what_help_and_documents_say_of_its_length_is_what_the_trials_take(request):
    """Two minutes in all, and ten of trials."""
    assert QUICK.trials_s < 60
    assert THOROUGH.trials_s // 60 == 10
    page = (request.config.rootpath / "docs" / "selfcheck.md").read_text("utf-8")
    assert "under two minutes; the trials of `--thorough` alone time for ten minutes" in page
