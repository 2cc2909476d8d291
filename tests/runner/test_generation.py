"""Making tokens, measured: the cache to the byte, and what grows with a sequence and ends."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from gradbench.analysis.generation import by_token, growth
from gradbench.errors import BadModel
from gradbench.experiment.matrix import OF_TOKENS, Matrix
from gradbench.experiment.plan import Plan
from gradbench.records.measurements import Breakdown, Measurement, Skipped
from gradbench.runner import run
from gradbench.runner.memory_pass import memory_block
from gradbench.runner.prediction_pass import predict_block
from gradbench.workloads.generation import Generation
from gradbench.workloads.models import MODELS, Model

pytestmark = pytest.mark.usefixtures("shared_fork_servers", "measured_here")


DEPTH, HEADS, HEAD_SIZE, BATCH, PROMPT, NEW, FLOAT = 1, 2, 64, 3, 6, 4, 4
MODEL = f"decoder_d{DEPTH}_w{HEADS * HEAD_SIZE}"
TOKEN = DEPTH * 2 * BATCH * HEADS * HEAD_SIZE * FLOAT
"""Bytes of one token in the cache, for all sequences of the batch."""

MODES = ("global_on", "inference_mode")  # of all four, the tokens are held in workloads/

METERS = (
    *("step_time", "output_difference", "peak_allocated", "peak_transient", "breakdown"),
    *("saved_for_backward", "leaked", "predicted_peak"),
)


def cells(**axes):
    of = {"models": [MODEL], "workloads": OF_TOKENS, "batch_sizes": [BATCH]}
    return list(
        Matrix(**of | {"prompts": [PROMPT], "new_tokens": [NEW], "grad_modes": MODES} | axes)
    )


@pytest.fixture(scope="module")
def found(shared_fork_servers):
    plan = Plan(budget_s=0.05, warmup_s=0.01, min_rounds=6)
    outcomes = list(run(cells(), plan=plan, meters=METERS))
    kept = [o for o in outcomes if isinstance(o, Measurement | Breakdown | Skipped)]
    return {(o.cell.workload, o.cell.grad_mode, o.meter): o for o in kept}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("workload", OF_TOKENS)
def test_every_meter_has_a_number_in_every_mode(found, workload, mode):
    for meter in METERS:
        assert not isinstance(found[workload, mode, meter], Skipped), found[workload, mode, meter]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("workload", OF_TOKENS)
def test_the_cache_is_as_large_as_counted_by_hand(found, workload, mode):
    parts = found[workload, mode, "breakdown"].parts
    assert parts["cache"] == TOKEN * (PROMPT + NEW)
    assert sum(parts.values()) == found[workload, mode, "peak_allocated"].values[0]


@pytest.mark.parametrize("mode", MODES)
def test_a_decode_finds_its_cache_and_a_prefill_makes_it(found, mode):
    timeline = found["decode", mode, "breakdown"].timeline["cache"]
    assert timeline[0] == max(timeline) == TOKEN * (PROMPT + NEW)
    assert found["prefill", mode, "breakdown"].timeline["cache"][0] == 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("workload", OF_TOKENS)
def test_scores_and_tokens_are_those_of_global_on(found, workload, mode):
    assert found[workload, mode, "output_difference"].values == (0,)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("workload", OF_TOKENS)
def test_nothing_is_left_behind(found, workload, mode):
    assert found[workload, mode, "leaked"].values == (0,)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("workload", OF_TOKENS)
def test_the_peak_is_predicted_to_the_byte(found, workload, mode):
    predicted = found[workload, mode, "predicted_peak"]
    assert predicted.values == found[workload, mode, "peak_allocated"].values
    assert "measured_at_batches" not in predicted.notes


def test_the_graph_of_every_token_stays_until_the_sequence_ends_where_one_is_recorded(found):
    by_mode = {mode: found["generate", mode, "breakdown"] for mode in MODES}
    for mode, breakdown in by_mode.items():
        assert len(by_token(breakdown)) == NEW - 1
        rise = growth(breakdown)
        assert rise.cache_bytes == 0  # it was taken at once
        assert rise.left_bytes == 0
        assert (rise.saved_bytes > 0) == (mode == "global_on")


class Growing(nn.Module):
    """One layer that adds the mean of all tokens so far; its cache is made anew with each."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.head = nn.Linear(32, 50)
        self.kept: list[torch.Tensor] | None = None

    def forward(self, tokens, cache=None):
        seen = self.embedding(tokens)
        if cache is not None:
            seen = torch.cat([cache["seen"], seen], 1)
        if self.kept is not None:
            self.kept.append(torch.zeros(1000))
        return self.head(seen.mean(1)), {"seen": seen}


class Leaking(Growing):
    """Keeps some bytes with each token, for good."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = []


GROWING = Model(
    Growing,
    lambda size: torch.zeros(size, 1, dtype=torch.int64),
    generation=Generation(
        prefill=lambda model, tokens, _room: model(tokens),
        # the module itself is given, not what calls it alone
        decode=lambda model, token, cache: model.forward(token, cache),
        vocabulary=50,
    ),
)
SEEN = BATCH * 32 * FLOAT


def in_this_process(model, workload, mode, meters):
    """Return the figures of one cell, read here: no process is started for them."""
    (cell,) = cells(models=["it"], workloads=[workload], grad_modes=[mode])
    messages = list(memory_block([cell], model, Plan(), meters))
    return {m.meter: m for m in messages if isinstance(m, Measurement | Breakdown | Skipped)}


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_a_cache_that_grows_is_no_leak_and_grows_as_counted_by_hand(mode):
    figures = in_this_process(GROWING, "generate", mode, ["breakdown", "leaked"])
    rise = growth(figures["breakdown"])
    assert figures["leaked"].values == (0,)
    assert rise.left_bytes == 0
    assert rise.cache_bytes == SEEN


def test_a_leak_is_what_a_sequence_leaves_and_a_cache_is_not():
    leaking = replace(GROWING, build=Leaking)
    figures = in_this_process(leaking, "generate", "no_grad", ["breakdown", "leaked"])
    rise = growth(figures["breakdown"])
    assert rise.cache_bytes == SEEN
    assert rise.left_bytes == figures["leaked"].values[0] == NEW * 4000


@pytest.mark.parametrize("mode", ["global_on", "inference_mode"])
def test_a_step_holds_no_part_of_a_growing_cache_but_its_own(mode):
    """What is held beside it, to be put back, would count twice."""
    breakdown = in_this_process(GROWING, "decode", mode, ["breakdown"])["breakdown"]
    before = SEEN * (PROMPT + NEW - 1)
    assert breakdown.timeline["cache"][0] == before
    assert breakdown.parts["cache"] == before + SEEN * (PROMPT + NEW)


@pytest.mark.parametrize("workload", ["decode", "generate"])
def test_a_growing_cache_is_predicted_to_the_byte(workload):
    (cell,) = cells(models=["it"], workloads=[workload], grad_modes=["no_grad"])
    measured = in_this_process(GROWING, workload, "no_grad", ["peak_allocated"])
    (predicted,) = [
        m
        for m in predict_block([cell], GROWING, Plan(), ["predicted_peak"])
        if isinstance(m, Measurement | Skipped)
    ]
    assert predicted.values == measured["peak_allocated"].values


@pytest.mark.parametrize(
    ("vocabulary", "words"),
    [
        (50, None),
        (
            99,
            "index out of range in self (called with int64 [3, 6]; the "
            "vocabulary of its Generation is 99; embedding Embedding has 50 rows)",
        ),
    ],
)
def test_prompts_of_a_vocabulary_that_no_embedding_has_are_said_with_both(vocabulary, words):
    how = replace(GROWING.generation, vocabulary=vocabulary)
    read = in_this_process(replace(GROWING, generation=how), "prefill", "no_grad", ["leaked"])
    reason = read["leaked"].reason if isinstance(read["leaked"], Skipped) else None
    assert reason is None if words is None else reason.endswith(words), reason


@pytest.mark.parametrize("vocabulary", [0, -1, 50.0, True, "50"])
def test_a_vocabulary_is_a_number_of_tokens(vocabulary):
    with pytest.raises(BadModel, match="the vocabulary of a Generation is how many tokens"):
        replace(GROWING.generation, vocabulary=vocabulary)


def test_what_cannot_be_says_why():
    of = [
        *cells(models=["mlp_tiny"], workloads=["decode"], grad_modes=["no_grad"]),
        *cells(models=["mlp_tiny"], workloads=["inference"], grad_modes=["no_grad"]),
    ]
    outcomes = [o for o in run(of, meters=["step_time"]) if isinstance(o, Skipped)]
    assert [(o.cause, o.reason) for o in outcomes] == [
        (
            "impossible",
            "decode makes tokens, and mlp_tiny does not say how: give its gradbench.Model a "
            "Generation",
        ),
        ("impossible", "inference takes a batch and no prompt: prompt=128, new_tokens=8"),
    ]


def test_the_built_in_decoders_are_in_the_catalogue():
    assert "decoder_tiny" in MODELS
    assert MODELS["decoder_d3_w64"].generation is not None
