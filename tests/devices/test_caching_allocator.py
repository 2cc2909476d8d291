"""The model of torch's caching allocator, by hand; tests/cuda holds it against the real one."""

import pytest

from gradbench.devices.caching_allocator import CachingAllocator

MIB = 2**20


@pytest.mark.parametrize(
    ("asked", "taken", "reserved"),
    [
        (0, 0, 0),
        (1, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (int(19.5 * MIB), 20 * MIB, 20 * MIB),  # half a MiB is too little to be cut off
        (int(20.5 * MIB), int(20.5 * MIB), 22 * MIB),
    ],
)
def test_a_block_is_what_is_left_of_its_segment_or_cut_from_it(asked, taken, reserved):
    model = CachingAllocator()
    model.take(1, asked)
    assert (model.allocated_bytes, model.reserved_bytes) == (taken, reserved)


def test_the_smallest_free_block_that_is_large_enough_is_taken_and_neighbours_join():
    model = CachingAllocator()
    for key, nbytes in enumerate((4096, 512, 1024, 512)):
        model.take(key, nbytes)
    model.give(0)
    model.give(2)
    model.take(4, 1024)  # where the third was: the first stays whole
    model.take(5, 4096)
    assert model.reserved_bytes == 2 * MIB
    assert model.peak_bytes == 4096 + 512 + 1024 + 512
    for key in (1, 3, 4, 5):
        model.give(key)
    model.take(6, MIB)
    model.take(7, MIB)  # all of the segment is one block again
    assert (model.allocated_bytes, model.reserved_bytes) == (2 * MIB, 2 * MIB)


def test_a_reset_starts_the_peak_anew_and_keeps_what_is_reserved():
    model = CachingAllocator()
    model.take(1, 512)
    model.take(2, 30 * MIB)
    model.give(2)
    assert (model.peak_bytes, model.reserved_bytes) == (30 * MIB + 512, 32 * MIB)
    model.reset()
    assert (model.peak_bytes, model.reserved_bytes) == (512, 32 * MIB)
