"""A matrix dealt out to shards, and the shards' runs joined again."""

from dataclasses import replace

import pytest
from builders import (
    block,
    broken_down,
    cell,
    counted,
    ended,
    environment,
    measured_block,
    refused_block,
    run_of,
    started,
)
from hypothesis import given, settings, strategies as st

from gradbench.errors import Impossible, StoreError
from gradbench.experiment.matrix import Matrix, by_block
from gradbench.experiment.model_source import ModelSource
from gradbench.experiment.shards import Shard, parse
from gradbench.records.measurements import Ended, Environment, Measurement, Started
from gradbench.store.jsonl import Store
from gradbench.store.merge_shards import merge

SIZES = (1, 2, 4, 8, 16)


def matrix(blocks: int) -> list:
    return list(Matrix(models=["mlp_tiny"], batch_sizes=list(range(1, blocks + 1))))


@settings(max_examples=40)
@given(blocks=st.integers(1, 12), count=st.integers(1, 12))
def test_shards_share_no_block_miss_none_and_differ_by_one_at_most(blocks, count):
    cells = matrix(blocks)
    if count > blocks:
        with pytest.raises(Impossible, match=f"take {blocks} at most"):
            Shard(1, count).take(cells)
        return
    hands = [Shard(index, count).take(cells) for index in range(1, count + 1)]
    assert sorted(str(one) for hand in hands for one in hand) == sorted(map(str, cells))
    sizes = [len(by_block(hand)) for hand in hands]
    assert max(sizes) - min(sizes) <= 1
    whole = by_block(cells)
    assert all(members == whole[b] for hand in hands for b, members in by_block(hand).items())


@pytest.mark.parametrize("text", ["", "3", "0/3", "4/3", "1/0", "a/b", "1/3/5", "-1/3", " 1/3"])
def test_what_is_no_shard_is_refused_in_one_line(text):
    with pytest.raises(Impossible, match="is not like 2/3"):
        parse(text)


def test_a_shard_reads_as_it_is_written():
    assert str(parse("2/3")) == "2/3"


# Joined again


def part(shard: str, *, name: str | None = None, facts=None, **axes):
    """Return the run of one shard: a block that was measured."""
    outcomes = measured_block(**axes)
    first = started(
        dict.fromkeys(o.cell for o in outcomes),
        meters=("step_time", "peak_transient"),
        shard=shard,
        started_at=f"2026-01-02T03:04:0{axes['batch_size']}+00:00",
        places={str(outcomes[0].cell): f"test_x.py:{axes['batch_size']}"},
    )
    known = {"host": "one", "git_commit": "a" * 40, "load_before": 0.5} | (facts or {})
    records = [first, environment(**known), *outcomes, ended(timing=3.0)]
    return run_of(records, name=name or f"shard{shard[0]}")


def test_merged_shards_are_the_run_of_the_whole_matrix(tmp_path):
    cells = matrix(5)
    parts = []
    for index in (2, 1, 3):
        mine = Shard(index, 3).take(cells)
        first = started(mine, shard=f"{index}/3")
        outcomes = [counted(one, 64, meter="step_time") for one in mine]
        records = [first, environment(), *outcomes, broken_down(mine[0]), ended(timing=1.0)]
        parts.append(run_of(records, name=f"part{index}"))
    merged = merge(parts)
    assert merged.remarks == ()
    joined = Store(tmp_path).save(merged.records)
    assert joined.header.cells == tuple(cells)
    assert joined.header.shard == ""
    assert joined.unfinished() == []
    assert joined.header.command == ("gradbench", "merge", "part1", "part2", "part3")
    assert len(joined.breakdowns) == 3
    assert joined.ended.seconds == {"timing": 3.0}
    assert joined.environment == environment()


def test_merging_keeps_every_outcome_and_place_and_the_earliest_start():
    parts = [part("1/2", batch_size=4), part("2/2", batch_size=2)]
    first, *rest = merge(parts).records
    kept = [r for r in rest if not isinstance(r, Environment | Ended)]
    assert kept == [outcome for run in parts for outcome in run.outcomes]
    assert first.started_at == "2026-01-02T03:04:02+00:00"
    assert sorted(first.places.values()) == ["test_x.py:2", "test_x.py:4"]


def test_other_machines_are_refused_until_they_are_allowed():
    parts = [part("1/2", batch_size=1), part("2/2", batch_size=2, facts={"host": "two"})]
    with pytest.raises(StoreError, match=r"host was 'one', is 'two'; .*--allow-different-machines"):
        merge(parts)
    merged = merge(parts, different_machines=True)
    assert "times are not comparable" in merged.remarks[0]
    run = run_of(merged.records)
    assert run.environment.facts["host"] == "mixed: one, two"
    assert run.environment.facts["torch"] == "2.13.0"
    assert list(run.environments) == ["one", "two"]
    assert {(o.cell.batch_size, run.facts_of(o)["host"]) for o in run.outcomes} == {
        (1, "one"),
        (2, "two"),
    }


def test_two_hosts_of_one_name_that_differ_are_two_machines():
    parts = [part("1/2", batch_size=1), part("2/2", batch_size=2, facts={"cores": 64})]
    run = run_of(merge(parts, different_machines=True).records)
    assert {name: one.facts["cores"] for name, one in run.environments.items()} == {
        "one": 2,
        "one-2": 64,
    }


def test_a_run_that_was_merged_can_be_merged_again_and_keeps_its_machines():
    first = [part("1/3", batch_size=1), part("2/3", batch_size=2, facts={"host": "two"})]
    joined = run_of(merge(first, different_machines=True).records, name="joined")
    third = changed(part("3/3", batch_size=4, facts={"host": "two"}), shard="")
    run = run_of(merge([joined, third], different_machines=True).records)
    assert list(run.environments) == ["one", "two"]
    assert {(o.cell.batch_size, o.machine) for o in run.outcomes} == {
        (1, "one"),
        (2, "two"),
        (4, "two"),
    }


def test_one_machine_s_measurements_name_none():
    merged = merge([part("1/2", batch_size=1), part("2/2", batch_size=2)])
    assert {r.machine for r in merged.records if isinstance(r, Measurement)} == {""}


def test_the_highest_load_stands_for_all():
    parts = [part("1/2", batch_size=1), part("2/2", batch_size=2, facts={"load_before": 1.5})]
    facts = next(r for r in merge(parts).records if isinstance(r, Environment)).facts
    assert facts["load_before"] == 1.5


def changed(run, **fields):
    """Return the run with other fields in its first record."""
    records = [replace(r, **fields) if isinstance(r, Started) else r for r in run.records]
    return run_of(records, name=run.name)


OURS = part("1/2", batch_size=1)
THEIRS = part("2/2", batch_size=2)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (changed(THEIRS, protocol=99), "protocol 99 against 2"),
        (changed(THEIRS, plan={"budget_s": 9.0, "seed": 0}), "plan budget_s 9.0 against 1.0"),
        (changed(THEIRS, meters=("step_time",)), "meters"),
        (part("2/2", batch_size=2, facts={"git_commit": "b" * 40}), "git_commit was 'aaaa"),
        (part("2/2", batch_size=2, facts={"torch": "9.9"}), "torch was '2.13.0', is '9.9'"),
        (part("2/2", batch_size=1), r"inference\[.*\] is in both shard1 and shard2"),
        (part("2/3", batch_size=2), "these are not shards of one matrix"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_shard_of_the_same_matrix_is_refused_by_what_differs(other, words):
    with pytest.raises(StoreError, match=words) as refused:
        merge([OURS, other], different_machines=True)
    assert "\n" not in str(refused.value)


def test_one_shard_given_twice_is_refused():
    with pytest.raises(StoreError, match="is in both"):
        merge([OURS, replace(OURS, name="again")])


def test_a_figure_that_one_file_holds_twice_is_refused():
    twice = run_of([*OURS.records[:-1], OURS.outcomes[0], ended()], name="twice")
    with pytest.raises(StoreError, match=r"twice holds step_time of .* 2 times"):
        merge([twice])


def test_models_of_the_users_with_other_inputs_are_refused():
    ours, theirs = (
        changed(run, sources={"net.make": ModelSource(build="net:make", input=(shape,))})
        for run, shape in ((OURS, "B,3"), (THEIRS, "B,4"))
    )
    with pytest.raises(StoreError, match=r"net.make.*B,4.*B,3"):
        merge([ours, theirs])


def test_a_missing_shard_and_one_cut_short_are_reported():
    cut = run_of([THEIRS.records[0], environment(), *THEIRS.outcomes[:2]], name="cut", sealed=False)
    cut = run_of(
        [replace(cut.records[0], shard="2/3"), OURS.environment, *cut.outcomes], name="cut"
    )
    merged = merge([changed(OURS, shard="1/3"), cut])
    assert "shard 3/3 is not here: its cells are missing" in merged.remarks
    assert any("cut was cut short: inference[cpu-mlp_tiny-b2]" in r for r in merged.remarks)
    assert not any(isinstance(record, Ended) for record in merged.records)


def test_runs_that_know_of_no_shards_are_joined_in_the_order_of_their_names():
    parts = [changed(run, shard="") for run in (THEIRS, OURS)]
    (first, *_) = merge(parts).records
    assert first.cells == (*block(batch_size=1), *block(batch_size=2))


def test_nothing_is_not_merged():
    with pytest.raises(StoreError, match="no run to merge"):
        merge([])


def test_reasons_are_kept_as_they_are():
    refused = refused_block(batch_size=2)
    first = started(
        dict.fromkeys(o.cell for o in refused), meters=("step_time", "peak_transient"), shard="2/2"
    )
    theirs = run_of([first, OURS.environment, *refused, ended()], name="theirs")
    records = merge([OURS, theirs]).records
    assert [r for r in records if r in refused] == refused
    assert cell(batch_size=1) in records[0].cells
