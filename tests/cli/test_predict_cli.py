"""``predict``, lines of a saved run, and models whose names say their sizes, as users call them.

mlp_d2_w16 has 2 * (16 * 16 + 16) + 16 * 10 + 10 = 714 weights. In a forward without a graph a
linear layer's output stands beside the ReLU's, 2 * 16 floats a sample; with one the two ReLUs'
results are kept, and the second stands beside its input: 3 * 16 floats.
"""

import json

import pytest
from builders import block, cell, counted, ended, measured_block, started
from hypothesis import given, settings, strategies as st
from typer.testing import CliRunner

from gradbench.cli import app
from gradbench.errors import Impossible
from gradbench.exit_status import ExitStatus
from gradbench.memory.batch_fit import followed_to
from gradbench.memory.predict import CannotTrain, Predictor, TookTooLong
from gradbench.records.predictions import LARGEST_BATCH
from gradbench.store.jsonl import Store
from gradbench.workloads.models import MODELS

FLOAT, LABEL = 4, 8
NET, WIDE, CLASSES = "mlp_d2_w16", 16, 10
WEIGHTS = (2 * (WIDE * WIDE + WIDE) + WIDE * CLASSES + CLASSES) * FLOAT  # 2856
SAMPLE = WIDE * FLOAT + LABEL  # 72: there before the step
ADDS = {"global_on": 3 * WIDE * FLOAT, "no_grad": 2 * WIDE * FLOAT}  # 192 and 128 a sample
MEBIBYTE = 2**20
MODES = ("--grad-mode", "global_on,no_grad")
FORWARDS = ("--preset", "tiny", "--model", NET, "--workload", "inference", *MODES)

WHOLE_NUMBERS = """
from torch import nn


class Net(nn.Linear):
    def __init__(self):
        super().__init__(4, 4)

    def forward(self, x):
        return super().forward(x).argmax(-1)
"""

LACKING = """
from torch import nn


class Net(nn.Linear):
    def __init__(self):
        super().__init__(4, 4)
    def forward(self, x):
        raise ValueError("the config lacks 'tail'")
"""


def peak(mode, batch):
    """Return the peak of a forward by arithmetic."""
    return WEIGHTS + (SAMPLE + ADDS[mode]) * batch


@pytest.fixture
def gradbench(tmp_path, monkeypatch):
    """The command line, called in this process from an empty folder."""
    monkeypatch.chdir(tmp_path)
    runner = CliRunner(env={"COLUMNS": "200"})
    return lambda *arguments: runner.invoke(
        app, [str(argument) for argument in arguments], prog_name="gradbench"
    )


@pytest.fixture(scope="module")
def predictor():
    return Predictor("cpu")


def lines(result):
    assert result.exit_code == 0, result.output or repr(result.exception)
    return [" ".join(line.split()) for line in result.stdout.splitlines()]


def rows(result):
    """Return what was printed as JSON, by grad mode and batch size."""
    assert result.exit_code == 0, result.output or repr(result.exception)
    return {(row["grad_mode"], row["batch_size"]): row for row in json.loads(result.stdout)}


def complaint(result):
    assert result.exit_code == ExitStatus.USAGE, result.output or repr(result.exception)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line.removeprefix("gradbench: ")


def test_predictions_are_the_arithmetic_in_every_part(gradbench):
    found = rows(gradbench("predict", *FORWARDS, "--batch-size", "2,8", "--json"))
    assert set(found) == {(mode, batch) for mode in ADDS for batch in (2, 8)}
    for (mode, batch), row in found.items():
        assert row["peak_bytes"] == peak(mode, batch)
        assert row["before_bytes"] == WEIGHTS + SAMPLE * batch
        assert row["transient_bytes"] == ADDS[mode] * batch
        hidden = WIDE * FLOAT * batch
        assert {part: nbytes for part, nbytes in row["parts"].items() if nbytes} == (
            {"parameters": WEIGHTS, "inputs": SAMPLE * batch}
            | ({"saved": 2 * hidden, "other": hidden} if mode == "global_on" else {})
            | ({"other": 2 * hidden} if mode == "no_grad" else {})
        )
        assert row["not_counted_inside"] == []
        assert row["model"] == NET


def test_the_table_has_a_block_a_batch_and_lines_through_them(gradbench):
    """The weights at a batch of none, and 264 or 200 bytes a sample: 1.32 times as many fit."""
    shown = lines(gradbench("predict", *FORWARDS, "--batch-size", "8,64"))
    assert [line for line in shown if line.startswith("inference[")] == [
        "inference[cpu-mlp_d2_w16-b8]",
        "inference[cpu-mlp_d2_w16-b64]",
        "inference[cpu-mlp_d2_w16] over batch size 8 to 64: peak = intercept + slope × size",
    ]
    # 2856 + 264 * 8 = 4968 = 4.85 KiB, of which 2856 + 72 * 8 = 3432 were there before
    assert "global_on 4.85 KiB 1.000 3.35 KiB 1.5 KiB 2.79 KiB 1 KiB 512 B" in shown
    assert "global_on 264 B/sample 2.79 KiB 0.0% 1.000" in shown
    assert "no_grad 200 B/sample 2.79 KiB 0.0% 1.320" in shown


def test_the_tables_ratios_are_taken_to_the_reference(gradbench):
    options = ("--batch-size", "8", "--reference", "no_grad")
    shown = lines(gradbench("predict", *FORWARDS, *options))
    ratio = peak("global_on", 8) / peak("no_grad", 8)
    assert any(line.startswith(f"global_on 4.85 KiB {ratio:.3f} ") for line in shown)


@pytest.mark.parametrize(
    "options",
    [[], pytest.param(["--fit", "64KiB"], marks=pytest.mark.slow)],
    ids=["predict", "fit"],
)
def test_a_cell_that_cannot_train_has_torchs_reason_for_a_number(options, gradbench):
    chosen = ("--preset", "tiny", "--model", NET, "--workload", "training", "--batch-size", "2")
    words = "cannot train here: element 0 of tensors does not require grad"
    found = rows(gradbench("predict", *chosen, *MODES, *options, "--json"))
    by_mode = {mode: row for (mode, _), row in found.items()}
    assert by_mode["no_grad"]["reason"].startswith(words)
    assert "peak_bytes" not in by_mode["no_grad"]
    assert by_mode["global_on"]["peak_bytes"] > WEIGHTS
    assert "reason" not in by_mode["global_on"]
    shown = lines(gradbench("predict", *chosen, *MODES, *options))
    assert sum(words in line for line in shown) == 1
    assert any(line.endswith("no_grad none") for line in shown)


@pytest.mark.parametrize("options", [(), pytest.param(("--fit", "1MiB"), marks=pytest.mark.slow)])
def test_a_cell_whose_training_is_impossible_leaves_the_others_their_numbers(
    options, gradbench, tmp_path
):
    (tmp_path / "whole_numbers.py").write_text(WHOLE_NUMBERS, "utf-8")
    model = ("--model", "whole_numbers.py:Net", "--input", "2,4", "--grad-mode", "global_on")
    workloads = ("--workload", "inference,training")
    result = gradbench("predict", "--preset", "tiny", *model, *workloads, *options, "--json")
    assert result.exit_code == 0, result.output or repr(result.exception)
    found = {row["workload"]: row for row in json.loads(result.stdout)}
    assert found["inference"]["peak_bytes"] > 0
    assert "its output has no floating-point tensor" in found["training"]["reason"]


@pytest.mark.parametrize("options", [(), pytest.param(("--fit", "1MiB"), marks=pytest.mark.slow)])
def test_a_users_error_is_shown_once_as_theirs_and_says_whose_model_raised_it(
    options, gradbench, tmp_path
):
    (tmp_path / "lacking.py").write_text(LACKING, "utf-8")
    model = ("--model", "lacking.py:Net", "--input", "2,4")
    chosen = ("--preset", "tiny", *model, "--workload", "inference", *MODES, *options)
    result = gradbench("predict", *chosen)
    assert result.exit_code == ExitStatus.NOTHING_MEASURED, result.output
    shown = result.stdout.splitlines()
    (start,) = (place for place, line in enumerate(shown) if "raised, from" in line)
    assert shown[start].startswith("inference[cpu-lacking.Net")
    assert shown[start + 1].endswith('lacking.py", line 9, in forward')
    assert sum("the config lacks 'tail'" in line for line in shown) == 2  # its line, its words
    (first, *_) = json.loads(gradbench("predict", *chosen, "--json").stdout)
    assert first["traceback"].endswith("ValueError: the config lacks 'tail'")


def test_what_a_fit_finds_is_the_largest_batch_by_prediction_and_arithmetic(gradbench, predictor):
    found = rows(gradbench("predict", *FORWARDS, "--fit", "1MiB", "--json"))
    for (mode, batch), row in found.items():
        assert batch == (MEBIBYTE - WEIGHTS) // (SAMPLE + ADDS[mode])
        assert (row["budget_bytes"], row["peak_bytes"], row["next_bytes"]) == (
            MEBIBYTE,
            peak(mode, batch),
            peak(mode, batch + 1),
        )
        for size, nbytes in ((batch, row["peak_bytes"]), (batch + 1, row["next_bytes"])):
            member = cell(mode, model=NET, batch_size=size)
            assert predictor.predict(member, MODELS[NET]).peak_bytes == nbytes
    assert "measured" not in row


def test_the_table_of_fits_has_a_line_a_mode_whatever_batches_were_asked_for(gradbench):
    shown = lines(gradbench("predict", *FORWARDS, "--batch-size", "2,8", "--fit", "1 MiB"))
    assert shown == [
        "",
        "inference[cpu-mlp_d2_w16]: the largest batch; × is to global_on",
        "batch × its peak one sample more",
        "global_on 3,961 1.000 1 MiB (100.00%) 1 MiB (248 B over)",
        "no_grad 5,228 1.320 1 MiB (99.99%) 1 MiB (80 B over)",
        "checked by measured steps at batch 2: equal to the byte",
    ]


@pytest.mark.slow
def test_a_fit_is_confirmed_by_measuring_at_it_and_above(gradbench):
    budget = peak("no_grad", 20) + 10
    chosen = ("--model", NET, "--workload", "inference", "--grad-mode", "no_grad")
    found = rows(gradbench("predict", *chosen, "--fit", f"{budget}B", "--confirm", "--json"))
    ((key, row),) = found.items()
    assert key == ("no_grad", 20)
    assert row["measured"] == row["peak_bytes"] == peak("no_grad", 20) <= budget
    assert row["measured_next"] == row["next_bytes"] == peak("no_grad", 21) > budget


def test_where_nothing_fits_nothing_is_measured(gradbench, monkeypatch):
    monkeypatch.setattr("gradbench.runner.run", lambda *_, **__: pytest.fail("measuring began"))
    found = rows(gradbench("predict", *FORWARDS, "--fit", "1KiB", "--confirm", "--json"))
    assert {(row["batch_size"], row["peak_bytes"]) for row in found.values()} == {(0, None)}
    assert {mode: row["next_bytes"] for (mode, _), row in found.items()} == {
        mode: peak(mode, 1) for mode in ADDS
    }


def test_a_device_that_is_not_here_is_predicted_for(gradbench):
    options = ("--device", "cuda", "--batch-size", "8", "--json")
    for row in rows(gradbench("predict", *FORWARDS, *options)).values():
        assert row["device"] == "cuda"
        assert row["allocated_bytes"] % 512 == 0
        assert row["allocated_bytes"] <= row["reserved_bytes"]
        assert row["peak_bytes"] >= peak(row["grad_mode"], 8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fit", "many"], "--fit: 'many' is no size: write 80GiB"),
        (["--fit", "-1GiB"], "--fit: '-1GiB' is no size"),
        (["--fit", "64"], "--fit: 64 has no unit: 64MiB, 64GiB?"),
        (["--fit", "0"], "--fit: 0 has no unit: 0MiB, 0GiB?"),
        (["--confirm"], "--confirm goes with --fit"),
        (["--reference", "nograd"], "unknown grad mode 'nograd': did you mean 'no_grad'?"),
        (["--model", "mlp_d2_w"], "unknown model 'mlp_d2_w'"),
        (["--model", "cnn_d2_w8"], "unknown model 'cnn_d2_w8'"),
        (["--model", "mlp_d0_w8"], "unknown model 'mlp_d0_w8'"),
    ],
)
def test_a_mistake_costs_one_line(options, words, gradbench):
    assert complaint(gradbench("predict", "--preset", "tiny", *options)).startswith(words)


def test_models_of_any_size_are_listed_like_those_with_names(gradbench):
    chosen = ("--preset", "tiny", "--model", f"{NET},cnn_d1_w4_r8", "--workload", "inference")
    *cells, count = gradbench("list", *chosen, "--batch-size", "8").stdout.splitlines()
    assert cells == [str(one) for name in (NET, "cnn_d1_w4_r8") for one in block(model=name)]
    assert count == "8 cells in 2 blocks, 0 skipped here"


# Lines of a saved run


def test_show_draws_lines_through_a_runs_peaks_when_asked(gradbench, tmp_path):
    cells = [one for batch in (1, 9) for one in block(["global_on", "no_grad"], batch_size=batch)]
    slopes = {"global_on": 2048, "no_grad": 512}
    outcomes = [
        counted(one, 1024 + slopes[one.grad_mode] * one.batch_size, meter="peak_allocated")
        for one in cells
    ]
    Store(tmp_path / "results").save(
        [started(cells, meters=("peak_allocated",)), *outcomes, ended()]
    )
    shown = lines(gradbench("show", "--scaling"))
    title = "inference[cpu-mlp_tiny] over batch size 1 to 9: peak = intercept + slope × size"
    assert title in shown
    assert "global_on 2 KiB/sample 1 KiB 0.0% 1.000" in shown
    assert "no_grad 512 B/sample 1 KiB 0.0% 4.000" in shown
    other = lines(gradbench("show", "--scaling", "--reference", "no_grad"))
    assert "global_on 2 KiB/sample 1 KiB 0.0% 0.250" in other
    assert title not in lines(gradbench("show"))


def test_show_says_when_a_run_has_no_line_to_draw(gradbench, tmp_path):
    first = started(block(), meters=("step_time", "peak_transient"))
    Store(tmp_path / "results").save([first, *measured_block(), ended()])
    shown = lines(gradbench("show", "--scaling"))
    assert "no cells of this run differ in batch size, depth, width or resolution only" in shown


# The search itself


@pytest.mark.slow
@settings(max_examples=4)
@given(st.integers(0, 400), st.integers(-1, 1), st.sampled_from(sorted(ADDS)))
def test_the_batch_that_is_found_fits_and_the_next_does_not(batch, beside, mode):
    """Budgets a byte around a batch's peak: where a search that guesses is wrong by one."""
    predictor = Predictor("cpu")
    budget = peak(mode, batch) + beside
    found = predictor.largest(cell(mode, model=NET), MODELS[NET], budget)
    expected = max(batch - (beside < 0), 0)
    assert (found.batch_size, found.budget_bytes) == (expected, budget)
    assert found.peak_bytes == (peak(mode, expected) if expected else None)
    assert found.next_bytes == peak(mode, expected + 1)


@pytest.mark.parametrize("budget", [0, 1, peak("no_grad", 1) - 1])
def test_nothing_fits_a_budget_below_one_samples_peak(budget, predictor):
    found = predictor.largest(cell("no_grad", model=NET), MODELS[NET], budget)
    assert (found.batch_size, found.peak_bytes) == (0, None)
    assert found.next_bytes == peak("no_grad", 1)


class Foreseen(Predictor):
    """A predictor whose peaks are given by a function, and which notes what it is asked."""

    def __init__(self, curve):
        super().__init__("cpu")
        self.curve, self.asked = curve, []

    def predict(self, cell, model, *, seed=0, probing=True):
        self.asked.append(cell.batch_size)
        return Peak(self.curve(cell.batch_size))

    def _followed(self, cell, model, seed, bases):
        return None  # by prediction alone


class Peak(int):
    context_bytes, unprobed, run_otherwise, measured_at, why_measured = 0, (), (), (), ""
    checked_at = None

    @property
    def process_bytes(self):
        return int(self)


CURVES = {
    "straight": lambda batch: 1000 + 7 * batch,
    "kinked": lambda batch: max(10**6 + batch, 500 * batch),
    "in_steps": lambda batch: 1000 + 512 * -(-batch * 7 // 512),
    "square": lambda batch: 3 * batch * batch,
    "late": lambda batch: 1000 if batch < 3000 else 10**9 + batch,
}


@pytest.mark.parametrize("curve", CURVES)
@settings(max_examples=40)
@given(budget=st.integers(0, 10**9))
def test_the_search_is_right_on_any_curve_that_never_falls(curve, budget):
    peaks = CURVES[curve]
    search = Foreseen(peaks)
    found = search.largest(cell(model=NET), MODELS[NET], budget)
    if found.next_bytes is None:
        assert found.batch_size == LARGEST_BATCH
        assert peaks(found.batch_size) <= budget
        return
    assert found.batch_size == 0 or peaks(found.batch_size) <= budget
    assert peaks(found.batch_size + 1) == found.next_bytes > budget
    assert found.peak_bytes == (peaks(found.batch_size) if found.batch_size else None)


@pytest.mark.parametrize(
    ("curve", "budget"),
    [
        ("straight", 6_720_559),
        ("kinked", 10**7),
        ("square", 10**7),
        pytest.param(
            "kinked",
            1_001_887,
        ),
        pytest.param(
            "late",
            1010,
        ),
    ],
)
def test_a_search_asks_each_batch_once_and_few_of_them(curve, budget):
    """Quadrupling to 2^24 takes 13, and halving what lies between two of those 24 at the most."""
    search = Foreseen(CURVES[curve])
    search.largest(cell(model=NET), MODELS[NET], budget)
    assert len(search.asked) == len(set(search.asked))
    assert len(search.asked) <= 13 + 2 * 24


def test_peaks_that_never_meet_the_budget_end_the_search():
    found = Foreseen(lambda batch: 10 + (batch > 1000)).largest(cell(model=NET), MODELS[NET], 11)
    assert found.next_bytes is None
    assert found.batch_size == LARGEST_BATCH
    assert found.size == "16,777,216 or more"
    assert found.cell == cell(model=NET)


def test_a_peak_that_is_the_same_at_every_batch_is_of_a_batch_that_does_not_heed_its_size():
    with pytest.raises(Impossible, match="does not have the batch size that is asked for"):
        Foreseen(lambda _: 10).largest(cell(model=NET), MODELS[NET], 10)


@pytest.mark.parametrize("error", [CannotTrain, TookTooLong])
def test_what_no_batch_can_mend_is_asked_of_one_batch_alone(error, monkeypatch):
    asked = []

    def refused(_self, member, _model, **_options):
        asked.append(member.batch_size)
        raise error("no")

    monkeypatch.setattr(Predictor, "predict", refused)
    with pytest.raises(error):
        Predictor("cpu").largest(cell(model=NET), MODELS[NET], 2**20)
    assert len(asked) == 1


@given(st.integers(1, 10**6), st.integers(0, 10**9), st.integers(1, 10**12))
def test_the_largest_batch_on_a_line_fits_and_one_more_does_not(slope, intercept, budget):
    def line(batch):
        return intercept + slope * batch

    found = followed_to(line, budget)
    assert found == 0 or line(found) <= budget
    assert found == LARGEST_BATCH or line(found + 1) > budget


def test_where_the_peak_does_not_grow_any_batch_fits_or_none():
    assert (followed_to(lambda _: 100, 100), followed_to(lambda _: 100, 99)) == (LARGEST_BATCH, 0)
