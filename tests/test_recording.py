"""A run while it is measured: what is written when, and what it leaves."""

import json

import pytest
from builders import block, environment, skipped
from scripted_bench import scripted_bench

from gradbench.errors import Impossible, StoreError, UnknownName
from gradbench.experiment.plan import Plan
from gradbench.recording import Recording, write_page
from gradbench.records.measurements import Environment
from gradbench.runner import started
from gradbench.runner.block_runner import OneAfterAnother
from gradbench.store.jsonl import PART, SEALED, Store, load

CELLS = [*block(batch_size=1), *block(batch_size=2)]
METERS = ("step_time", "peak_transient")


@pytest.fixture
def bench(monkeypatch):
    return scripted_bench(monkeypatch)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


def header(cells=CELLS, meters=METERS, **fields):
    return started(cells, plan=Plan(), meters=meters, **fields)


def kinds(path):
    return [json.loads(line)["kind"] for line in path.read_text("utf-8").splitlines()]


@pytest.mark.usefixtures("bench")
def test_every_record_is_written_before_the_next_is_measured(store):
    with Recording(store.create(), header()) as recording:
        opening = kinds(recording.path)
        written = [len(kinds(recording.path)) for _ in recording.measure()]
    assert opening == ["started", "environment"]
    assert written == [2 + count for count in range(1, len(CELLS) * len(METERS) + 1)]


@pytest.mark.usefixtures("bench")
def test_a_run_with_every_outcome_is_sealed_and_has_its_page(store, tmp_path):
    with Recording(store.create(), header()) as recording:
        list(recording.measure())
        run = recording.finish()
    page = write_page(run, recording.path.parent, tmp_path / "reports", semantics=None)
    assert run.sealed and run.ended is not None and run.unfinished() == []
    assert recording.path.name.endswith(SEALED)
    assert page == tmp_path / "reports" / f"{run.name}.html"
    assert run.name in page.read_text("utf-8")


def test_blocks_are_measured_one_at_a_time_and_in_any_order(store, bench):
    with Recording(store.create(), header()) as recording:
        first, second = recording.blocks
        list(recording.measure(second))
        assert not recording.finish().sealed
        list(recording.measure(first))
        assert recording.finish().sealed
    assert [[c.batch_size for c in cells] for cells in bench.asked] == [[2] * 4, [1] * 4]


@pytest.mark.usefixtures("bench")
def test_a_part_is_resumed_without_a_second_header_and_what_it_has_is_done(store):
    with Recording(store.create(), header()) as recording:
        list(recording.measure(next(iter(recording.blocks))))
    assert recording.path.name.endswith(PART)
    writer, cut = store.resume("latest")
    with Recording(writer, cut.header, resumed=cut) as again:
        list(again.measure(list(again.blocks)[1]))
        run = again.finish()
    assert kinds(again.path).count("started") == 1
    assert run.sealed and run.unfinished() == []


def test_a_part_from_another_machine_is_not_resumed(store, bench, monkeypatch):
    with Recording(store.create(), header()):
        pass
    writer, cut = store.resume("latest")
    elsewhere = Environment(facts={**environment().facts, "torch": "1.0"})
    monkeypatch.setattr(bench, "environment", lambda *_: elsewhere)
    with (
        pytest.raises(StoreError, match="cannot go on here"),
        Recording(writer, cut.header, resumed=cut),
    ):
        pytest.fail("it went on")


def test_what_breaks_off_a_recording_leaves_what_was_written(store, bench):
    def script(member):
        if member.batch_size == 2:
            raise KeyboardInterrupt
        return [skipped(member, meter=meter, reason="x") for meter in METERS]

    bench.script = staticmethod(script)
    with pytest.raises(KeyboardInterrupt), Recording(store.create(), header()) as recording:
        list(recording.measure())
    kept = load(recording.path)
    assert not kept.sealed
    assert {cell.batch_size for cell, _ in kept.done} == {1}


def test_a_run_that_is_refused_before_anything_is_measured_leaves_no_file(store, bench):
    def script(member):
        if member.batch_size == 2:
            raise Impossible("core-0 is held by the run that started this one")
        return [skipped(member, meter=meter, reason="x") for meter in METERS]

    bench.script = staticmethod(script)
    two, one = block(batch_size=2), block(batch_size=1)
    with pytest.raises(Impossible), Recording(store.create(), header(two)) as recording:
        list(recording.measure())
    with pytest.raises(UnknownName), Recording(store.create(), header(meters=["step_tme"])):
        pytest.fail("it began")
    assert list(store.folder.iterdir()) == []
    with pytest.raises(Impossible), Recording(store.create(), header([*one, *two])) as recording:
        list(recording.measure())
    assert {cell.batch_size for cell, _ in load(recording.path).done} == {1}


def test_a_run_that_is_interrupted_before_its_first_line_leaves_no_file(store, bench, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("gradbench.runner.preflight.check", interrupt)
    with pytest.raises(KeyboardInterrupt), Recording(store.create(), header()):
        pytest.fail("it began")
    assert list(store.folder.iterdir()) == []


def test_a_name_that_no_catalogue_knows_starts_no_process(store, bench):
    with (
        pytest.raises(UnknownName, match="step_tme"),
        Recording(store.create(), header(meters=["step_tme"])),
    ):
        pytest.fail("it began")
    assert bench.made == 0


class BackToFront(OneAfterAnother):
    """Measures the last block first, and says of each in which environment."""

    def measure(self, blocks, **options):
        for number, (one, members) in enumerate(reversed(blocks.items())):
            yield Environment(facts={"host": f"machine {number}"})
            yield from super().measure({one: members}, **options)


@pytest.mark.usefixtures("bench")
def test_who_measures_the_blocks_can_be_chosen_and_does_so_in_an_order_of_its_own(store):
    elsewhere = BackToFront(plan=Plan(), meters=METERS)
    with Recording(store.create(), header(), measured_by=elsewhere) as recording:
        read = list(recording.measure())
        run = recording.finish()
    assert [outcome.cell.batch_size for outcome in read] == [2] * 8 + [1] * 8
    assert run.sealed and run.outcomes == tuple(read)
    hosts = [one.facts.get("host") for one in run.records if isinstance(one, Environment)]
    assert hosts[1:] == ["machine 0", "machine 1"]
