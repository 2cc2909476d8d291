"""``compare --bisect``: a repository's commits, what is refused, interruptions, foreign text."""

import contextlib
import json
import math
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from builders import net_source
from patience import PATIENCE_S
from typer.testing import CliRunner

from gradbench.analysis.bisection_jobs import Time
from gradbench.cli import app
from gradbench.comparison import (
    bisector,
    building,
    checkouts,
    commit_counts,
    commits,
    instruction_counts,
    versions,
)
from gradbench.comparison.effort import Effort
from gradbench.comparison.replicate_effort import Replication
from gradbench.comparison.replicate_results import Results
from gradbench.errors import BadModel, GradbenchError
from gradbench.exit_status import ExitStatus
from gradbench.experiment.matrix import Cell
from gradbench.experiment.model_source import ModelSource
from gradbench.gate.figure_verdicts import FigureVerdict
from gradbench.gate.result import GateResult
from gradbench.records.bisection import CellCounts, TimedCell
from gradbench.stats.replicate import Replicate
from gradbench.stats.verdicts import Verdict
from gradbench.store import bisections

HOSTILE = "[bold]x[/bold] \x1b[31mred\x1b[0m \u202edrow ::error::no <b>&amp;</b>"


class Repository:
    """A repository that grows commit by commit."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.by_subject: dict[str, str] = {}
        root.mkdir()
        self.git("init", "-q", "-b", "main")

    def git(self, *arguments: str, author: str = "Ann") -> str:
        who = ("-c", f"user.name={author}", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        answer = subprocess.run(
            ["git", *who, *arguments], cwd=self.root, check=True, capture_output=True, text=True
        )
        return answer.stdout.strip()

    def commit(self, subject: str, *, author: str = "Ann", **files: object) -> str:
        """Commit files; their names have no suffix here, and None removes one."""
        for name, content in files.items():
            path = self.root / name.replace("_", ".")
            if content is None:
                path.unlink()
            else:
                path.write_text(content if isinstance(content, str) else json.dumps(content))
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", subject, author=author)
        return self.note(subject)

    def note(self, subject: str) -> str:
        self.by_subject[subject] = self.git("rev-parse", "HEAD")
        return self.by_subject[subject]


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """Nine commits: one adds an operator, one cannot be imported, a branch saves more bytes."""
    made = Repository(tmp_path_factory.mktemp("bisect") / "my project")
    plain = net_source()
    more = net_source(before="x = x * 1")
    made.commit("first", nets_py=plain, counts_json={"muls": 0}, saved_json=256)
    made.commit("notes", notes_md="a")
    made.commit("one more operator", nets_py=more, counts_json={"muls": 1})
    made.git("checkout", "-q", "-b", "branch")
    made.commit("branch: notes", branch_md="b")
    both = net_source(before="x = x * 1", activation="torch.sin")
    made.commit("branch: keep the input", nets_py=both, saved_json=512)
    made.git("checkout", "-q", "main")
    made.commit("in the midst of it", broken_py="raise ImportError('half done')")
    made.commit("mended", broken_py=None)
    made.git("merge", "-q", "--no-ff", "-m", "merge the branch", "branch")
    made.note("merge the branch")
    made.commit(HOSTILE, author="E\u202eve", more_md="c")
    made.commit("last", more_md="d")
    made.git("checkout", "-q", "--orphan", "elsewhere")
    made.commit("an orphan")
    made.git("checkout", "-q", "main")
    return made


@pytest.fixture
def project(history, monkeypatch):
    monkeypatch.chdir(history.root)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield history
    sys.modules.pop("nets", None)
    history.git("clean", "-qfd")
    history.git("checkout", "-q", "main", "--", ".")


class Counting:
    """Counts that are read from files of the tree, in no time; ``stop_at`` is Ctrl-C."""

    def __init__(self) -> None:
        self.trees: list[Path] = []
        self.built: list[bool] = []
        self.stop_at: int | None = None

    def __call__(self, version, cells, sources, *, seed, limit_s):
        if len(self.trees) == self.stop_at:
            self.stop_at = None
            raise KeyboardInterrupt
        self.trees.append(version.tree)
        self.built.append((version.tree / "built").exists())
        if (version.tree / "broken.py").exists():
            raise commit_counts.CannotStart("ImportError: half done")
        muls = json.loads((version.tree / "counts.json").read_text())["muls"]
        saved = json.loads((version.tree / "saved.json").read_text())
        operators = {"aten.mm.default": 2} | ({"aten.mul.Tensor": muls} if muls else {})
        found = (CellCounts(cell=cell, operators=operators, saved_bytes=saved) for cell in cells)
        return tuple(found), {"torch": "2.13.0", "python": "3.11"}


@pytest.fixture
def counting(monkeypatch):
    counting = Counting()
    monkeypatch.setattr(commit_counts, "count", counting)
    return counting


MODEL = ("--model", "nets:make", "--input", "4,8", "--workload", "inference", "--device", "cpu")


@pytest.fixture
def compare(project, tmp_path):
    runner = CliRunner(env={"COLUMNS": "200"})
    places = ("--results", tmp_path / "results", "--reports", tmp_path / "reports")

    def ask(*arguments, model=MODEL):
        answer = runner.invoke(app, ["compare", *map(str, (*model, *places, *arguments))])
        assert isinstance(answer.exception, SystemExit | None), answer.exception
        return answer

    return ask


def spanned(project: Repository, good: str = "first", bad: str = "last") -> tuple[str, ...]:
    by_subject = project.by_subject
    return ("--bisect", f"{by_subject[good]}..{by_subject[bad]}", "--times", "none")


def culprits(answer) -> dict[str, dict]:
    """Return what was found, by the subjects of the suspects."""
    found = json.loads(answer.stdout)["culprits"]
    return {"; ".join(one["subject"] for one in row["suspects"]): row for row in found}


def test_each_change_is_found_at_its_commit_and_the_working_tree_is_untouched(
    project, compare, counting, tmp_path
):
    (project.root / "counts.json").write_text("not committed")
    worktrees = project.git("worktree", "list")
    answer = compare(*spanned(project), "--json")
    assert answer.exit_code == ExitStatus.REGRESSION, answer.output
    found = culprits(answer)
    assert set(found) == {"one more operator", "branch: keep the input"}
    (change, *others) = found["one more operator"]["changes"]
    assert (change["figure"], change["before"], change["after"]) == ("operators", 2, 3)
    assert change["why"] == "+1 aten.mul.Tensor"
    assert len(others) == 3  # in every mode
    files = found["branch: keep the input"]["files"]
    assert files[project.by_subject["branch: keep the input"]] == {
        "nets.py": "+1 -1",
        "saved.json": "+1 -1",
    }
    assert "uncommitted changes" in answer.stderr
    assert (project.root / "counts.json").read_text() == "not committed"
    assert project.git("worktree", "list") == worktrees
    assert not any(tree.exists() for tree in counting.trees)
    assert len(counting.trees) == len(set(counting.trees)) + 2  # both ends, twice
    content = json.loads(answer.stdout)
    assert bisections.load(Path(content["record"])).complete
    assert "one more operator" in Path(content["page"]).read_text("utf-8")


def test_along_first_parents_the_merge_is_the_commit(project, compare, counting):
    found = culprits(compare(*spanned(project), "--first-parent", "--json"))
    assert set(found) == {"one more operator", "merge the branch"}


def test_text_of_others_is_seen_and_does_nothing(project, compare, counting, tmp_path):
    answer = compare(*spanned(project), "--all")
    assert answer.exit_code == ExitStatus.REGRESSION
    (page,) = (tmp_path / "reports").iterdir()
    for text in (answer.output, page.read_text("utf-8")):
        assert "\x1b[31m" not in text
        assert "\u202e" not in text
    assert "<b>&amp;</b>" not in page.read_text("utf-8")
    ranged = compare(*spanned(project, "merge the branch"), "--all")
    assert "no difference between" in ranged.stdout
    hostile = compare("--bisect", "main~3..main~1", "--times", "none", "--all")
    assert "\\x1b[31mred" in hostile.stdout
    assert "[bold]x[/bold]" in hostile.stdout
    assert not any(line.startswith("::") for line in hostile.output.splitlines())


def test_commits_that_cannot_be_imported_are_named_with_the_reason(
    project, compare, counting, tmp_path
):
    made = project.by_subject
    asked = ("--bisect", f"{made['one more operator']}..{made['merge the branch']}")
    answer = compare(*asked, "--times", "none", "--first-parent", "--json")
    by_subject = {one["subject"]: one for one in json.loads(answer.stdout)["commits"]}
    assert set(culprits(answer)) == {"merge the branch"}
    looked_at = by_subject.get("in the midst of it")
    assert looked_at is None or looked_at["reason"] == "cannot be measured: ImportError: half done"
    ended = compare("--bisect", f"{made['first']}..{made['in the midst of it']}")
    assert ended.exit_code == ExitStatus.USAGE
    assert "the bad commit" in ended.stderr.splitlines()[-1]
    assert "ImportError: half done" in ended.stderr.splitlines()[-1]


def test_only_commits_that_touch_the_paths_are_looked_at(project, compare, counting):
    answer = compare(*spanned(project), "--json", "--", "nets.py")
    found = json.loads(answer.stdout)
    assert set(culprits(answer)) == {"one more operator", "branch: keep the input"}
    subjects = {one["subject"] for one in found["commits"]}
    assert subjects <= {"first", "one more operator", "branch: keep the input", "last",
                        "merge the branch"}  # fmt: skip


def test_an_interruption_keeps_what_was_counted_and_is_gone_on_with(project, compare, counting):
    whole = compare(*spanned(project), "--json")
    trees, counting.trees, counting.stop_at = len(counting.trees), [], 4
    stopped = compare(*spanned(project))
    assert stopped.exit_code == ExitStatus.INTERRUPTED
    said = stopped.stderr.splitlines()[-1]
    assert "4 counts" in said
    assert "gradbench compare --resume " in said
    assert "--model nets.make" in said
    assert project.git("worktree", "list").count("\n") == 0
    again = compare("--resume", "latest", "--json", model=("--model", "nets.make"))
    assert again.exit_code == ExitStatus.REGRESSION, again.output
    assert culprits(again) == culprits(whole)
    assert len(counting.trees) == trees


def test_what_a_resumed_bisection_cannot_heed_is_refused(project, compare, counting, tmp_path):
    counting.stop_at = 2
    compare(*spanned(project))
    (path,) = (tmp_path / "results" / "bisections").iterdir()

    def refused(words, *arguments, model=("--model", "nets:make")):
        answer = compare("--resume", path, *arguments, model=model)
        assert answer.exit_code == ExitStatus.USAGE, answer.output
        assert words in answer.stderr.splitlines()[-1]
        assert answer.stdout == ""

    refused("runs code that the run's file names, nets:make", model=())
    refused("leave out --seed", "--seed", 3)
    refused(
        "leave out --threshold", "--threshold", 0.03
    )  # as it is by default, and typed all the same
    refused("leave out --input", model=MODEL[:4])
    refused("leave out --bisect", "--bisect", "main~1..main")
    row = json.loads(path.read_text())
    path.write_text(json.dumps({**row, "commits": row["commits"][1:]}))
    refused("has a parent that does not stand before it")
    foreign = {**row, "good": "1" * 40, "border": [{**row["border"][0], "id": "1" * 40}]}
    foreign["commits"] = [{**row["commits"][-1], "parents": ["1" * 40]}]
    foreign["counted"] = []
    path.write_text(json.dumps(foreign))
    refused("no revision")
    path.write_text(json.dumps({**row, "facts": {"torch": "1.0", "python": "3"}}))
    refused("it was begun with torch 1.0")


def test_a_budget_that_ends_leaves_the_rest_to_another_time(project, compare, counting):
    answer = compare(*spanned(project), "--budget", "1e-9")
    assert answer.exit_code == ExitStatus.INCONCLUSIVE
    assert "it is not finished" in answer.stdout
    assert "go on with: gradbench compare --resume" in answer.stdout


def test_a_build_command_is_run_in_each_commit_and_asked_for_again_by_who_goes_on(
    project, compare, counting
):
    counting.stop_at = 3
    stopped = compare(*spanned(project), "--build", "touch built")
    assert stopped.exit_code == ExitStatus.INTERRUPTED, stopped.output
    assert "--build 'touch built'" in stopped.stderr.splitlines()[-1]
    go_on = ("--resume", "latest", "--json")
    for build in ((), ("--build", "touch other")):
        refused = compare(*go_on, *build, model=("--model", "nets:make"))
        assert refused.exit_code == ExitStatus.USAGE
        assert "give it again, --build 'touch built'" in refused.stderr.splitlines()[-1]
    again = compare(*go_on, "--build", "touch built", model=("--model", "nets:make"))
    assert set(culprits(again)) == {"one more operator", "branch: keep the input"}
    assert set(counting.built) == {True}


def test_a_commit_that_cannot_be_built_cannot_be_measured(project, compare, counting):
    ended = compare(
        *spanned(project), "--build", "test ! -e branch.md || (echo no compiler; exit 3)"
    )
    assert ended.exit_code == ExitStatus.USAGE
    said = ended.stderr.splitlines()[-1]
    assert "the bad commit" in said
    assert "ended early with exit status 3 (no compiler)" in said


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        (("--bisect", "main"), "is not GOOD..BAD"),
        (("--bisect", ".."), "is not GOOD..BAD"),
        (("--bisect", "main~1...main"), "is not GOOD..BAD"),
        (("--bisect", "main..nowhere"), "no revision 'nowhere'"),
        (("--bisect", "--all..main"), "no revision '--all'"),
        (("--bisect", "main..main~1"), "is no ancestor of"),
        (("--bisect", "main.."), "both ends of main.. are the commit"),
        (("--bisect", "elsewhere..main"), "have no commit in common"),
        (("--bisect", "branch..main~3"), "they part at"),
        (("--bisect", "branch..main", "--first-parent"), "is not among the first parents"),
        (("--bisect", "main~2..main", "--", "nowhere.py"), "touches nowhere.py"),
        (("--bisect", "main~2..main", "--times", "some"), "--times is one of silent, all, none"),
        (("--bisect", "main~2..main", "--base", "main"), "leave out --base"),
        (("--bisect", "main~2..main", "--resume", "latest"), "leave out --bisect"),
        (("--resume", "nowhere"), "no bisection 'nowhere'"),
        (("--base", "main", "--first-parent"), "goes with --bisect"),
        (("--base-python", "python", "--build", "make"), "--build goes with --base"),
        (("--base", "main", "--", "nets.py"), "goes with --bisect"),
        (("main",), "a revision to compare with, with --base"),
        (("--base", "main", "--reports", "elsewhere"), "--reports goes with --bisect"),
    ],
)
def test_a_range_that_is_none_costs_one_line_and_status_2(compare, counting, asked, complaint):
    model = () if asked[0] == "--resume" else MODEL
    answer = compare(*asked, model=model)
    assert answer.exit_code == ExitStatus.USAGE, answer.output
    assert answer.stdout == ""
    assert complaint in answer.stderr.splitlines()[-1]
    assert "Traceback" not in answer.output
    assert counting.trees == []


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("main~3", "which of 5 commits it was: gradbench compare --bisect 'main~3..HEAD'"),
        ("main~1", ""),  # the one commit
        ("main", ""),  # what is worse is not committed
        ("elsewhere", ""),
    ],
)
def test_a_comparison_that_fails_names_the_command_that_finds_the_commit(
    project, monkeypatch, base, words
):
    cell = Cell(model="nets.make", workload="inference", grad_mode="no_grad", batch_size=4)
    worse = FigureVerdict(cell=cell, meter="saved_for_backward", verdict=Verdict.WORSE, change=None,
                          baseline=1.0, candidate=2.0, unit="bytes", reason="+1 B")  # fmt: skip
    result = GateResult(figure_verdicts=(worse,), not_compared=(), measured=1)
    monkeypatch.setattr(versions, "compare", lambda *_, **__: result)
    answer = CliRunner().invoke(app, ["compare", "--base", base, *MODEL])
    assert answer.exit_code == ExitStatus.REGRESSION, answer.output
    said = [line for line in answer.stderr.splitlines() if "it was:" in line]
    assert len(said) == bool(words)
    for line in said:
        assert words in line
        assert "--model nets:make" in line
        assert "--input 4,8" in line


def test_ends_in_the_wrong_order_and_ends_that_part_have_a_remedy_each(project):
    made = project.by_subject
    with pytest.raises(GradbenchError, match="give the older one first"):
        commits.between(project.root, f"{made['last']}..{made['first']}", first_parent=False)
    fork = made["one more operator"][:10]
    with pytest.raises(GradbenchError, match=rf"give {fork}\.\."):
        commits.between(project.root, f"branch..{made['mended']}", first_parent=False)


def test_a_range_holds_parents_before_children_and_begins_at_the_good_commit(project):
    made = project.by_subject
    span = commits.between(project.root, f"{made['notes']}..main", first_parent=False)
    places = {commit.id: place for place, commit in enumerate(span.commits)}
    assert len(span.commits) == 8
    assert span.commits[-1].id == made["last"]
    assert [one.id for one in span.border] == [made["notes"]]
    for commit in span.commits:
        assert all(places.get(one, -1) < places[commit.id] for one in commit.parents)
    line = commits.between(project.root, f"{made['notes']}..main", first_parent=True)
    assert [one.subject for one in line.commits][:3] == [
        "one more operator",
        "in the midst of it",
        "mended",
    ]
    assert all(len(one.parents) == 1 for one in line.commits)


def test_paths_are_those_of_the_folder_that_the_user_stands_in(tmp_path):
    made = Repository(tmp_path / "paths")
    made.commit("first", a_txt="1\n")
    inner = made.root / "inner"
    inner.mkdir()
    (inner / "b.txt").write_text("1\n", "utf-8")
    made.commit("second")
    made.commit("third", a_txt="2\n")
    paths = commits.from_root(Path("inner"), ["b.txt"])
    span = commits.between(made.root, "main~2..main", first_parent=False, paths=paths)
    assert [one.subject for one in span.commits] == ["second", "third"]  # and the end
    assert commits.from_root(Path("inner"), [":/a.txt"]) == (":/a.txt",)
    with pytest.raises(GradbenchError, match=r"touches b\.txt"):
        commits.between(made.root, "main~2..main", first_parent=False, paths=["b.txt"])


def test_the_files_of_a_commit_are_those_of_its_first_parent_or_all(project, tmp_path):
    made = Repository(tmp_path / "files")
    made.commit("first", a_txt="1\n2\n")
    (made.root / "b").write_bytes(bytes(range(256)))
    made.commit("second", a_txt="1\n", **{"odd\tname": "x\n"})
    span = commits.between(made.root, "main~1..main", first_parent=False)
    files = {one.path: one.words for one in commits.changed_files(made.root, span.commits[0])}
    assert files == {"a.txt": "+0 -1", "b": "binary", "odd\tname": "+1 -0"}
    first = commits.changed_files(made.root, span.border[0])
    assert [(one.path, one.words) for one in first] == [("a.txt", "+2 -0")]
    merge = project.by_subject["merge the branch"]
    span = commits.between(project.root, f"{merge}~1..{merge}", first_parent=True)
    merged = {one.path for one in commits.changed_files(project.root, span.commits[-1])}
    assert merged == {"branch.md", "nets.py", "saved.json"}


CELL = Cell(model="nets.make", workload="training", grad_mode="global_on", batch_size=4)
SOURCE = {"nets.make": ModelSource(build="nets:make", input=("B,8",))}


def test_a_commit_is_counted_from_its_own_tree(project):
    """One process; nets:gone is not in it, and the other model is counted all the same."""
    gone = Cell(model="nets.gone", workload="inference", grad_mode="no_grad", batch_size=4)
    sources = {**SOURCE, "nets.gone": ModelSource(build="nets:gone", input=("B,8",))}
    with checkouts.opened_project(project.root, at_commits=True) as opened:
        version = opened.version("candidate", project.root)
        (one, other), facts = commit_counts.count(
            version, (CELL, gone), sources, seed=0, limit_s=PATIENCE_S
        )
    assert one.operators is not None
    assert one.operators["aten.mul.Tensor"] >= 1
    assert one.operators["aten.sin.default"] == 1
    assert one.saved_bytes
    assert other.skipped.startswith("model 'nets:gone' cannot be imported: ")
    assert other.skipped.count("nets:gone") == 1
    assert set(facts) >= {"torch", "python"}


@pytest.mark.slow
def test_real_commits_are_counted_timed_and_found(tmp_path, monkeypatch):
    made = Repository(tmp_path / "project")
    nap = "import time; time.sleep(0.003)"
    made.commit("first", nets_py=net_source())
    made.commit("broken", nets_py="raise ImportError('half done')")
    made.commit("a nap", nets_py=net_source(before=nap))
    made.commit("a sine", nets_py=net_source(before=nap, activation="torch.sin"))
    monkeypatch.chdir(made.root)
    monkeypatch.setattr(sys, "path", list(sys.path))
    quick = Replication(turns=4, least_turns=3, slice_s=0.001, warm_up_s=0.0, cell_s=0.01,
                        least_rounds=4)  # fmt: skip
    monkeypatch.setattr(
        "gradbench.comparison.effort.Effort",
        lambda **given: Effort(**{"replication": quick, **given}),
    )
    asked = ("--bisect", "main~3..main", "--grad-mode", "global_on", "--processes", "3",
             "--times", "all")  # fmt: skip
    answer = CliRunner().invoke(app, ["compare", *MODEL, *asked, "--json"])
    sys.modules.pop("nets", None)
    assert answer.exit_code == ExitStatus.REGRESSION, answer.output
    found = culprits(answer)
    (saved,) = [one for one in found["a sine"]["changes"] if one["figure"] == "saved_bytes"]
    assert saved["before"] != saved["after"]
    (slow,) = [row for name, row in found.items() if "a nap" in name]
    assert [one["subject"] for one in slow["suspects"]] == ["broken", "a nap"]
    (change,) = slow["changes"]
    assert change["figure"] == "step_time"
    assert "no change in operations" in change["why"]
    assert [one.name for one in tmp_path.iterdir()] == ["project"]


# Times, with replicates that are drawn


class Drawn:
    """A replicator whose ratios are those of ``slow.json`` in the trees, with a little noise."""

    made: ClassVar[list["Drawn"]] = []
    stop_at: ClassVar[int | None] = None
    replicates: ClassVar[int] = 0

    def __init__(self, base, candidate, **how):
        self.sides, self.how, self.results = (base, candidate), how, Results()
        self.drawn: dict[Cell, list[float]] = {}
        self.rng = random.Random(how["layout_seed"])
        Drawn.made.append(self)

    def examine(self, cells, *, readings):
        assert readings == 1  # bytes are counted by commit
        if (self.sides[1].tree / "apart.json").exists():
            self.results.apart.update(dict.fromkeys(cells, "a compiled extension"))

    def replicate(self, cells):
        Drawn.replicates += 1
        if Drawn.replicates == Drawn.stop_at:
            raise KeyboardInterrupt
        slow = [json.loads((side.tree / "slow.json").read_text()) for side in self.sides]
        for cell in cells:
            if slow[1] is None:
                self.results.failures[cell] = {"candidate": "ValueError: out of patience"}
                continue
            log = slow[1] - slow[0] + self.rng.gauss(0, 0.003)
            self.drawn.setdefault(cell, []).append(log)

    def replicates_of(self, cell):
        return [Replicate([[1.0]], [[math.exp(log)]]) for log in self.drawn.get(cell, [])]


@pytest.fixture
def line(tmp_path, monkeypatch):
    """Nine commits in a line; the sixth is slower, the fourth fails in its turns."""
    made = Repository(tmp_path / "line")
    plain = {"counts_json": {"muls": 0}, "saved_json": 1, "nets_py": net_source()}
    made.commit("c0", slow_json=0.0, **plain)
    for number in range(1, 9):
        slow = "null" if number == 4 else 0.2 if number >= 6 else 0.0
        made.commit(f"c{number}", slow_json=slow, notes_md=str(number))
    monkeypatch.chdir(made.root)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(bisector, "Replicator", Drawn)
    for name, value in (("made", []), ("stop_at", None), ("replicates", 0)):
        monkeypatch.setattr(Drawn, name, value)
    yield made
    sys.modules.pop("nets", None)


def timed(tmp_path, *arguments, model=(*MODEL, "--grad-mode", "no_grad")):
    places = ("--results", tmp_path / "results", "--reports", tmp_path / "reports")
    answer = CliRunner().invoke(app, ["compare", *map(str, (*model, *places, *arguments))])
    assert isinstance(answer.exception, SystemExit | None), answer.exception
    return answer


def test_a_slower_step_is_found_by_times_and_its_parent_confirms(line, counting, tmp_path):
    answer = timed(tmp_path, "--bisect", "main~8..main", "--json")
    assert answer.exit_code == ExitStatus.REGRESSION, answer.output
    found = culprits(answer)
    assert set(found) == {"c6"}
    (change,) = found["c6"]["changes"]
    assert (change["figure"], change["unit"]) == ("step_time", "ratio")
    assert change["interval"][0] < change["after"] < change["interval"][1]
    assert change["after"] == pytest.approx(1.22, rel=0.02)
    assert change["compared_with"] == line.by_subject["c5"]
    pairs = [(each.sides[0].tree.name, each.sides[1].tree.name) for each in Drawn.made]
    assert len(pairs) == len(set(pairs)) <= 1 + 4 + 1
    assert line.git("worktree", "list").count("\n") == 0


def test_a_version_is_built_while_no_core_is_held_for_its_build_may_measure_too(
    line, counting, tmp_path, monkeypatch
):
    held, built = [], []

    @contextlib.contextmanager
    def alone(*_, **__):
        held.append("cores")
        yield
        held.clear()

    monkeypatch.setattr(bisector, "alone", alone)
    monkeypatch.setattr(building, "build", lambda *_: built.append(list(held)))
    monkeypatch.setattr(Drawn, "stop_at", 1)
    assert timed(tmp_path, "--bisect", "main~8..main").exit_code == ExitStatus.INTERRUPTED
    held.clear()
    counted = len(built)
    timed(tmp_path, "--resume", "latest", model=("--model", "nets:make"))
    assert len(built) > counted  # what was counted before is built again to be timed
    assert not any(built)


def test_times_of_before_an_interruption_are_kept(line, counting, tmp_path, monkeypatch):
    monkeypatch.setattr(Drawn, "stop_at", 8)
    stopped = timed(tmp_path, "--bisect", "main~8..main")
    assert stopped.exit_code == ExitStatus.INTERRUPTED
    (path,) = (tmp_path / "results" / "bisections").iterdir()
    before = bisections.load(path)
    assert sum(len(one.logs) for one in before.timed) == 7
    again = timed(tmp_path, "--resume", "latest", "--json", model=("--model", "nets:make"))
    assert set(culprits(again)) == {"c6"}
    after = {(one.base, one.commit): one.logs for one in bisections.load(path).timed}
    for one in before.timed:
        assert after[one.base, one.commit][: len(one.logs)] == one.logs
    seeds = [each.how["layout_seed"] for each in Drawn.made]
    assert len(set(seeds)) == len(seeds)  # no replicate is made twice


def test_replicates_of_one_process_are_not_put_beside_those_of_pairs(line, counting, tmp_path):
    ends = {"base": line.by_subject["c0"], "commit": line.by_subject["c8"]}
    known = TimedCell(**ends, cell=CELL, logs=(9.0,), means=(9.1,))
    pair = bisector._Pair(known.base, known.commit, Drawn(None, None, layout_seed=0), {CELL: known})
    pair.replicator.drawn[CELL] = [0.5]
    asked = bisector.Bisector.__new__(bisector.Bisector)
    found = asked._timed(pair, CELL)
    assert found.logs == (9.0, pytest.approx(0.5))
    assert found.means == (9.1, pytest.approx(0.5))
    pair.replicator.results.apart[CELL] = "a compiled extension"
    assert asked._timed(pair, CELL).logs == (pytest.approx(0.5),)


def test_a_cell_once_timed_in_two_processes_stays_so_and_its_replicates_add_up(line, monkeypatch):
    why = "it failed, number 1"
    known = TimedCell(base="c0", commit="c8", cell=CELL, logs=(9.0,), means=(9.0,), apart=why)
    asked = bisector.Bisector.__new__(bisector.Bisector)
    asked.record = SimpleNamespace(timed=(known,), sources={}, seed=0)
    asked._pair = asked._how = None
    trees = SimpleNamespace(at=lambda commit, name: commit)
    pair = asked._pair_of(Time(base="c0", commit="c8", cells=(CELL,)), trees)
    pair.replicator.drawn[CELL] = [0.5]
    assert asked._timed(pair, CELL).logs == (9.0, pytest.approx(0.5))


def test_a_step_that_fails_in_its_turns_leaves_a_range(line, counting, tmp_path):
    line.commit("c9", slow_json="null", more_md="1")
    line.commit("c10", slow_json=0.5, more_md="2")
    answer = timed(tmp_path, "--bisect", "main~2..main", "--json")
    assert set(culprits(answer)) == {"c9; c10"}
    (record,) = (tmp_path / "results" / "bisections").iterdir()
    assert any("out of patience" in one.failure for one in bisections.load(record).timed)


class Executed:
    """A counter whose instructions are those of ``slow.json`` in the trees; None cannot be."""

    asked: ClassVar[list[tuple[str, str]]] = []

    def __init__(self, replicator, *, budget, say):
        self.sides, self.results, self.say = replicator.sides, replicator.results, say

    def count(self, cells):
        Executed.asked.append(tuple(side.tree.name for side in self.sides))
        self.say("instructions: starting under valgrind")
        slow = [json.loads((side.tree / "slow.json").read_text()) for side in self.sides]
        for cell in cells:
            if None in slow:
                self.results.uncounted[cell] = "killed by SIGSEGV"
                continue
            counts = [round(1e6 * (1 + more)) for more in slow]
            self.results.operations[cell] = tuple({"instructions": one} for one in counts)


@pytest.fixture
def executed(monkeypatch):
    monkeypatch.setattr(bisector, "InstructionCounter", Executed)
    monkeypatch.setattr(instruction_counts, "obstacle", lambda: "")
    monkeypatch.setattr(Executed, "asked", [])
    return Executed.asked


def test_instructions_are_counted_before_any_time_and_kept_by_an_interruption(
    line, counting, executed, tmp_path, monkeypatch
):
    counting.stop_at = 3  # both ends are counted by then, and their instructions twice
    stopped = timed(tmp_path, "--bisect", "main~8..main", "--instructions")
    assert stopped.exit_code == ExitStatus.INTERRUPTED, stopped.output
    (path,) = (tmp_path / "results" / "bisections").iterdir()
    assert [one.counts for one in bisections.load(path).instruction_counts] == [
        (10**6, 1_200_000)
    ] * 2
    go_on = ("--resume", "latest", "--json")
    typed = timed(tmp_path, *go_on, "--instructions", model=("--model", "nets:make"))
    assert "leave out --instructions" in typed.stderr.splitlines()[-1]
    with monkeypatch.context() as without:
        without.setattr(instruction_counts, "obstacle", lambda: "no valgrind")
        refused = timed(tmp_path, *go_on, model=("--model", "nets:make"))
        assert refused.exit_code == ExitStatus.USAGE
        assert "it counts instructions, which cannot be done here: no valgrind" in refused.stderr
    answer = timed(tmp_path, *go_on, model=("--model", "nets:make"))
    assert answer.exit_code == ExitStatus.REGRESSION, answer.output
    (culprit,) = culprits(answer).values()
    (change,) = culprit["changes"]
    assert (change["figure"], change["before"], change["after"]) == ("instructions", 10**6, 1.2e6)
    assert culprit["suspects"][-1]["subject"] == "c6"
    assert Drawn.replicates == 0
    assert len(executed) == len(set(executed)) + 1  # the ends, twice
    assert line.git("worktree", "list").count("\n") == 0


def test_a_base_that_imports_the_candidate_s_code_is_why_no_instructions_are_counted(
    line, counting, executed, tmp_path, monkeypatch
):
    def refuse(*_, **_how):
        raise BadModel("the base imports nets from the candidate's tree")

    monkeypatch.setattr(Drawn, "examine", refuse)
    answer = timed(tmp_path, "--bisect", "main~8..main", "--instructions", "--json")
    found = json.loads(answer.stdout)
    assert any("instructions not counted" in note for note in found["notes"])
    assert any("could not be timed" in note for note in found["notes"])
    assert executed == []
