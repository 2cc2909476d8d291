"""Making tokens: the same ones in every mode and without a cache, each step from the same cache."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from gradbench.errors import BadModel, Impossible
from gradbench.experiment.matrix import GRAD_MODES, OF_TOKENS, Cell
from gradbench.workloads.arms import build, make_arm
from gradbench.workloads.decoder import VOCABULARY, Decoder
from gradbench.workloads.generation import Decoding, Generation, cache_tensors
from gradbench.workloads.models import MODELS, Model

PROMPT, NEW = 5, 4
TINY = "decoder_d2_w16"


def cell(workload: str, mode: str = "no_grad", **axes) -> Cell:
    return Cell(
        **{"model": TINY, "batch_size": 2, "prompt": PROMPT, "new_tokens": NEW} | axes,
        workload=workload,
        grad_mode=mode,
    )


def arm_of(one: Cell, model: Model | None = None):
    return make_arm(one, build(one, model or MODELS[one.model], seed=0))


def stepped(one: Cell, model: Model | None = None):
    arm = arm_of(one, model)
    with arm.held():
        return arm.step()


class Growing(nn.Module):
    """Attends evenly to all tokens so far; its cache is made anew with each."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11)

    def forward(self, tokens, cache=None):
        seen = self.embedding(tokens)
        if cache is not None:
            seen = torch.cat([cache["seen"], seen], 1)
        return self.head(seen.mean(1)), {"seen": seen}


class Ring(Growing):
    """Forgets the oldest token with each new one, in place: no step can be repeated."""

    def forward(self, tokens, cache=None):
        if cache is None:
            cache = {"seen": self.embedding(tokens).detach()}
        else:
            cache["seen"].copy_(torch.cat([cache["seen"], self.embedding(tokens)], 1)[:, 1:])
        return self.head(cache["seen"].mean(1)), cache


def own(build_it: Callable[[], nn.Module]) -> Model:
    return Model(
        build_it,
        lambda size: torch.zeros(size, 1, dtype=torch.int64),
        generation=Generation(
            prefill=lambda model, tokens, _room: model(tokens),
            decode=lambda model, token, cache: model(token, cache),
            vocabulary=11,
        ),
    )


@pytest.mark.parametrize("mode", GRAD_MODES)
@pytest.mark.parametrize("model", [None, own(Growing)], ids=["decoder", "growing"])
def test_every_mode_makes_the_same_tokens(model, mode):
    expected = stepped(cell("generate", "no_grad"), model)
    assert expected.shape == (2, NEW)
    assert torch.equal(stepped(cell("generate", mode), model), expected)


def test_tokens_are_those_of_a_decoder_that_sees_the_whole_text_each_time():
    one = cell("generate")
    subject = build(one, MODELS[TINY], seed=0)
    (text,) = subject.batch.args
    made = stepped(one)
    with torch.no_grad():
        for place in range(NEW):
            scores = subject.module.eval()(text)[:, -1]
            assert torch.equal(scores.argmax(-1), made[:, place])
            text = torch.cat([text, made[:, place : place + 1]], 1)


def test_a_decode_sees_the_prompt_and_all_new_tokens():
    one = cell("decode")
    subject = build(one, MODELS[TINY], seed=0)
    (prompt,) = subject.batch.args
    text = torch.cat([prompt, prompt], 1)[:, : PROMPT + NEW - 1]
    with torch.no_grad():
        expected = subject.module.eval()(torch.cat([text, prompt[:, :1]], 1))[:, -1]
    token, scores = stepped(one)
    torch.testing.assert_close(scores, expected)
    assert torch.equal(token[:, 0], expected.argmax(-1))


@pytest.mark.parametrize("mode", GRAD_MODES)
@pytest.mark.parametrize("entry", ["held", "per_call"])
@pytest.mark.parametrize("model", [None, own(Growing)], ids=["decoder", "growing"])
def test_each_decode_begins_with_the_same_cache(model, entry, mode):
    arm = arm_of(cell("decode", mode, entry=entry), model)
    with arm.held():
        first = arm.step()
        arm.step.provide(3)
        again = [arm.step() for _ in range(5)]
    assert all(torch.equal(first[1], scores) for _, scores in again)
    arm.check()


@pytest.mark.parametrize(
    ("prefill", "words"),
    [
        (lambda model, tokens, _: model(tokens)[0], "it returned a Tensor"),
        (lambda model, tokens, _: (None, model(tokens)), "the first of the two is a NoneType"),
        (
            lambda model, tokens, _: (model(tokens)[0][:, None], None),
            r"its scores are of shape \(2, 1, 11\)",
        ),
    ],
)
@pytest.mark.parametrize("workload", ["prefill", "decode", "generate"])
def test_a_prefill_that_returns_something_else_is_refused_in_words(workload, prefill, words):
    model = own(Growing)
    model = replace(model, generation=replace(model.generation, prefill=prefill))
    with pytest.raises(Impossible, match=rf"prefill is to return scores of shape \(2, .*{words}"):
        stepped(cell(workload), model)


def test_a_decode_that_changes_what_its_cache_held_is_refused_in_words():
    arm = arm_of(cell("decode"), own(Ring))
    with pytest.raises(Impossible, match="the second one finds another cache than the first"):
        arm.check()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn], ids=str)
def test_a_cache_of_numbers_that_torch_compares_otherwise_is_the_same_at_each_step(dtype):
    class Kept(Growing):
        def forward(self, tokens, cache=None):
            if cache is not None:
                seen = cache["seen"]
                cache = {"seen": seen.real if seen.is_complex() else seen.float()}
            scores, cache = super().forward(tokens, cache)
            return scores, {"seen": cache["seen"].to(dtype)}

    arm_of(cell("decode"), own(Kept)).check()


@pytest.mark.parametrize("mode", GRAD_MODES)
def test_a_cache_belongs_to_its_mode_and_has_no_graph(mode):
    arm = arm_of(cell("decode", mode))
    arm.renew()
    tensors = arm.provided()
    assert len(tensors) == 2 * 2  # keys and values of two layers
    assert all(one.grad_fn is None for one in tensors)
    assert {one.is_inference() for one in tensors} == {mode == "inference_mode"}
    assert {tuple(one.shape) for one in tensors} == {(2, 1, PROMPT + NEW, 16)}


def test_caches_of_calls_share_their_memory_and_count_apart():
    counter = torch.tensor(7)
    made = Decoding(
        lambda: {"keys": [torch.zeros(2, 3)], "length": counter},
        lambda cache: (cache["length"].add_(1), cache["keys"][0].clone()),
        torch.no_grad,
    )
    assert [int(made()[0]) for _ in range(3)] == [8, 8, 8]
    assert int(counter) == 7
    made.provide(2)
    first, _, second, _ = made.provided()
    assert first.data_ptr() == second.data_ptr()
    assert len(cache_tensors([first, first])) == 1


@pytest.mark.parametrize("workload", OF_TOKENS)
def test_a_model_that_says_nothing_of_tokens_makes_none(workload):
    with pytest.raises(Impossible, match=f"{workload} makes tokens, and mlp_tiny has no Gen"):
        build(cell(workload, model="mlp_tiny"), MODELS["mlp_tiny"], seed=0)


def test_another_module_may_make_the_tokens_than_is_trained():
    model = own(Growing)
    how = replace(model.generation, build=Ring)
    one = cell("prefill")
    assert type(build(one, replace(model, generation=how), seed=0).module) is Ring
    assert type(build(replace(one, workload="inference"), model, seed=0).module) is Growing


def test_a_decoder_is_causal():
    decoder = Decoder(depth=2, width=16).eval()
    text = torch.randint(VOCABULARY, (1, 6))
    other = text.clone()
    other[0, -1] = (other[0, -1] + 1) % VOCABULARY
    with torch.no_grad():
        one, two = decoder(text), decoder(other)
    assert torch.equal(one[:, :-1], two[:, :-1])
    assert not torch.equal(one[:, -1], two[:, -1])


def test_a_decoder_heeds_the_order_of_its_tokens():
    decoder = Decoder(depth=1, width=16).eval()
    text = torch.arange(5)[None]
    turned = text[:, [1, 0, 2, 3, 4]]
    with torch.no_grad():
        assert not torch.allclose(decoder(text)[:, -1], decoder(turned)[:, -1])


@pytest.mark.parametrize(("depth", "width", "hidden"), [(1, 64, 192), (12, 768, 2048)])
def test_a_sized_decoder_has_the_parameters_of_its_shape(depth, width, hidden):
    with torch.device("meta"):
        module = MODELS[f"decoder_d{depth}_w{width}"].build()
    layer = 4 * width**2 + 3 * width * hidden + 2 * width
    expected = 2 * VOCABULARY * width + depth * layer + width
    assert sum(one.numel() for one in module.parameters()) == expected


def test_a_decoder_of_odd_width_says_what_would_do():
    with pytest.raises(BadModel, match="even width"):
        MODELS["decoder_d1_w7"].build()


def test_a_decoder_learns_texts_in_the_workloads_of_batches():
    model = MODELS[TINY]
    batch = model.batch(3)
    scores = model.build()(*batch.args)
    assert scores.shape == (*batch.target.shape, VOCABULARY)
    assert model.loss(scores, batch).dim() == 0
