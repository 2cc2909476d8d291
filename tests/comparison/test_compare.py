"""Base against candidate: the rule, live pairs of processes, the user's repository, callables."""

import asyncio
import gc
import importlib.util
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from builders import net_source, quick_effort
from patience import PATIENCE_S, wait_until
from scipy import stats
from torch import nn
from typer.testing import CliRunner

import gradbench
from gradbench.cli import app
from gradbench.comparison import call_memory, checkouts, instruction_counts, versions, worktree
from gradbench.comparison.budget import Budget
from gradbench.comparison.call_memory import BytesChange
from gradbench.comparison.code_origins import check_modules
from gradbench.comparison.effort import Effort
from gradbench.comparison.one_process import in_turns
from gradbench.comparison.replicate_effort import Replication
from gradbench.comparison.replication import Replicator, unlike
from gradbench.errors import BadModel, GradbenchError, Impossible
from gradbench.exit_status import ExitStatus
from gradbench.experiment.matrix import Cell
from gradbench.experiment.model_source import ModelSource
from gradbench.gate.result import GateResult
from gradbench.host_locks import Held, holding
from gradbench.lazy_results import LazyResult
from gradbench.runner.host_system import usable_cores
from gradbench.stats import table_rule
from gradbench.stats.replicate import Replicate
from gradbench.stats.table_rule import TableRule
from gradbench.stats.verdicts import Verdict

QUICK = quick_effort()

NETS = """
import os
import time

class Slow(Net):
    def forward(self, x):
        time.sleep({nap})
        return super().forward(x)

def slow():
    return Slow()

class Late(Net):
    calls = 0
    def forward(self, x):
        self.calls += 1
        if self.calls > {patience}:
            raise ValueError("out of patience")
        return super().forward(x)

def late():
    return Late()

class Forks(Net):  # leaves a daemon, and a copy of its process that returns from the step too
    forked = not {forks}
    def forward(self, x):
        before, self.forked = self.forked, True
        if not before and os.fork() == 0 and os.fork() == 0:
            os.setsid()
            time.sleep(600)
        return super().forward(x)

def forks():
    return Forks()

def breaks():
    {breaks}
    return Net()

class Holds(Net):  # a temporary, which is freed
    def forward(self, x):
        torch.zeros({temporary}, dtype=torch.uint8)
        return super().forward(x)

def holds():
    return Holds()

def crashes():
    {crashes}
    return Net()
"""


PLAIN = {
    "nap": 0.002,
    "patience": 10**9,
    "forks": False,
    "breaks": "pass",
    "crashes": "pass",
    "temporary": 16,
}


def nets(*, activation: str = "torch.tanh", **changes: object) -> str:
    return net_source(activation=activation) + NETS.format(**PLAIN | changes)


def git(folder: Path, *arguments: str) -> str:
    answer = subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    return answer.stdout.strip()


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A repository with a model; its working tree saves one tensor more, naps longer, breaks."""
    root = tmp_path / "my project"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    (root / "nets.py").write_text(nets(), "utf-8")
    for name in ("random", "statistics", "psutil"):  # whose, neither the library's nor installed
        (root / f"{name}.py").write_text("raise ImportError('not the one that was meant')", "utf-8")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "first")
    changed = nets(
        activation="torch.sin",
        nap=0.02,
        patience=4,
        forks=True,
        breaks="raise ValueError('no weights')",
        crashes="import ctypes; ctypes.string_at(0)",
        temporary=16 + 2**20,
    )
    (root / "nets.py").write_text(changed, "utf-8")
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield root
    sys.modules.pop("nets", None)


@pytest.fixture
def compare(monkeypatch):
    """The command line, with pairs that are cheap."""

    def quick(**given):
        return Effort(**fields(QUICK) | given)

    monkeypatch.setattr("gradbench.comparison.effort.Effort", quick)
    runner = CliRunner(env={"COLUMNS": "200"})
    return lambda *arguments: runner.invoke(app, ["compare", *map(str, arguments)])


def fields(effort: Effort) -> dict[str, object]:
    return {name: getattr(effort, name) for name in Effort.__dataclass_fields__}


def own(factory: str, mode: str = "no_grad") -> Cell:
    return Cell(model=f"nets.{factory}", workload="inference", grad_mode=mode, batch_size=4)


OWN = {
    f"nets.{name}": ModelSource(build=f"nets:{name}", input=("B,8",))
    for name in ("make", "slow", "late", "forks", "breaks", "crashes", "holds")
}


# The rule


def logs(*percents: float) -> list[float]:
    return [math.log1p(percent / 100) for percent in percents]


CALM = logs(0, 0.2, -0.3, 0.1, 0.4)
SLOW = logs(5, 5.2, 4.8, 5.1, 4.9)
FAST = [-log for log in SLOW]
SLIGHT = logs(1, 1.1, 0.9, 1.05, 0.95)
NEAR = logs(3, 7, -1, 5, 1)  # about the threshold, where being slower can be confirmed
WILD = logs(40, -20, 3, 11, -8)
RULE = TableRule()


@pytest.mark.parametrize(
    ("replicates", "verdict", "words"),
    [
        (CALM, Verdict.SAME, "a change of more than 0.4% is ruled out, threshold 3.0%"),
        (SLOW, Verdict.INCONCLUSIVE, "5 replicates leave"),  # suspected, and not confirmed
        (SLOW + SLOW, Verdict.WORSE, "slower: +5.0% is beyond the threshold of 3.0%; at least +4."),
        (FAST + FAST, Verdict.BETTER, "faster: -4.8% is beyond the threshold"),
        (SLIGHT + SLIGHT, Verdict.WITHIN, "slower, within tolerance: +1.0%, threshold 3.0%"),
        ([-log for log in SLIGHT * 2], Verdict.WITHIN, "faster, within tolerance: -1.0%"),
        (SLOW + FAST, Verdict.INCONCLUSIVE, "10 replicates leave"),
        (SLIGHT + CALM, Verdict.SAME, "a smaller one is not confirmed by fresh replicates"),
        (SLIGHT + logs(-1, -0.9, 0.4, -0.5, 0), Verdict.SAME, "the fresh ones do not"),
        (WILD, Verdict.INCONCLUSIVE, "a quieter machine or a longer step"),
        (SLOW[:2], Verdict.INCONCLUSIVE, "made: a larger budget would settle it"),
        (NEAR, Verdict.INCONCLUSIVE, "more replicates would settle it: --processes"),
    ],
)
def test_a_verdict_takes_replicates_that_agree_and_fresh_ones_that_confirm(
    replicates, verdict, words
):
    found = RULE.verdict(replicates, suspects=1)
    assert found.verdict is verdict
    assert words in found.reason


def test_what_is_worse_is_above_zero_for_sure_and_beyond_the_threshold_and_the_reason_names_both():
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(400):
        effect, spread = rng.uniform(0, 0.05), rng.uniform(0.001, 0.02)
        found = RULE.verdict(rng.normal(effect, spread, RULE.most).tolist(), suspects=1)
        seen.add(found.verdict)
        if found.verdict in (Verdict.WORSE, Verdict.WITHIN):
            slower = found.change.point > 1
            assert found.change.low > 1 or found.change.high < 1
            beyond = math.log(found.change.point) >= math.log1p(0.03)
            assert beyond is (found.verdict is Verdict.WORSE)
            end = found.change.low if slower else found.change.high
            for number in (found.change.point, end, 1.03):
                assert f"{number - 1:+.1%}".lstrip("+") in found.reason
    assert {Verdict.WORSE, Verdict.WITHIN, Verdict.SAME} <= seen


def test_a_settled_cell_takes_no_more_replicates_and_an_open_one_a_stated_number_at_most():
    assert RULE.looks == (5, 8, 12)
    assert RULE.more(CALM[:4], suspects=1)
    assert not RULE.more(CALM, suspects=1)
    for fresh in ([], SLOW[:4]):
        assert RULE.more(SLOW + fresh, suspects=1)
    assert not RULE.more(SLOW + SLOW, suspects=1)
    replicates = list(WILD)
    while RULE.more(replicates, suspects=1):
        replicates.append(WILD[len(replicates) % 5])
    assert len(replicates) == RULE.most == 17


def test_more_suspects_ask_each_for_more():
    barely = SLOW + logs(5.3, 4.7, 5.9, 4.1, 5)
    assert RULE.verdict(barely, suspects=1).verdict is Verdict.WORSE
    assert RULE.verdict(barely, suspects=800).verdict is Verdict.INCONCLUSIVE
    assert RULE.suspects([CALM, SLOW, WILD, SLOW[:3], CALM + WILD]) == 3


def decided(table, rule=RULE):
    """Return the verdicts on a table whose cells take replicates from endless supplies."""
    made = [[next(supply) for _ in range(rule.first)] for supply in table]
    suspects = rule.suspects(made)
    for replicates, supply in zip(made, table, strict=True):
        while rule.more(replicates, suspects=suspects):
            replicates.append(next(supply))
    return [rule.verdict(each, suspects=suspects).verdict for each in made]


def supply(rng, effect, draw):
    while True:
        yield effect + draw(rng)


DRAWS = {
    "normal": lambda rng: rng.normal(0, 0.02),
    "with wild ones": lambda rng: rng.normal(0, 0.1 if rng.random() < 0.1 else 0.01),
    "one-sided": lambda rng: rng.exponential(0.01) * rng.choice([-1, 1]),
}


@pytest.mark.slow
@pytest.mark.parametrize("cells", [1, 40])
@pytest.mark.parametrize("draw", DRAWS)
def test_of_equal_tables_one_in_a_hundred_at_most_calls_a_cell_slower_or_faster(draw, cells):
    """Judged at a threshold that hides nothing; the count is what 1% gives in 1 of 1,000 tries."""
    rng = np.random.default_rng(1)
    tables = 600 // cells + 60
    changed = {Verdict.WORSE, Verdict.BETTER, Verdict.WITHIN}
    alarms = sum(
        bool(changed & set(decided([supply(rng, 0.0, DRAWS[draw]) for _ in range(cells)])))
        for _ in range(tables)
    )
    assert alarms <= stats.binom.isf(0.001, tables, table_rule.ALPHA)


def test_what_can_be_seen_is_found_and_what_cannot_is_inconclusive():
    rng = np.random.default_rng(0)

    def share(effect: float, spread: float, *wanted: Verdict) -> float:
        def draw(rng):
            return rng.normal(0, spread)

        tables = [decided([supply(rng, effect, draw)])[0] for _ in range(200)]
        return sum(verdict in wanted for verdict in tables) / 200

    assert share(0.05, 0.005, Verdict.WORSE) > 0.98
    assert share(0.01, 0.003, Verdict.WITHIN) > 0.95
    assert share(0.0, 0.10, Verdict.INCONCLUSIVE) > 0.95


def test_sides_swapped_give_the_opposite_verdict():
    rng = np.random.default_rng(0)
    opposite = {Verdict.WORSE: Verdict.BETTER, Verdict.BETTER: Verdict.WORSE}
    seen = set()
    for _ in range(300):
        spread = rng.uniform(0.002, 0.05)
        replicates = rng.normal(rng.normal(0, 0.03), spread, RULE.most).tolist()
        here = RULE.verdict(replicates, suspects=2).verdict
        there = RULE.verdict([-x for x in replicates], suspects=2).verdict
        assert there is opposite.get(here, here)
        seen.add(here)
    assert seen == set(Verdict)


def test_a_replicate_is_judged_by_turns_that_followed_one_another():
    drift = np.linspace(1, 3, 20)
    base = [[1000 * d, 1100 * d] for d in drift]
    candidate = [[1050 * d, 5000 * d] for d in drift]
    assert Replicate(base, candidate).log_ratio == pytest.approx(math.log(1.05))


@pytest.mark.parametrize("count", [1, 3, 4, 7, 8, 101])
def test_rounds_of_one_process_are_turns_of_equal_length_and_none_is_lost(count):
    turns = in_turns(list(range(count)), 4)
    assert [ns for turn in turns for ns in turn] == list(range(count))
    assert all(len(turn) == 4 for turn in turns[:-1])
    assert len(turns[-1]) < 8


def test_the_command_asks_for_what_the_library_does_by_default():
    command = typer.main.get_command(app).commands["compare"]
    said = {option.name: option.default for option in command.params}
    assert (said["processes"], said["threshold"]) == (Effort().processes, Effort().threshold)
    assert said["limit"] == Replication().limit_s


# Live pairs


@pytest.fixture
def trees(project, tmp_path):
    """The two versions of the project, each in a tree of its own."""
    with checkouts.checked_out_versions(here=project, revision="HEAD", base_python=None) as (
        base,
        candidate,
        itself,
    ):
        assert not itself
        yield base, candidate


def test_sides_of_another_torch_are_named_apart():
    facts = {key: {"torch": "2.13.0", "python": "3.11.7"} for key in checkouts.SIDES}
    assert unlike(facts) == ""
    facts["base"] = {"torch": "2.11.0", "python": "3.11.7"}
    assert unlike(facts) == (
        "base: torch 2.11.0, Python 3.11.7; candidate: torch 2.13.0, Python 3.11.7"
    )


def test_where_no_cell_can_run_no_process_is_started_and_nothing_was_measured(trees):
    said = []
    decision = versions.compare(
        [], base=trees[0], candidate=trees[1], effort=QUICK, say=said.append
    )
    assert (decision.status(), said) == (ExitStatus.NOTHING_MEASURED, [])


@pytest.mark.slow
def test_a_model_from_elsewhere_is_refused_for_it_would_be_the_same_code(trees):
    base, candidate = trees
    cell = Cell(model="Identity", workload="inference", grad_mode="no_grad")
    with pytest.raises(BadModel, match="both sides would be the same code"):
        versions.compare(
            [cell],
            base=base,
            candidate=candidate,
            effort=QUICK,
            sources={cell.model: ModelSource(build="torch.nn:Identity", input=("B,8",))},
        )


def test_an_interpreter_that_cannot_start_is_reported_in_one_line(project):
    nowhere = str(project / "no python")
    with (
        checkouts.checked_out_versions(here=project, revision="HEAD", base_python=nowhere) as found,
        pytest.raises(Impossible, match=r"cannot run .*no python"),
    ):
        versions.compare([own("make")], base=found[0], candidate=found[1], sources=OWN)


@pytest.fixture
def idle(tmp_path, monkeypatch):
    """A replicator that starts no process, a cell, the lock on its core, and what is said."""
    side, said = checkouts.Version(name="base", python="python", paths=(), tree=tmp_path), []
    replicator = Replicator(side, side, replication=Replication(), sources={}, say=said.append)
    monkeypatch.setattr(replicator, "replicate", lambda _: None)
    return replicator, [own("make")], [f"core-{max(usable_cores())}"], said


def test_a_replicate_has_the_cores_of_its_steps_alone_as_a_run_has(idle, monkeypatch):
    replicator, cells, lock, said = idle
    held = []

    def replicate(_cells):
        with pytest.raises(Held), holding(lock, wait_s=0.0):
            pass
        held.append(lock)

    monkeypatch.setattr(replicator, "replicate", replicate)
    for _ in replicator.rounds(lambda: cells, Budget()):
        with holding(lock, wait_s=0.0):  # others take turns with it
            pass
        if len(held) == 2:
            break
    assert held == [lock, lock]
    assert said == []


def test_a_comparison_waits_for_another_run_no_longer_than_its_budget(idle, clock, monkeypatch):
    replicator, cells, lock, said = idle
    monkeypatch.setattr(time, "sleep", clock)
    budget = Budget(20)
    with holding(lock):
        assert list(replicator.rounds(lambda: cells, budget)) == []
    assert said == ["waiting for another run"]
    assert budget.ended
    assert f"{lock[0]} was held by another run" in replicator.results.given_up[cells[0]]


def test_a_base_is_built_by_the_user_s_command_before_it_is_imported(project):
    command = "echo 'BUILT = 1' >> nets.py"
    with checkouts.checked_out_versions(
        here=project, revision="HEAD", base_python=None, build=command
    ) as (base, candidate, _):
        assert "BUILT = 1" in (base.tree / "nets.py").read_text()
        assert "BUILT = 1" not in (candidate.tree / "nets.py").read_text()


def test_a_build_that_fails_is_said_in_its_own_last_words_and_leaves_no_worktree(project):
    before = git(project, "worktree", "list")
    with (
        pytest.raises(GradbenchError, match=r"exit status 3 \(no compiler\)") as why,
        checkouts.checked_out_versions(
            here=project, revision="HEAD", base_python=None, build="echo no compiler; exit 3"
        ),
    ):
        pytest.fail("it was compared")
    assert "\n" not in str(why.value)
    assert git(project, "worktree", "list") == before


# The user's repository


def test_the_worktree_is_gone_whatever_happens(project, tmp_path):
    before = git(project, "worktree", "list")
    with (
        pytest.raises(ZeroDivisionError),
        worktree.checked_out(project, "main", tmp_path / "base") as base,
    ):
        assert "torch.tanh" in (base / "nets.py").read_text()
        1 / 0  # noqa: B018 # the point
    assert git(project, "worktree", "list") == before
    assert not (tmp_path / "base").exists()
    assert "torch.sin" in (project / "nets.py").read_text()


def test_submodules_can_be_filled_by_a_build_and_leave_with_the_worktree(project, tmp_path):
    library = tmp_path / "library"
    library.mkdir()
    git(library, "init", "-q")
    (library / "widths.py").write_text("WIDTH = 8", "utf-8")
    git(library, "add", ".")
    git(library, "commit", "-q", "-m", "first")
    file_urls = ("-c", "protocol.file.allow=always")
    git(project, *file_urls, "submodule", "--quiet", "add", str(library), "vendored")
    git(project, "commit", "-q", "-m", "with a submodule")
    before = git(project, "worktree", "list")
    with worktree.checked_out(project, "HEAD", tmp_path / "base") as base:
        assert list((base / "vendored").iterdir()) == []
        hint = worktree.hint_at_submodules(base, "")
        command = hint.partition("--build '")[2].partition("'")[0]
        git(base, *file_urls, *command.split()[1:])
        assert (base / "vendored" / "widths.py").read_text() == "WIDTH = 8"
        assert worktree.hint_at_submodules(base, command) == ""
    assert git(project, "worktree", "list") == before
    assert not (tmp_path / "base").exists()
    assert worktree.hint_at_submodules(tmp_path, "") == ""


@pytest.mark.parametrize("revision", ["nowhere", "--help", "", "main:nets.py", "a b"])
def test_a_revision_that_is_none_is_named(project, revision):
    with pytest.raises(GradbenchError, match="no revision"):
        worktree.commit(project, revision)


def test_what_gradbench_itself_writes_makes_no_working_tree_dirty(project, tmp_path):
    git(project, "stash", "-q")
    outputs = [project / "my results", project / "reports", tmp_path.parent, project]
    for folder in outputs[:2]:
        folder.mkdir()
        (folder / "one.json").write_text("{}", "utf-8")
    assert not worktree.is_dirty(project, outputs=outputs)
    assert worktree.is_dirty(project, outputs=outputs[:1])
    (project / "new.py").write_text("", "utf-8")
    assert worktree.is_dirty(project, outputs=outputs)


def test_a_folder_without_a_repository_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(GradbenchError, match="is in no git repository"):
        worktree.repository(tmp_path)


def test_modules_are_imported_from_where_the_user_stands_and_from_src(tmp_path):
    for folder in ("pkg/src", "src"):
        (tmp_path / folder).mkdir(parents=True)
    paths = checkouts.import_paths(tmp_path, Path("pkg"))
    assert [str(path.relative_to(tmp_path)) for path in paths] == ["pkg", "pkg/src", ".", "src"]


def test_a_folder_that_git_ignores_on_the_import_path_is_every_version_s(project, monkeypatch):
    """No commit holds it: it is the environment of whoever stands there."""
    libs, built, kept, new = (project / name for name in ("libs", "built", "kept", "new"))
    (project / "lib").mkdir()
    (project / "lib" / "own.py").write_text("", "utf-8")
    for folder in (libs, built, kept, new):
        folder.mkdir()
        (folder / f"of_{folder.name}.py").write_text("", "utf-8")
    (libs / "own.py").write_text("", "utf-8")
    (project / ".gitignore").write_text("libs/\nbuilt/\nkept/\n", "utf-8")
    git(project, "add", "-f", ".gitignore", "kept", "lib")
    git(project, "commit", "-q", "-m", "what is ignored")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, [libs, built, kept, new])))
    with checkouts.checked_out_versions(
        here=project, revision="HEAD", base_python=None, build="mkdir built"
    ) as (base, candidate, _):
        assert base.environment == candidate.environment == (libs.resolve(),)
        check_modules(base, {"of_libs": str(libs / "of_libs.py")})
        for own in (built / "of_built.py", new / "of_new.py", libs / "own.py"):
            with pytest.raises(BadModel, match="which is the working tree's"):
                check_modules(base, {own.stem: str(own)})


def test_a_project_s_models_are_found_where_its_sides_import_them(project):
    """In a src layout that is not installed, too, and no longer than the project is open."""
    package = project / "src" / "of_a_src_layout"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("", "utf-8")
    with checkouts.opened_project(project, at_commits=True):
        found = importlib.util.find_spec("of_a_src_layout")
        assert found is not None
        assert Path(found.origin) == package / "__init__.py"
        assert sys.path[-1] == str(project / "src")
    assert importlib.util.find_spec("of_a_src_layout") is None


# The command


def test_cells_that_this_machine_cannot_run_are_reported_with_their_reason(project, compare):
    asked = ("--model", "nets:make", "--input", "4,8", "--workload", "inference", "--threads", 9999)
    answer = compare("--base", "HEAD", *asked, "--json")
    assert answer.exit_code == ExitStatus.NOTHING_MEASURED
    reasons = json.loads(answer.stdout)["not_compared"]
    assert len(reasons) == 4
    assert all("9,999 threads, but this process may use" in one["reason"] for one in reasons)


def verdicts(answer) -> dict[tuple[str, str], dict]:
    """Return what a comparison printed as JSON, by factory and meter."""
    assert answer.exit_code == ExitStatus.REGRESSION, answer.output
    return {
        (row["cell"]["model"].removeprefix("nets."), row["meter"]): row
        for row in json.loads(answer.stdout)["verdicts"]
    }


FORWARDS = (
    *("--base", "main", "--input", "4,8", "--device", "cpu", "--processes", 3),
    *("--workload", "inference", "--grad-mode", "global_on", "--json"),
)


@pytest.mark.slow
def test_the_command_runs_each_side_from_its_own_tree_and_says_what_became_worse(project, compare):
    """With a threshold that no time reaches: bytes are worse, and no new pairs are asked for."""
    models = ("--model", "nets:make,nets:forks,nets:breaks,nets:crashes,nets:holds")
    answer = compare(*FORWARDS, *models, "--threshold", 0.99)
    rows = verdicts(answer)
    saved = rows["make", "saved_for_backward"]  # sin saves its input beside what tanh saved
    assert (saved["verdict"], saved["baseline"], saved["candidate"]) == ("worse", 256, 512)
    held = rows["holds", "peak_transient"]  # by a tensor that is gone before the step's end
    assert held["verdict"] == "worse"
    assert held["candidate"] > 2**20 > held["baseline"]
    assert held["reason"].endswith(" B, 0 allowed")
    assert rows["make", "step_time"]["change"] is not None  # in spite of the others' ends
    assert "cannot step it: ValueError: no weights" in rows["breaks", "step_time"]["reason"]
    assert rows["forks", "step_time"]["change"] is not None  # one answer of two processes
    assert "killed by SIGSEGV" in rows["crashes", "step_time"]["reason"]
    assert "uncommitted changes" in answer.stderr
    assert f"the base is main, commit {git(project, 'rev-parse', 'main')[:10]}" in answer.stderr
    assert "gradbench-" not in git(project, "worktree", "list")


@pytest.mark.slow
def test_a_slower_step_is_confirmed_by_new_pairs_beside_one_that_fails_late(project, compare):
    rows = verdicts(compare(*FORWARDS, "--model", "nets:slow,nets:late"))
    slow = rows["slow", "step_time"]
    assert slow["verdict"] == "worse", slow
    assert slow["change"]["point"] > 2
    assert slow["reason"].startswith("slower: ×")
    assert "cannot step it: ValueError: out of patience" in rows["late", "step_time"]["reason"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "give --base REV"),
        (["--base", "nowhere", "--model", "nets:make", "--input", "4,8"], "no revision 'nowhere'"),
        (["--base", "main", "--preset", "tiny"], "is gradbench's own model"),
        (["--base", "main", "--model", "nets:make"], "needs --input"),
        (["--base", "main", "--model", "nets:nope", "--input", "4,8"], "cannot be imported"),
        (["--base", "main", "--processes", "2"], "--processes is 3 at least"),
        (["--base", "main", "--budget", "0"], "--budget is a number of seconds above 0"),
        (["--base", "main", "--threshold", "3"], "--threshold is a share"),
        (["--base", "main", "--processes", "1" + "0" * 400], "--processes is 1,000 of a cell"),
        (["--base", "main", "--seed", "9" * 400], "--seed must be a whole number"),
        (["--base", "main", "--seed", "-1"], "--seed must be a whole number from 0 up"),
        (["--base", "main", "--address", "a:1"], "--address goes with --on ray"),
        (["--base", "main", "--on", "slurm"], "unknown cluster 'slurm'"),
        (["--bisect", "main..HEAD", "--on", "ray"], "--on ray goes with --base"),
        (["--base", "main", "--on", "ray", "--instructions"], "leave out --on ray"),
        (["--bisect", "main..HEAD", "--rules", "r.toml"], "a bisection finds any change"),
        (["--base", "main", "--rules", "nowhere.toml"], "nowhere.toml"),
    ],
)
def test_a_mistake_costs_one_line_and_status_2(project, compare, arguments, complaint):
    answer = compare(*arguments)
    assert answer.exit_code == ExitStatus.USAGE, answer.output
    assert answer.stdout == ""
    assert complaint in answer.stderr.splitlines()[-1]
    assert "Traceback" not in answer.output
    assert "gradbench-" not in git(project, "worktree", "list")


def test_a_request_to_terminate_leaves_no_worktree_behind(project):
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "gradbench", "compare", "--base", "main"),
            *("--model", "nets:slow", "--input", "4,8", "--workload", "inference"),
        ],
        cwd=project,
        stderr=subprocess.PIPE,
        text=True,
    )

    def begun() -> bool:
        assert process.poll() is None, process.stderr.read()
        return (project / ".git" / "worktrees").exists()  # git may be in the midst of it

    wait_until(begun)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 143
    assert "gradbench-" not in git(project, "worktree", "list")


def test_a_budget_that_holds_nothing_begins_nothing_and_says_so(trees):
    decision = versions.compare(
        [own("make")], base=trees[0], candidate=trees[1], effort=Effort(budget_s=1e-9), sources=OWN
    )
    assert decision.status() is ExitStatus.NOTHING_MEASURED
    assert [one.meter for one in decision.not_compared] == [
        "step_time",
        "saved_for_backward",
        "peak_transient",
    ]
    why = "the budget ended before it was measured: loading torch is part of it"
    assert {one.reason for one in decision.not_compared} == {why}


def test_a_budget_takes_for_granted_what_the_longest_of_a_kind_took(clock):
    budget = Budget(10)
    for took, more in ((2, True), (5, False)):
        assert budget.allows("replicate")
        with budget.taking("replicate"):
            clock(took)
        assert budget.allows("replicate") is more
    assert (budget.allows("look"), budget.ended) == (True, True)


def test_a_budget_counts_the_time_of_what_failed(clock):
    budget = Budget(10)
    with pytest.raises(ValueError, match="no"), budget.taking("count"):
        clock(6)
        raise ValueError("no")
    assert not budget.allows("count")


def test_where_no_valgrind_is_one_line_says_so_and_times_are_compared(
    project, compare, monkeypatch
):
    monkeypatch.setattr(instruction_counts, "obstacle", lambda: "no valgrind")
    given = []

    def compared(cells, *, effort, **_):
        given.append(effort.instructions)
        return GateResult(figure_verdicts=(), not_compared=(), measured=0)

    monkeypatch.setattr(versions, "compare", compared)
    answer = compare("--base", "main", *FORWARDS[2:], "--model", "nets:make", "--instructions")
    assert "instructions are not counted: no valgrind" in answer.stderr.splitlines()
    assert given == [False]


# Two callables


def test_of_two_callables_the_slower_is_found_and_equal_ones_are_the_same(clock):
    rng = random.Random(0)

    def taking(seconds):
        return lambda: clock(seconds * rng.uniform(1, 1.5))

    short, long = taking(40e-6), taking(80e-6)
    slower = gradbench.compare(short, long, budget_s=0.5)
    assert (slower.verdict, slower.change.point > 1.5) == (Verdict.WORSE, True)
    assert gradbench.compare(long, short, budget_s=0.5).verdict is Verdict.BETTER
    assert repr(slower).startswith("worse: ")
    assert "a call" in repr(slower)
    same = gradbench.compare(short, short, tolerance=0.2, budget_s=0.5)
    assert same.verdict is Verdict.SAME


def test_time_is_read_from_the_machine_s_own_clock():
    """A call that takes a thousand times as long does so on any machine."""
    found = gradbench.compare(partial(sum, range(10)), partial(sum, range(10**5)), budget_s=0.5)
    assert found.change.point > 10


FEW, MANY = partial(torch.zeros, 1024), partial(torch.zeros, 2048)


@pytest.fixture
def roomy(monkeypatch):
    """Let any budget hold the calls for memory: how long one takes is the machine's matter."""
    monkeypatch.setattr(call_memory, "SHARE", math.inf)
    monkeypatch.setattr(call_memory, "LEAST_BUDGET_S", 0.0)


@pytest.mark.usefixtures("roomy")
def test_bytes_of_two_callables_are_judged_as_they_are():
    found = gradbench.compare(FEW, MANY, budget_s=0.05)
    assert found.memory["peak"] == BytesChange(
        base_bytes=4096, candidate_bytes=8192, verdict=Verdict.WORSE
    )
    assert found.memory["saved"].verdict is Verdict.SAME
    assert "; peak 4,096 -> 8,192 B (worse)" in repr(found)
    assert gradbench.compare(MANY, FEW, budget_s=0.05).memory["peak"].verdict is Verdict.BETTER
    same = gradbench.compare(FEW, FEW, budget_s=0.05)
    assert {one.verdict for one in same.memory.values()} == {Verdict.SAME}
    assert "peak" not in repr(same)


@pytest.mark.usefixtures("roomy")
def test_bytes_of_a_callable_that_vary_from_call_to_call_are_inconclusive():
    sizes = itertools.count(1)
    found = gradbench.compare(FEW, lambda: torch.zeros(next(sizes)), budget_s=0.05)
    assert found.memory["peak"].verdict is Verdict.INCONCLUSIVE


def test_a_budget_that_holds_no_calls_for_memory_says_what_would(clock):
    found = gradbench.compare(partial(clock, 0.5), partial(clock, 0.5), budget_s=4)
    assert found.memory == {}
    assert found.notes["memory"] == "not read: a budget_s of 20 has time for it"


@pytest.fixture
def clock(monkeypatch):
    """Stop the clock of comparisons; return a function that moves it on by seconds."""

    class Clock:
        now_ns = 0

    monkeypatch.setattr(time, "perf_counter_ns", lambda: Clock.now_ns)
    monkeypatch.setattr(time, "perf_counter", lambda: Clock.now_ns / 1e9)
    monkeypatch.setattr(time, "monotonic", lambda: Clock.now_ns / 1e9)

    def nap(seconds):
        Clock.now_ns += round(seconds * 1e9)

    nap.elapsed_s = lambda: Clock.now_ns / 1e9
    return nap


@pytest.mark.parametrize("step_s", [1e-5, 1e-3, 0.02, 0.1, 0.5, 3.0])
@pytest.mark.parametrize("budget_s", [0.5, 1.0, 20.0])
def test_a_budget_is_kept_whatever_a_call_takes(clock, step_s, budget_s):
    """But for one round beside the first calls, without which nothing is compared."""
    found = gradbench.compare(lambda: clock(step_s), lambda: clock(2 * step_s), budget_s=budget_s)
    round_s = 3 * step_s
    assert clock.elapsed_s() <= max(budget_s, 2 * round_s) * 1.01
    assert found.change.point == pytest.approx(2)
    assert (found.verdict is Verdict.WORSE) == (found.change.rounds >= 6)


def test_too_few_rounds_have_no_verdict_and_the_note_says_what_budget_would_do(clock):
    slow, slower = partial(clock, 0.5), partial(clock, 1.0)
    found = gradbench.compare(slow, slower, budget_s=4)
    assert (found.verdict, found.change.rounds, found.stopped) == ("inconclusive", 1, "budget")
    assert "6 rounds or more: with a budget_s of 12 there is time" in repr(found)
    assert gradbench.compare(slow, slower, budget_s=12).verdict is Verdict.WORSE


def _generator():
    yield 1


async def _coroutine():
    pass


async def _async_generator():
    yield 1


class _Object:
    def __call__(self):
        return _generator()


class _Lazy(nn.Module):
    def forward(self):
        yield 1


LAZY = {
    "generator": _generator,
    "partial": partial(_generator),
    "lambda": lambda: _generator(),  # noqa: PLW0108 # that it is one is the point
    "object": _Object(),
    "module": _Lazy(),
    "coroutine": _coroutine,
    "async generator": _async_generator,
    "map": lambda: map(abs, [1]),
    "iterator": lambda: iter([1]),
}


@pytest.mark.parametrize("lazy", LAZY.values(), ids=LAZY)
def test_a_function_that_returns_before_its_work_is_done_is_refused(lazy):
    for pair in ((lazy, int), (int, lazy)):
        side = "base" if pair[0] is lazy else "candidate"
        with pytest.raises(LazyResult, match=rf"^{side} returned a \w+, and .* has not run: give"):
            gradbench.compare(*pair)


def test_what_the_refusal_proposes_is_compared(tmp_path):
    gradbench.compare(lambda: list(_generator()), lambda: asyncio.run(_coroutine()), budget_s=0.05)
    with (tmp_path / "file").open("w") as file:  # an iterator, but nothing in it waits
        gradbench.compare(lambda: file, int, budget_s=0.05)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget_s": 0}, "budget_s must be above 0, not 0"),
        ({"budget_s": -1.0}, "budget_s must be above 0"),
        ({"budget_s": math.nan}, "budget_s must be above 0, not nan"),
        ({"budget_s": "1"}, "budget_s must be a number, not '1'"),
        ({"tolerance": -0.1}, "tolerance is a share from 0 up"),
        ({"tolerance": math.nan}, "tolerance is a share from 0 up"),
        ({"tolerance": math.inf}, "tolerance is a share from 0 up"),
        ({"tolerance": "1%"}, "tolerance is a share from 0 up"),
        ({"seed": None}, "seed must be a number"),
        ({"device": "moon"}, "unknown device 'moon'"),
        ({"base": 3}, "base must be a function to call, not int"),
        ({"candidate": abs}, "candidate is called without arguments"),
        ({"candidate": nn.Linear(1, 1)}, r"candidate is called without arguments .* lambda: cand"),
        ({"base": lambda x: x}, "base is called without arguments"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused_before_any_call(options, words):
    def fails():
        pytest.fail("it was called")

    with pytest.raises(GradbenchError, match=words) as caught:
        gradbench.compare(**{"base": fails, "candidate": fails, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("switched", [False, True])
def test_a_function_that_switches_grad_for_good_changes_the_other_s_turn_in_nothing(switched):
    seen = []

    def switches():
        torch.set_grad_enabled(switched)

    def look():
        seen.append(torch.is_grad_enabled())

    with torch.set_grad_enabled(not switched):
        for pair in ((switches, "base"), (None, "candidate")):
            sides = (switches, look) if pair[0] else (look, switches)
            found = gradbench.compare(*sides, budget_s=0.05)
            assert torch.is_grad_enabled() is not switched
            assert found.notes[pair[1]] == f"grad {not switched} to {switched} (put back)"
            assert f"{pair[1]}: grad" in repr(found)
    assert set(seen) == {not switched}


def test_a_function_that_leaves_inference_mode_on_is_refused():
    entered = []

    def leaves():
        mode = torch.inference_mode()
        mode.__enter__()
        entered.append(mode)

    try:
        with pytest.raises(GradbenchError, match="candidate leaves inference mode switched"):
            gradbench.compare(int, leaves)
    finally:
        for mode in reversed(entered):
            mode.__exit__(None, None, None)


def test_the_state_is_put_back_also_when_a_function_raises():
    def fails():
        torch.set_grad_enabled(False)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        gradbench.compare(int, fails)
    assert torch.is_grad_enabled()
    assert gc.isenabled()


def test_what_a_function_prints_is_printed(capsys):
    sides = (partial(print, "one"), partial(print, "two"))
    gradbench.compare(*sides, budget_s=0.05)
    assert set(capsys.readouterr().out.split()) == {"one", "two"}


def test_a_function_that_fails_late_is_not_hidden():
    calls = []

    def fails_later():
        calls.append(None)
        if len(calls) > 500:
            raise RuntimeError("the 500th call fails")

    with pytest.raises(RuntimeError, match="the 500th call fails"):
        gradbench.compare(fails_later, int)


def test_what_a_callable_raises_is_raised():
    with pytest.raises(ZeroDivisionError):
        gradbench.compare(lambda: None, lambda: 1 / 0)
