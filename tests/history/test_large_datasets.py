"""Of a dataset only what is asked for is read, and whatever befalls a pack, it is a dataset."""

import json
import subprocess
import sys

import pytest
from builders import as_rows, measured_block, run_at, write_run
from fsspec.implementations.memory import MemoryFileSystem
from typer.testing import CliRunner

from gradbench.cli import app
from gradbench.errors import Impossible, StoreError
from gradbench.history import dataset_store, parquet_file, parquet_read, parquet_write, series
from gradbench.history.chosen import Chosen, parse_since
from gradbench.history.dataset_store import DatasetStore
from gradbench.history.parquet_read import read
from gradbench.history.parquet_write import Packer, pack

pytest.importorskip("pyarrow")

MODELS = ("conv", "linear", "mlp")


def fleet_run(number, **facts):
    """Return a run of several models; its numbers are its own."""
    outcomes = [
        outcome
        for model in MODELS
        for device in ("cpu", "cuda")
        for outcome in measured_block(
            ["global_on", "no_grad"],
            model=model,
            device=device,
            step_ns={"global_on": 2000 + number, "no_grad": 1000 + number},
            rounds=40,
        )
    ]
    return run_at(number, outcomes, **facts)


RUNS = [fleet_run(24 * day, host=f"host{day % 2}") for day in (0, 1, 2, 30, 31)]
"""Days of two months."""


@pytest.fixture
def small_groups(monkeypatch):
    """Let a few rows be what a few thousand are in a large dataset."""
    monkeypatch.setattr(parquet_write, "ROWS_A_GROUP", 4)
    monkeypatch.setattr(dataset_store, "GAP_BYTES", 0)
    monkeypatch.setattr(parquet_file, "FOOTER_BYTES", 2**15)


@pytest.fixture
def packed(tmp_path, small_groups):
    pack(RUNS, str(tmp_path / "pack"))
    return tmp_path / "pack"


@pytest.fixture
def fetched(monkeypatch):
    """Return the list of what is fetched of files from now on, but for their footers."""
    ranges = []
    plain = DatasetStore.read

    def read_ranges(store, wanted):
        sizes = {file.name: file.nbytes for file in store.files()}
        ranges.extend(one for one in wanted if one.end < sizes.get(one.name, 0))
        return plain(store, wanted)

    monkeypatch.setattr(DatasetStore, "read", read_ranges)
    return ranges


def files(folder):
    return sorted(folder.rglob("*.parquet"))


def shown(figures, chosen):
    found, warnings = series.history(figures, chosen=chosen)
    assert warnings == []
    return [(one.cell, one.figure, one.where, one.values.tolist(), one.labels) for one in found]


CHOICES = (
    Chosen(),
    Chosen(models=("linear",)),
    Chosen(models=("linear", "mlp"), grad_modes=("no_grad",), meters=("step_time",)),
    Chosen(devices=("cuda",), meters=("peak_transient",)),
    Chosen(since="2026-01-03"),
    Chosen(since="2026-02-01", models=("conv",)),
    Chosen(commits=frozenset({f"{24:040x}", f"{48:040x}"})),
    Chosen(models=("new",), renamed={"mlp": "new"}),
    Chosen(models=("nothing",)),
    Chosen(since="2027-01-01"),
)


@pytest.mark.parametrize("chosen", CHOICES)  # a set's words have another order in each process
def test_what_is_asked_of_a_dataset_is_what_is_left_of_all_runs(packed, chosen):
    assert shown(read(str(packed), chosen), chosen) == shown(series.of(RUNS), chosen)


def fetched_bytes(fetched, packed, chosen):
    fetched.clear()
    read(str(packed), chosen)
    return sum(one.end - one.start for one in fetched)


@pytest.mark.parametrize(
    "chosen",
    [Chosen(models=("linear",)), Chosen(meters=("step_time",)), Chosen(since="2026-02-01")],
    ids=str,
)
def test_what_is_not_asked_for_is_not_fetched(packed, fetched, chosen):
    everything = fetched_bytes(fetched, packed, Chosen())
    assert 0 < fetched_bytes(fetched, packed, chosen) < everything * 0.6


def test_raw_rounds_are_never_fetched(packed, fetched):
    of_rounds = 0
    for path in files(packed):
        metadata = parquet_file.pyarrow()[1].ParquetFile(path).metadata
        columns = range(metadata.num_columns)
        chunks = [
            metadata.row_group(g).column(c) for g in range(metadata.num_row_groups) for c in columns
        ]
        of_rounds += sum(c.total_compressed_size for c in chunks if "values" in c.path_in_schema)
    size = sum(path.stat().st_size for path in files(packed))
    assert fetched_bytes(fetched, packed, Chosen()) < size - of_rounds


def test_a_month_that_is_not_asked_for_is_not_opened(packed):
    files(packed)[0].write_bytes(b"words")  # of January
    assert read(str(packed), Chosen(since="2026-02-01")).warnings == []
    assert len(read(str(packed)).warnings) == 1


def test_a_footer_longer_than_was_fetched_at_first_is_fetched(packed, monkeypatch):
    monkeypatch.setattr(parquet_file, "FOOTER_BYTES", 64)
    assert as_rows(read(str(packed))) == as_rows(series.of(RUNS))


def test_parts_that_are_fetched_one_after_the_other_make_the_same(packed, monkeypatch):
    monkeypatch.setattr(parquet_read, "AT_ONCE_BYTES", 1)
    assert as_rows(read(str(packed))) == as_rows(series.of(RUNS))


def test_more_rows_than_an_answer_has_are_left_out_and_said(packed, monkeypatch):
    first = len(series.of(RUNS[:3]).frame)
    monkeypatch.setattr(parquet_file, "MOST_ROWS", first)
    figures = read(str(packed))
    assert len(figures.frame) == first
    (words,) = figures.warnings
    assert "ask for less, by --model, --meter or --since" in words


def test_files_that_unpack_to_too_much_together_are_left_out_and_said(packed, monkeypatch):
    """Each of them is small: many small files are as large as one."""
    sizes = []
    check = parquet_file.Footer.check

    def noted(footer, *what):
        sizes.append(check(footer, *what)[1])
        return check(footer, *what)

    monkeypatch.setattr(parquet_file.Footer, "check", noted)
    whole = read(str(packed))
    assert whole.warnings == []
    assert len(sizes) > 1
    most = sum(sizes) - 1
    monkeypatch.setattr(parquet_file, "MOST_BYTES", most)
    figures = read(str(packed))
    assert 0 < len(figures.frame) < len(whole.frame)
    (words,) = figures.warnings
    assert f"makes more than {most:,} bytes: it is left out; ask for less" in words


def test_files_with_the_same_thing_wrong_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_write, "RUNS_A_FILE", 1)
    pack(RUNS, str(tmp_path))
    for path in files(tmp_path):
        path.write_bytes(b"words and words")
    *named, counted = read(str(tmp_path)).warnings
    assert len(named) == 3
    assert counted.startswith("and 2 more files: ")


# --- packing


def as_plain(path):
    return parquet_file.pyarrow()[1].read_table(path).to_pylist()


def test_a_pack_that_is_killed_leaves_a_dataset_and_the_next_adds_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_write, "RUNS_A_FILE", 1)
    plain, left = DatasetStore.write, [2]

    def killed_at_the_third(store, name, content):
        if not left:
            raise KeyboardInterrupt
        left[0] -= 1
        if not left[0]:
            left.clear()
        plain(store, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(DatasetStore, "write", killed_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            pack(RUNS, str(tmp_path))
    assert as_rows(read(str(tmp_path))) == as_rows(series.of(RUNS[:2]))
    added = pack(RUNS, str(tmp_path))
    assert (added.runs, added.before) == (3, 2)
    assert as_rows(read(str(tmp_path))) == as_rows(series.of(RUNS))


def packed_one_by_one(folder, runs):
    for run in runs:
        pack([run], folder)


SMALL = [run_at(number) for number in range(8)]


@pytest.fixture
def few_files(monkeypatch):
    monkeypatch.setattr(parquet_write, "SMALL_FILES", 4)


def test_many_small_files_become_few_and_say_the_same(tmp_path, few_files):
    packed_one_by_one(str(tmp_path), SMALL)
    assert len(files(tmp_path)) < 4
    assert as_rows(read(str(tmp_path))) == as_rows(series.of(SMALL))
    assert pack(SMALL, str(tmp_path)).before == len(SMALL)
    rows = as_plain(files(tmp_path)[0])
    assert all(row["values"] for row in rows)


def test_a_pack_killed_between_the_large_file_and_the_small_ones_counts_each_run_once(
    few_files, monkeypatch
):
    where = "memory://killed/pack"

    def killed(store, names):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DatasetStore, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            packed_one_by_one(where, SMALL)
    assert len(DatasetStore(where).files()) == 5
    assert as_rows(read(where)) == as_rows(series.of(SMALL[:4]))
    packed_one_by_one(where, SMALL)
    assert as_rows(read(where)) == as_rows(series.of(SMALL))


def test_a_reader_whose_files_were_put_together_meanwhile_looks_again(tmp_path, monkeypatch):
    packed_one_by_one(str(tmp_path), SMALL[:4])
    before = DatasetStore(str(tmp_path)).files()
    monkeypatch.setattr(parquet_write, "SMALL_FILES", 4)
    pack([SMALL[4]], str(tmp_path))
    plain, listings = DatasetStore.files, [before]
    monkeypatch.setattr(
        DatasetStore, "files", lambda store: listings.pop() if listings else plain(store)
    )
    assert as_rows(read(str(tmp_path))) == as_rows(series.of(SMALL[:5]))


@pytest.mark.parametrize("name", ["0.parquet", "~.parquet"], ids=["first", "last"])
def test_a_copy_that_a_killed_pack_left_goes_with_the_others(tmp_path, few_files, name):
    packed_one_by_one(str(tmp_path), SMALL[:3])
    one = files(tmp_path)[0]
    one.with_name(name).write_bytes(one.read_bytes())
    pack([SMALL[3]], str(tmp_path))
    assert len(files(tmp_path)) == 1
    assert as_rows(read(str(tmp_path))) == as_rows(series.of(SMALL[:4]))


@pytest.mark.parametrize("new", [(), (run_at(4),), (run_at(24 * 40),)])
def test_parts_of_a_large_file_that_a_killed_pack_left_go_with_the_next(
    tmp_path, monkeypatch, few_files, new
):
    """The joined file is too large to be one of those that are put together."""
    monkeypatch.setattr(parquet_write, "RUNS_A_FILE", 4)
    plain = DatasetStore.remove

    def killed(store, names):
        plain(store, names[:1])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DatasetStore, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            packed_one_by_one(str(tmp_path), SMALL[:4])
    assert len(files(tmp_path)) == 4  # the large one, and three of its parts
    assert pack([*SMALL[:4], *new], str(tmp_path)).before == 4
    assert len(files(tmp_path)) == 1 + len(new)
    assert as_rows(read(str(tmp_path))) == as_rows(series.of([*SMALL[:4], *new]))


def test_a_copy_without_raw_rounds_takes_no_other_s_place(tmp_path, few_files):
    packed_one_by_one(str(tmp_path), SMALL[:3])
    pack(SMALL[:1], str(tmp_path / "other"), rounds=False)
    (bare,) = files(tmp_path / "other")
    bare.rename(files(tmp_path)[0].with_name("0.parquet"))
    (tmp_path / "other" / bare.parent.name).rmdir()
    pack([SMALL[3]], str(tmp_path))
    rows = [row for path in files(tmp_path) for row in as_plain(path)]
    assert {row["run"] for row in rows if row["values"]} == {run.name for run in SMALL[:4]}


@pytest.mark.parametrize("listing", [1, 2], ids=["as it begins", "as it ends"])
def test_a_pack_whose_files_were_put_together_by_another_packs_its_runs(
    tmp_path, monkeypatch, few_files, listing
):
    packed_one_by_one(str(tmp_path), SMALL[:3])
    before = DatasetStore(str(tmp_path)).files()
    pack([SMALL[3]], str(tmp_path))
    plain, calls = DatasetStore.files, []

    def stale(store):
        calls.append(store)
        return before if len(calls) == listing else plain(store)

    with monkeypatch.context() as patch:
        patch.setattr(DatasetStore, "files", stale)
        assert pack(SMALL[:5], str(tmp_path)).before == 4
    assert as_rows(read(str(tmp_path))) == as_rows(series.of(SMALL[:5]))


def test_a_small_file_that_is_damaged_stays_as_it_is(tmp_path, few_files):
    packed_one_by_one(str(tmp_path), SMALL[:3])
    damaged = files(tmp_path)[0]
    damaged.write_bytes(damaged.read_bytes()[:-9])
    packed_one_by_one(str(tmp_path), SMALL[3:6])
    assert damaged in files(tmp_path)
    assert as_rows(read(str(tmp_path))) == as_rows(series.of(SMALL[1:6]))


def test_a_run_without_a_figure_is_packed_once(tmp_path):
    empty = run_at(0, [])
    assert pack([empty], str(tmp_path)).runs == 1
    assert pack([empty], str(tmp_path)).before == 1


def test_a_file_of_before_the_footer_had_the_runs_says_which_it_has(tmp_path):
    pack(SMALL[:2], str(tmp_path))
    (path,) = files(tmp_path)
    _, pq = parquet_file.pyarrow()
    mark = {parquet_file.MARK: b'{"schema": 1, "axes": []}'}
    pq.write_table(pq.read_table(path, partitioning=None).replace_schema_metadata(mark), path)
    with Packer(str(tmp_path)) as packer:
        assert [packer.has(run.name) for run in SMALL[:3]] == [True, True, False]


# --- places


def test_a_url_whose_package_is_missing_is_one_line_with_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(StoreError, match=r"cannot reach 'gs://b/p': .*\(pip install gcsfs\)"):
        read("gs://b/p")


def test_a_bucket_that_is_not_there_is_named():
    with pytest.raises(StoreError, match="no such bucket or folder"):
        read("memory://nowhere/pack")


def test_what_a_store_raises_is_one_line(monkeypatch):
    class NoCredentialsError(Exception):
        pass

    def refuse(*_, **__):
        raise NoCredentialsError("Unable to locate credentials\nand more")

    monkeypatch.setattr(MemoryFileSystem, "glob", refuse)
    for ask in (read, lambda where: pack(RUNS[:1], where)):
        with pytest.raises(StoreError) as caught:
            ask("memory://closed/pack")
        assert "NoCredentialsError: Unable to locate credentials" in str(caught.value)
        assert "\n" not in str(caught.value)


# --- the command


def cli(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for run in RUNS:
        write_run(run, folder)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        ["--device", "cuda:0"],
        ["--since", "2026-01-31"],
        ["--model", "conv", "--meter", "step_time"],
    ],
)
def test_a_pack_and_its_runs_answer_the_same(folder, tmp_path, options):
    assert cli("pack", folder, "-o", tmp_path / "pack").exit_code == 0
    answers = [
        cli("history", where, "--all", "--json", *options) for where in (folder, tmp_path / "pack")
    ]
    assert [answer.exit_code for answer in answers] == [0, 0]
    assert answers[0].stdout == answers[1].stdout
    assert '"series": [\n{' in answers[0].stdout


def test_a_run_that_is_packed_is_not_read_again(folder, tmp_path):
    runs = tmp_path / "runs"
    path = write_run(RUNS[0], runs)
    assert cli("pack", runs, "-o", tmp_path / "pack").exit_code == 0
    path.write_text('{"kind":"started"}')
    answer = cli("pack", runs, "-o", tmp_path / "pack")
    assert "there before: 1 run" in answer.output
    assert "quarantined" not in answer.output


def test_of_two_runs_of_one_name_one_is_packed_and_that_is_said(tmp_path):
    first, equal = (write_run(RUNS[0], tmp_path / "runs" / name) for name in ("a", "b"))
    other = write_run(RUNS[1], tmp_path / "runs" / "c")
    other = other.replace(other.with_name(first.name))
    answer = cli("pack", tmp_path / "runs", "-o", tmp_path / "pack")
    assert answer.exit_code == 0
    assert "added 1 run," in answer.stdout
    (said,) = answer.stderr.splitlines()
    assert said.startswith(f"{str(first)!r} and {str(other)!r} differ and are both run")
    assert str(equal) not in answer.stderr


@pytest.mark.parametrize("since", ["June", "2026-13-01"])
def test_a_since_that_is_no_date_is_one_line(folder, since):
    answer = cli("history", folder, "--since", since)
    assert answer.exit_code == 2
    assert "write 2026-05-31" in answer.output


def test_a_time_is_compared_in_utc():
    assert parse_since("2026-05-31T02:00:00+03:00") == "2026-05-30T23:00:00+00:00"
    assert parse_since("2026-05-31") == "2026-05-31"


def test_a_time_that_is_none_in_utc_is_one_line():
    with pytest.raises(Impossible, match="is no time in UTC"):
        parse_since("0001-01-01T00:00+14:00")


def test_a_branch_that_git_does_not_know_is_one_line(folder):
    answer = cli("history", folder, "--branch", "no-such-branch")
    assert answer.exit_code == 2
    assert "--branch 'no-such-branch'" in answer.output


def test_a_branch_takes_the_runs_of_its_commits(tmp_path, monkeypatch):
    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", *who, *arguments]
        return subprocess.run(
            command, cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q", "-b", "main")
    commits = []
    for number in range(3):
        git("commit", "-q", "--allow-empty", "-m", str(number))
        commits.append(git("rev-parse", "HEAD"))
        if number == 1:
            git("branch", "release")
    for number, commit in enumerate(commits):
        write_run(run_at(number, git_commit=commit), tmp_path / "runs")
    write_run(run_at(3, git_commit=commits[0], git_dirty=True), tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    answer = cli("history", "runs", "--branch", "release", "--meter", "peak_transient", "--json")
    found = json.loads(answer.stdout)["series"]
    points = {point["commit"] for one in found for point in one["points"]}
    assert points <= {*commits[:2]}
    assert commits[0] in points
