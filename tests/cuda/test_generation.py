"""Making tokens on CUDA cells, on the simulated runtime: they run, and the cache is as counted."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from gradbench.experiment.matrix import OF_TOKENS, Matrix
from gradbench.experiment.plan import Plan
from gradbench.records.measurements import Breakdown, Measurement, Skipped
from gradbench.runner import run

pytestmark = pytest.mark.simulated_cuda

BATCH, PROMPT, NEW, WIDTH = 2, 4, 3, 64
CACHE = 1 * 2 * BATCH * (PROMPT + NEW) * WIDTH * 4
"""Layers, keys and values, sequences, tokens, width, bytes: nothing for the allocator to round."""

SEEDS = 2 * 8
"""Bytes of the numbers that attention saves for dropout; real ones do not lie on the GPU."""

METERS = (
    *("step_time", "host_time", "device_time", "peak_allocated", "peak_requested", "breakdown"),
    *("leaked", "predicted_peak"),
)


def measured(cells):
    return list(run(cells, plan=Plan(budget_s=0.2), meters=METERS))


def test_cells_that_make_tokens_run_and_their_cache_is_as_large_as_counted_by_hand():
    cells = list(
        Matrix(
            models=[f"decoder_d1_w{WIDTH}"],
            workloads=OF_TOKENS,
            devices=["cuda"],
            batch_sizes=[BATCH],
            prompts=[PROMPT],
            new_tokens=[NEW],
            grad_modes=["global_on", "inference_mode"],
        )
    )
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        records = pool.submit(measured, cells).result()
    assert [one for one in records if isinstance(one, Skipped)] == []
    figures = {(o.cell, o.meter): o for o in records if isinstance(o, Measurement)}
    parts = {o.cell: o.parts for o in records if isinstance(o, Breakdown)}
    for cell in cells:
        assert parts[cell]["cache"] == CACHE
        assert sum(parts[cell].values()) == figures[cell, "peak_allocated"].values[0]
        assert figures[cell, "leaked"].values == (0,)
        off = figures[cell, "predicted_peak"].values[0] - figures[cell, "peak_requested"].values[0]
        assert 0 <= off <= SEEDS * NEW if cell.grad_mode == "global_on" else off == 0
