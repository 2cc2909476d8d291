"""An account of allocations: pure arithmetic on entries made by hand."""

import pytest
from hypothesis import example, given, settings, strategies as st

from gradbench.records.allocations import (
    MOMENTS,
    Change,
    Left,
    Phase,
    Resident,
    Tag,
    Within,
    attribute_peak,
)
from gradbench.records.measurements import PARTS

NOTHING = dict.fromkeys(PARTS, 0)
A, B, C, D = 0xA0, 0xB0, 0xC0, 0xD0


def breakdown(*entries, resident=None, before=0):
    return attribute_peak(entries, resident=resident or {}, before_bytes=before)


def parts(**known):
    return NOTHING | known


def totals(found):
    """The bytes at each moment that was kept."""
    return [sum(row) for row in zip(*found.timeline.values(), strict=True)]


def test_nothing_that_happens_is_what_was_there_before():
    found = breakdown(resident={A: Resident(30, "parameters")}, before=50)
    assert found.parts == parts(parameters=30, unknown=20)
    assert (found.peak_bytes, found.phase, found.left) == (50, "prepare", ())
    assert totals(found) == [50]


def test_a_purpose_that_shows_later_holds_from_the_blocks_first_byte_on():
    """A is saved only after B came and went: at the peak before that it counts as saved."""
    found = breakdown(Change(A, 100), Change(B, 50), Change(B, -50), Tag(A, "saved"))
    assert found.parts == parts(saved=100, other=50)
    assert found.timeline["saved"] == (0, 100, 100, 100)
    assert found.timeline["other"] == (0, 0, 50, 0)


@pytest.mark.parametrize("order", [1, -1])
def test_of_several_purposes_the_last_in_a_blocks_life_holds_in_whatever_order_they_are_reported(
    order,
):
    tags = ["saved", "gradients", "optimizer_state"]
    for count in (1, 2, 3):
        tagged = [Tag(A, part) for part in tags[:count]][::order]
        found = breakdown(Change(A, 8), *tagged)
        assert found.parts == parts(**{tags[count - 1]: 8})
        assert found.left == (Left(8, tags[count - 1], ""),)


def test_an_address_used_again_is_another_block():
    found = breakdown(
        Change(A, 10),
        Tag(A, "gradients"),
        Change(A, -10),
        Change(A, 70),
        Tag(A, "saved"),
        Change(B, 5),
        Change(A, -70),
    )
    assert found.parts == parts(saved=70, other=5)
    assert found.timeline["gradients"] == (0, 10, 0, 0, 0, 0)
    assert found.left == (Left(5, "other", ""),)


def test_a_tag_for_a_block_that_is_not_live_is_nobodys():
    found = breakdown(Tag(A, "saved"), Change(A, 10), Change(A, -10), Tag(A, "gradients"))
    assert found.parts == parts(other=10)


def test_a_tag_does_not_take_a_resident_block_from_its_part():
    """Parameters are saved for backward too; they stay parameters."""
    found = breakdown(
        Tag(A, "saved"), Change(B, 1), resident={A: Resident(9, "parameters")}, before=9
    )
    assert found.parts == parts(parameters=9, other=1)


def test_a_resident_block_that_is_freed_leaves_its_part_once():
    """Gradients are dropped before the step's own peak; what takes their address is not theirs."""
    found = breakdown(
        Change(A, -40),
        Change(A, 60),
        Change(A, -60),
        Change(B, 90),
        resident={A: Resident(40, "gradients"), C: Resident(3, "inputs")},
        before=43,
    )
    assert found.parts == parts(inputs=3, other=90)
    assert found.timeline["gradients"] == (40, 0, 0, 0, 0)
    assert found.timeline["other"] == (0, 0, 60, 0, 90)
    assert found.timeline["unknown"] == (0,) * 5


def test_a_free_of_what_nobody_knows_is_taken_from_the_unknown():
    found = breakdown(Change(D, -15), Change(A, 20), resident={}, before=25)
    assert found.parts == parts(unknown=10, other=20)
    assert found.timeline["unknown"] == (25, 10, 10)


def test_a_resident_block_is_freed_once_and_a_second_free_is_unknown():
    found = breakdown(Change(A, -4), Change(A, -6), resident={A: Resident(4, "inputs")}, before=10)
    assert found.timeline["inputs"] == (4, 0, 0)
    assert found.timeline["unknown"] == (6, 6, 0)


def test_what_an_operator_takes_inside_counts_for_that_moment_only_and_is_named():
    found = breakdown(
        Change(A, 100, "aten::mm"),
        Within(64, "aten::convolution"),
        Change(B, 20, "aten::add"),
    )
    assert found.parts == parts(other=164)
    assert found.ops == {"aten::mm": 100, "aten::convolution": 64}
    assert found.timeline["other"] == (0, 100, 164, 120)
    assert found.left == (Left(100, "other", "aten::mm"), Left(20, "other", "aten::add"))


def test_an_inner_need_below_the_peak_is_in_no_part_of_it():
    found = breakdown(
        Within(64, "aten::convolution"), Change(A, 100, "aten::mm"), Change(B, 5, "aten::add")
    )
    assert found.parts == parts(other=105)
    assert found.ops == {"aten::mm": 100, "aten::add": 5}


def test_the_operators_are_of_other_at_the_peak_alone_most_first():
    found = breakdown(
        Change(A, 10, "aten::relu"),
        Tag(A, "saved"),
        Change(B, 20, "aten::add"),
        Change(C, 30, "aten::mm"),
        Change(D, 25, "aten::add"),
        Change(B, -20),
        Change(C, -30),
    )
    assert list(found.ops.items()) == [("aten::add", 45), ("aten::mm", 30)]
    assert sum(found.ops.values()) == found.parts["other"]


def test_of_two_moments_alike_the_first_is_the_peak():
    found = breakdown(
        Phase("forward"),
        Change(A, 8, "first"),
        Change(A, -8),
        Phase("loss"),
        Change(A, 8, "second"),
    )
    assert found.phase == "forward"
    assert found.ops == {"first": 8}


def test_phases_are_those_of_the_moments_in_order():
    found = breakdown(
        Change(A, 1),
        Phase("forward"),
        Change(B, 2),
        Change(C, 4),
        Phase("loss"),  # in which nothing happens
        Phase("backward"),
        Change(B, -2),
        Phase("optimizer"),
        Change(D, 3),
        Change(D, -3),
    )
    assert found.phases == (
        *("prepare", "prepare"),
        *("forward", "forward"),
        "backward",
        *("optimizer", "optimizer"),
    )
    assert totals(found) == [0, 1, 3, 7, 5, 8, 5]
    assert (found.phase, found.peak_bytes) == ("optimizer", 8)


def test_what_is_left_is_what_the_step_allocated_and_did_not_free():
    found = breakdown(
        Change(A, 5, "aten::mm"),
        Tag(A, "gradients"),
        Change(B, 7, "aten::relu"),
        Change(B, -7),
        Change(C, 9, "aten::empty"),
        resident={D: Resident(100, "parameters")},
        before=100,
    )
    assert found.left == (Left(5, "gradients", "aten::mm"), Left(9, "other", "aten::empty"))


def staircase(count, *, phases=("forward", "backward", "optimizer")):
    """Climb by 1 and fall by 1 in turn, with one high step in the middle of each phase."""
    for name in phases:
        yield Phase(name)
        for index in range(count):
            high = 1000 if index == count // 2 else 1
            yield Change(A, high)
            yield Change(A, -high)


@pytest.mark.parametrize("count", [1, 10, 21, 22, 500, 5000])
def test_a_long_step_is_thinned_to_about_so_many_moments(count):
    moments = 1 + 3 * 2 * count
    found = breakdown(*staircase(count))
    assert len(found.phases) == len(totals(found))
    if moments <= MOMENTS:
        assert len(found.phases) == moments
    else:  # one more at each end, and where a phase cuts a stretch short
        assert MOMENTS / 2 <= len(found.phases) <= MOMENTS + 2 + 3


@pytest.mark.parametrize("count", [3, 500])
def test_thinning_keeps_every_phases_highest_moment_and_both_ends(count):
    entries = [*staircase(count), Change(B, 17)]
    found = breakdown(*entries, before=5)
    heights = dict.fromkeys(found.phases, 0)
    for name, size in zip(found.phases, totals(found), strict=True):
        heights[name] = max(heights[name], size)
    assert heights == {"prepare": 5, "forward": 1005, "backward": 1005, "optimizer": 1005}
    assert totals(found)[0] == 5
    assert totals(found)[-1] == 5 + 17


RESIDENT = {
    0: Resident(100, "parameters"),
    1: Resident(20, "buffers"),
    2: Resident(3, "gradients"),
}


ACTIONS = st.tuples(
    st.sampled_from(["new", "new", "free", "stranger", "within", "tag", "phase"]),
    st.integers(0, 9),
    st.integers(1, 50),
)


def acted(actions):
    """Return the entries of what a device may do, and the blocks of its own that are live then."""
    resident = {address: block.nbytes for address, block in RESIDENT.items()}
    own, entries = {}, []
    for what, address, size in actions:
        match what:
            case "new" if address not in own and address not in resident:
                own[address] = size
                entries.append(Change(address, size, f"op{size % 3}"))
            case "free" if address in own or address in resident:
                freed = own if address in own else resident
                entries.append(Change(address, -freed.pop(address)))
            case "stranger":  # allocated before anybody counted
                entries.append(Change(1000 + address, -size))
            case "within":
                entries.append(Within(size, "inside"))
            case "tag":
                entries.append(Tag(address, ("saved", "gradients", "optimizer_state")[size % 3]))
            case "phase":
                entries.append(Phase(("forward", "backward", "optimizer")[size % 3]))
    return entries, own


def running(entries, before):
    """The bytes at each moment by the plainest arithmetic: what is for what plays no part."""
    sizes = [before]
    for entry in entries:
        if isinstance(entry, Change):
            before += entry.nbytes
            sizes.append(before)
        elif isinstance(entry, Within):
            sizes.append(before + entry.nbytes)
    return sizes


@settings(max_examples=80)
@example(actions=[])
@given(actions=st.lists(ACTIONS, max_size=150))
def test_parts_sum_to_the_peak_whatever_happens(actions):
    entries, own = acted(actions)
    found = attribute_peak(entries, resident=RESIDENT, before_bytes=150)
    sizes = running(entries, 150)
    assert sum(found.parts.values()) == found.peak_bytes == max(sizes)
    assert tuple(found.parts) == tuple(found.timeline) == PARTS
    assert max(totals(found)) == max(sizes)
    assert (totals(found)[0], totals(found)[-1]) == (sizes[0], sizes[-1])
    assert sum(found.ops.values()) == found.parts["other"]
    assert all(min(sizes) >= 0 for part, sizes in found.timeline.items() if part != "unknown")
    assert sorted(block.nbytes for block in found.left) == sorted(own.values())
