"""What other threads of a call allocate, held against known sizes; what is unseen is a reason."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool

import pytest
import torch

from gradbench import call_threads
from gradbench.devices import OutOfSight, find, thread_profile
from gradbench.records.allocations import Tag

pytestmark = pytest.mark.usefixtures("collected")

MIB = 2**20


def block(mib: int) -> torch.Tensor:
    return torch.empty(mib * MIB, dtype=torch.uint8)


def made(mib: int) -> int:
    return block(mib).nbytes


def in_a_thread(call):
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def in_a_subclass(call):
    class Own(threading.Thread):
        def run(self):
            call()

    thread = Own()
    thread.start()
    thread.join()


def in_a_thread_of_a_thread(call):
    in_a_thread(lambda: in_a_thread(call))


def in_a_new_pool(call):
    with ThreadPoolExecutor(1) as pool:
        pool.submit(call).result()


def in_multiprocessings_pool(call):
    with ThreadPool(1) as pool:
        pool.apply(call)


WAYS = [
    *(in_a_thread, in_a_subclass, in_a_thread_of_a_thread, in_a_new_pool),
    in_multiprocessings_pool,
]


@pytest.mark.parametrize("elsewhere", WAYS)
def test_a_block_of_another_thread_counts_as_one_of_this_thread(elsewhere):
    kept = []

    def call():
        kept.append(block(3))
        block(2)

    ledger = find("cpu").ledger()
    _, window = ledger.observe(lambda: elsewhere(call))
    assert (window.before_bytes, window.peak_bytes, window.after_bytes) == (0, 5 * MIB, 3 * MIB)
    _, window, traced = ledger.trace(lambda _: (kept.clear(), elsewhere(call)))
    window.check(traced.entries("cpu"))
    assert (window.before_bytes, window.peak_bytes) == (3 * MIB, 5 * MIB)
    assert window.after_bytes == 3 * MIB


def test_work_given_to_a_pool_that_was_there_before_counts():
    with ThreadPoolExecutor(1) as pool, ThreadPool(1) as other:
        pool.submit(block, 1).result()
        other.apply(block, (1,))
        ledger = find("cpu").ledger()
        for call in (
            lambda: pool.submit(made, 4).result(),
            lambda: list(pool.map(made, [4])),
            lambda: other.apply(made, (4,)),
            lambda: other.map(made, [4]),
            lambda: list(other.imap(made, [4])),
        ):
            _, window = ledger.observe(call)
            assert (window.peak_bytes, window.after_bytes) == (4 * MIB, 0)


def test_blocks_of_both_threads_are_summed_in_the_order_in_which_they_were_made():
    def call():
        mine = block(1)
        in_a_thread(lambda: block(8))
        del mine
        in_a_thread(lambda: block(8))

    _, window = find("cpu").ledger().observe(call)
    assert window.peak_bytes == 9 * MIB


def test_a_tag_names_a_block_of_another_thread():
    kept = []

    def call(mark):
        in_a_thread(lambda: kept.append(block(1)))
        mark(Tag(kept[0].data_ptr(), "saved", nbytes=MIB))
        kept.clear()

    _, _, traced = find("cpu").ledger().trace(call)
    made, tag, freed = traced.entries("cpu")
    assert made.address == tag.address == freed.address
    assert (made.nbytes, made.op, freed.nbytes) == (MIB, "aten::empty", -MIB)


def test_a_thread_at_work_when_the_call_has_ended_is_a_reason():
    stop = threading.Event()

    def work():
        while not stop.is_set():
            sum(range(1000))

    thread = threading.Thread(target=work, name="left-behind")
    try:
        with pytest.raises(OutOfSight, match=r"started are at work .*: left-behind"):
            find("cpu").ledger().observe(lambda: thread.start())  # noqa: PLW0108 # as code calls it
    finally:
        stop.set()
        thread.join()


def test_a_thread_that_waits_when_the_call_has_ended_is_none():
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    try:
        _, window = find("cpu").ledger().observe(lambda: [thread.start(), made(1)])
    finally:
        stop.set()
        thread.join()
    assert window.peak_bytes == MIB


def test_what_it_takes_to_watch_a_thread_is_no_work_of_the_thread():
    """The first profiler of a process takes milliseconds to start."""
    stop, works = threading.Event(), threading.Event()

    @contextmanager
    def costly():
        while time.thread_time() < 10 * call_threads.IDLE_S:
            pass
        yield

    def wait():
        works.set()
        stop.wait()

    thread = threading.Thread(target=wait)
    with call_threads.CallThreads(costly) as threads:
        thread.start()
        works.wait()
    running = threads.still_running
    stop.set()
    thread.join()
    assert running == ()


def test_a_worker_with_a_profiler_of_its_own_is_a_reason():
    profiler = torch.autograd.profiler_legacy.profile()
    with ThreadPoolExecutor(1, initializer=profiler.__enter__) as pool:
        pool.submit(block, 1).result()
        with pytest.raises(OutOfSight, match="runs a profiler of its own"):
            find("cpu").ledger().observe(lambda: pool.submit(block, 1).result())


def test_a_torch_that_does_not_count_there_is_a_reason(monkeypatch):
    monkeypatch.setattr(thread_profile, "_counts_others", lambda: False)
    with pytest.raises(OutOfSight, match="does not count what other threads allocate"):
        find("cpu").ledger().observe(lambda: in_a_thread(lambda: block(1)))


def test_what_starts_threads_is_as_it_was_afterwards_also_after_an_error():
    before = (threading.Thread.start, ThreadPoolExecutor.submit, ThreadPool.__init__)
    find("cpu").ledger().observe(lambda: in_a_thread(lambda: None))
    with pytest.raises(ZeroDivisionError):
        find("cpu").ledger().observe(lambda: 1 / 0)
    assert (threading.Thread.start, ThreadPoolExecutor.submit, ThreadPool.__init__) == before
    assert "apply_async" not in vars(ThreadPool)
