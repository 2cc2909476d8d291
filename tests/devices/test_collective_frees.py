"""Threads that still hold tensors of a collective are waited for while they run."""

import hashlib
import threading
import time
from itertools import repeat

import pytest

from gradbench.devices import collective_frees

pytestmark = pytest.mark.skipif(
    not collective_frees.THREADS.exists(), reason="this system does not say which threads run"
)


def hash_until(stop: threading.Event) -> None:
    while not stop.is_set():
        hashlib.pbkdf2_hmac("sha256", b"word", b"salt", 20_000)  # without Python's lock


def test_a_thread_that_runs_is_seen_and_waited_for():
    stop = threading.Event()
    thread = threading.Thread(target=hash_until, args=[stop])
    thread.start()
    try:
        assert any(collective_frees._another_runs() for _ in repeat(None, 200))
        began_s = time.monotonic()
        collective_frees._let_others_rest()
        assert time.monotonic() - began_s >= collective_frees.LETTING_GO_S
    finally:
        stop.set()
        thread.join()


def test_threads_at_rest_are_not_waited_for(monkeypatch, tmp_path):
    for number, state in enumerate("SSDI"):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "stat").write_text(f"{number} (a) b) {state} 1 2", "utf-8")
    monkeypatch.setattr(collective_frees, "THREADS", tmp_path)
    assert not collective_frees._another_runs()
    (tmp_path / "0" / "stat").write_text("0 (a) b) R 1 2", "utf-8")
    assert collective_frees._another_runs()
