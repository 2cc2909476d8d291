"""The proofs of the pitfalls: for each, one that shows it and one that shows its cure."""

import asyncio
import copy
import multiprocessing
import sys
import threading
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cache
from multiprocessing.connection import Connection
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from .. import scratch
from ..plurals import counted
from ..workloads.decoder import Decoder
from .proof import Absent, ProofResult, bits, error_of, leaf, yes

# --- a view made while grad is off


def view_loses_gradient() -> ProofResult:
    weight = leaf(4)
    with torch.no_grad():
        view = weight.view(2, 2)
    (view * view).sum().backward()
    lost = view.requires_grad and weight.grad is None
    return yes(
        lost,
        f"the view requires grad: {view.requires_grad}; backward() ran; the weight's "
        f"gradient: {weight.grad}",
    )


def view_outside_keeps_it() -> ProofResult:
    weight = leaf(4)
    view = weight.view(2, 2)
    (view * view).sum().backward()
    return yes(weight.grad is not None, f"viewed with grad on, gradient {_numbers(weight.grad)}")


# --- in-place changes while grad is off


def change_is_invisible() -> ProofResult:
    weight = leaf()
    shifted = weight + 1
    with torch.no_grad():
        shifted.mul_(10)
    shifted.sum().backward()
    assert weight.grad is not None
    wrong = weight.grad.tolist() != [10.0] * 3
    return yes(wrong, f"ten times the sum, and the gradient is {_numbers(weight.grad)}")


def new_tensor_is_visible() -> ProofResult:
    weight = leaf()
    ((weight + 1) * 10).sum().backward()
    return yes(_numbers(weight.grad) == "[10.0, 10.0, 10.0]", f"gradient {_numbers(weight.grad)}")


def data_hides_the_change() -> ProofResult:
    weight = leaf()
    loss = (weight * weight).sum()
    weight.data.mul_(10)
    error = error_of(loss.backward)
    wrong = not error and _numbers(weight.grad) != "[2.0, 2.0, 2.0]"
    return yes(wrong, error or f"gradient at 1 is {_numbers(weight.grad)}, should be 2")


def no_grad_reports_the_change() -> ProofResult:
    weight = leaf()
    loss = (weight * weight).sum()
    with torch.no_grad():
        weight.mul_(10)
    error = error_of(loss.backward)
    return yes("modified by an inplace operation" in error, error or "backward() ran")


def update_before_backward() -> ProofResult:
    weight = leaf()
    loss = (weight * weight).sum()
    with torch.no_grad():
        weight.sub_(0.1)
    error = error_of(loss.backward)
    return yes(bool(error), f"the update itself is allowed; then: {error or 'backward() ran'}")


def update_after_backward() -> ProofResult:
    weight = leaf()
    (weight * weight).sum().backward()
    with torch.no_grad():
        weight.sub_(0.1)
    error = error_of((weight * weight).sum().backward)
    return yes(not error, error or "backward, update, forward, backward: all ran")


# --- coroutines and generators


@torch.no_grad()
async def _decorated() -> bool:
    return torch.is_grad_enabled()


@torch.no_grad()
async def _decorated_stream() -> AsyncIterator[bool]:
    yield torch.is_grad_enabled()


async def _first(stream: AsyncIterator[bool]) -> bool:
    return await anext(stream)


def decorated_coroutine() -> ProofResult:
    on, streamed = asyncio.run(_decorated()), asyncio.run(_first(_decorated_stream()))
    return yes(
        on and streamed,
        f"grad inside the decorated coroutine: {on}, inside a decorated "
        f"async generator: {streamed}",
    )


def block_in_coroutine() -> ProofResult:
    async def plain() -> bool:
        with torch.no_grad():
            return torch.is_grad_enabled()

    on = asyncio.run(plain())
    return yes(not on, f"grad in a with inside the coroutine: {on}")


def mode_across_await() -> ProofResult:
    beside, after = _beside_another_task(_held_across_await)
    return yes(
        not (beside or after),
        f"grad in another task of the loop: {beside}; when all are done: {after}",
    )


def mode_between_awaits() -> ProofResult:
    beside, after = _beside_another_task(_left_before_await)
    return yes(
        beside and after, f"grad in another task of the loop: {beside}; when all are done: {after}"
    )


async def _held_across_await(wait: asyncio.Event) -> None:
    with torch.no_grad():
        await wait.wait()


async def _left_before_await(wait: asyncio.Event) -> None:
    with torch.no_grad():
        pass
    await wait.wait()


def _beside_another_task(work: Callable[[asyncio.Event], Any]) -> tuple[bool, bool]:
    """Return grad as a third task reads it beside two that wait, and when they went in turn."""

    async def main() -> tuple[bool, bool]:
        waits = [asyncio.Event(), asyncio.Event()]
        tasks = [asyncio.create_task(work(wait)) for wait in waits]
        await asyncio.sleep(0)
        beside = torch.is_grad_enabled()
        for wait, task in zip(waits, tasks, strict=True):
            wait.set()
            await task
        return beside, torch.is_grad_enabled()

    return asyncio.run(main())


def _batches() -> Iterator[Tensor]:
    with torch.no_grad():
        yield torch.ones(3)
        yield torch.ones(3)


@torch.no_grad()
def _decorated_batches() -> Iterator[bool]:
    yield torch.is_grad_enabled()


def generator_leaks() -> ProofResult:
    batches = _batches()
    next(batches)
    outside = torch.is_grad_enabled()
    return yes(not outside, f"grad in the caller after one next(): {outside}")


def decorated_generator_does_not() -> ProofResult:
    batches = _decorated_batches()
    inside, outside = next(batches), torch.is_grad_enabled()
    return yes(not inside and outside, f"grad inside {inside}, in the caller {outside}")


# --- set_grad_enabled


def reused_object_is_stale() -> ProofResult:
    mode = torch.set_grad_enabled(True)  # remembers: it was on
    torch.set_grad_enabled(False)
    with mode:
        inside = torch.is_grad_enabled()
    after = torch.is_grad_enabled()
    return yes(after, f"grad before False, inside the kept object {inside}, after it {after}")


def fresh_object_is_not() -> ProofResult:
    torch.set_grad_enabled(False)
    with torch.set_grad_enabled(True):
        inside = torch.is_grad_enabled()
    after = torch.is_grad_enabled()
    return yes(inside and not after, f"grad before False, inside {inside}, after it {after}")


def acts_when_built() -> ProofResult:
    mode = torch.set_grad_enabled(False)
    before_entering = torch.is_grad_enabled()
    del mode
    return yes(not before_entering, f"grad after building the object: {before_entering}")


def built_in_the_with() -> ProofResult:
    def mode() -> torch.set_grad_enabled:
        return torch.set_grad_enabled(False)

    before = torch.is_grad_enabled()
    with mode():
        inside = torch.is_grad_enabled()
    return yes(before and not inside, f"before {before}, inside {inside}")


def _switches_off() -> None:
    torch.set_grad_enabled(False)
    raise ZeroDivisionError


def _off_in_a_block() -> None:
    with torch.set_grad_enabled(False):
        raise ZeroDivisionError


def call_outlives_function() -> ProofResult:
    after = _grad_after(_switches_off)
    return yes(not after, f"grad in the caller after the function failed: {after}")


def block_does_not() -> ProofResult:
    after = _grad_after(_off_in_a_block)
    return yes(after, f"grad in the caller after the function failed: {after}")


def _grad_after(function: Callable[[], None]) -> bool:
    with suppress(ZeroDivisionError):
        function()
    return torch.is_grad_enabled()


# --- threads and processes


def thread_starts_with_grad_on() -> ProofResult:
    with torch.no_grad():
        inside = _in_a_new_thread(bits)
    return yes(
        inside == (True, False), f"grad, inference in a thread started under no_grad: {inside}"
    )


def thread_given_the_mode() -> ProofResult:
    with torch.no_grad():
        mode = torch.is_grad_enabled()

        def work() -> tuple[bool, bool]:
            with torch.set_grad_enabled(mode):
                return bits()

        inside = _in_a_new_thread(work)
    return yes(inside == (False, False), f"given the mode, it has {inside}")


def _in_a_new_thread(function: Callable[[], tuple[bool, bool]]) -> tuple[bool, bool]:
    answers: list[tuple[bool, bool]] = []
    thread = threading.Thread(target=lambda: answers.append(function()))
    thread.start()
    thread.join()
    return answers[0]


def spawned_worker_starts_fresh() -> ProofResult:
    (forked, _), (spawned, _) = _in_a_worker("fork"), _in_a_worker("spawn")
    return yes(
        forked == (False, True) and spawned == (True, False),
        f"grad, inference under inference_mode in a forked worker {forked}, in a spawned one "
        f"{spawned}",
    )


def spawned_worker_given_the_mode() -> ProofResult:
    _, state = _in_a_worker("spawn")
    return yes(state == (False, True), f"a spawned worker that enters the mode itself: {state}")


Bits = tuple[bool, bool]


@cache  # a spawned worker imports torch: one answers for both proofs
def _in_a_worker(start: Literal["fork", "spawn"]) -> tuple[Bits, Bits]:
    """Return a worker's bits as it starts under inference_mode, and as it enters that itself."""
    context: Any = multiprocessing.get_context(start)  # typed without Process
    reader, writer = context.Pipe(duplex=False)
    with torch.inference_mode():
        worker = context.Process(target=_report, args=(writer,))
        worker.start()
    writer.close()
    try:
        answer: tuple[Bits, Bits] = reader.recv()
    except EOFError as error:
        raise Absent(f"a process cannot be started by {start} here") from error
    finally:
        worker.join()
    return answer


def _report(writer: Connection) -> None:
    started_with = bits()
    with torch.inference_mode():
        writer.send((started_with, bits()))


# --- objects and statements


def bare_statement() -> ProofResult:
    torch.no_grad()
    after = torch.is_grad_enabled()
    return yes(after, f"grad after the statement: {after}")


def with_statement() -> ProofResult:
    with torch.no_grad():
        inside = torch.is_grad_enabled()
    return yes(not inside, f"grad in a with: {inside}")


def same_object_nested() -> ProofResult:
    mode = torch.no_grad()
    with mode, mode:
        pass
    after = torch.is_grad_enabled()
    return yes(not after, f"grad after both blocks of one object: {after}")


def own_object_each() -> ProofResult:
    with torch.no_grad(), torch.no_grad():
        pass
    after = torch.is_grad_enabled()
    return yes(after, f"grad after both blocks, an object each: {after}")


def left_out_of_order() -> ProofResult:
    first, second = torch.no_grad(), torch.no_grad()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    after = torch.is_grad_enabled()
    return yes(not after, f"grad after leaving the outer object first: {after}")


def left_by_a_stack() -> ProofResult:
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.no_grad())
    after = torch.is_grad_enabled()
    return yes(after, f"grad after an ExitStack left both: {after}")


def decorated_class() -> ProofResult:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        @torch.no_grad()
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(2, 2)

            def forward(self, batch: Tensor) -> Tensor:
                return self.layer(batch)  # type: ignore[no-any-return] # modules return anything

        recorded = Net()(torch.ones(1, 2)).requires_grad
    return yes(recorded, f"forward records: {recorded}; warnings: {len(caught)}")


def decorated_method() -> ProofResult:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        @torch.no_grad()
        def forward(self, batch: Tensor) -> Tensor:
            return self.layer(batch)  # type: ignore[no-any-return] # modules return anything

    recorded = Net()(torch.ones(1, 2)).requires_grad
    return yes(not recorded, f"forward records: {recorded}")


# --- what the modes do not do


def dropout_and_statistics_go_on() -> ProofResult:
    dropped, moved = _train_time_behaviour(training=True)
    return yes(
        dropped and moved, f"under no_grad: dropout drops {dropped}, BatchNorm's mean moves {moved}"
    )


def eval_stops_them() -> ProofResult:
    dropped, moved = _train_time_behaviour(training=False)
    return yes(not (dropped or moved), f"after eval(): drops {dropped}, moves {moved}")


def _train_time_behaviour(*, training: bool) -> tuple[bool, bool]:
    dropout, norm = nn.Dropout(0.5).train(training), nn.BatchNorm1d(4).train(training)
    batch = torch.ones(8, 4)
    with torch.no_grad():
        dropped = not torch.equal(dropout(batch), batch)
        norm(batch)
    assert norm.running_mean is not None
    return dropped, bool(norm.running_mean.any())


def inference_false_turns_grad_on() -> ProofResult:
    with torch.no_grad(), torch.inference_mode(mode=False):
        recorded = (leaf() * 2).requires_grad
    return yes(recorded, f"recorded inside no_grad: {recorded}")


def inference_if_wanted() -> ProofResult:
    def evaluate(*, inference: bool) -> bool:
        with torch.inference_mode() if inference else torch.no_grad():
            return (leaf() * 2).requires_grad

    with torch.no_grad():
        recorded = evaluate(inference=False)
    return yes(not recorded, f"recorded inside no_grad: {recorded}")


def enable_grad_in_inference() -> ProofResult:
    with torch.inference_mode(), torch.enable_grad():
        flag, recorded = torch.is_grad_enabled(), (leaf() * 2).requires_grad
    return yes(flag and not recorded, f"is_grad_enabled() {flag}, recorded {recorded}")


def leaving_inference() -> ProofResult:
    weight = leaf()
    with torch.inference_mode(), torch.inference_mode(mode=False):
        recorded = (weight * 2).requires_grad
    return yes(recorded, f"recorded in inference_mode(False): {recorded}")


def backward_ignores_the_mode() -> ProofResult:
    weight = leaf()
    loss = (weight**3).sum()
    with torch.no_grad():
        (derivative,) = torch.autograd.grad(loss, weight, create_graph=True)
        loss.backward()
    return yes(
        derivative.requires_grad and weight.grad is not None,
        f"inside no_grad, backward() gave {_numbers(weight.grad)}, and create_graph recorded: "
        f"{derivative.requires_grad}",
    )


def grad_without_graph() -> ProofResult:
    weight = leaf()
    loss = (weight**3).sum()
    (derivative,) = torch.autograd.grad(loss, weight)
    untouched = weight.grad is None and not derivative.requires_grad
    return yes(
        untouched, f"autograd.grad: recorded {derivative.requires_grad}, .grad {weight.grad}"
    )


def reentrant_checkpoint() -> ProofResult:
    modes = _modes_in_checkpoint(use_reentrant=True)
    return yes(modes == [False, True], f"grad in the forward pass and its repetition: {modes}")


def plain_checkpoint() -> ProofResult:
    modes = _modes_in_checkpoint(use_reentrant=False)
    return yes(modes == [True, True], f"grad in the forward pass and its repetition: {modes}")


def _modes_in_checkpoint(*, use_reentrant: bool) -> list[bool]:
    modes: list[bool] = []

    def part(batch: Tensor) -> Tensor:
        modes.append(torch.is_grad_enabled())
        return batch.exp()

    result = checkpoint(part, leaf(), use_reentrant=use_reentrant)
    assert isinstance(result, Tensor)
    result.sum().backward()
    return modes


def forward_mode_goes_on() -> ProofResult:
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.ones(3), torch.ones(3))
        with torch.no_grad():
            tangent = forward_ad.unpack_dual(dual * dual).tangent
    with torch.no_grad():
        outer = torch.func.grad(lambda x: (x * x).sum())(torch.ones(3))
    return yes(
        tangent is not None and bool(outer.any()),
        f"inside no_grad: a tangent {_numbers(tangent)}, func.grad {_numbers(outer)}",
    )


def primal_stops_it() -> ProofResult:
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.ones(3), torch.ones(3))
        plain = forward_ad.unpack_dual(dual).primal
        tangent = forward_ad.unpack_dual(plain * plain).tangent

    def constant(x: Tensor) -> Tensor:
        with torch.no_grad():
            return (x * x).sum()

    inner = torch.func.grad(constant)(torch.ones(3))
    return yes(
        tangent is None and not inner.any(),
        f"of the primal: tangent {tangent}; no_grad inside the function: {_numbers(inner)}",
    )


def function_forward_is_off() -> ProofResult:
    recorded = _recorded_in_forward(reenable=False)
    return yes(not recorded, f"recorded inside Function.forward: {recorded}")


def function_forward_turned_on() -> ProofResult:
    recorded = _recorded_in_forward(reenable=True)
    return yes(recorded, f"recorded there inside enable_grad: {recorded}")


def _recorded_in_forward(*, reenable: bool) -> bool:
    answers: list[bool] = []

    class Inner(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004 # torch's protocol
            inner = x.detach().requires_grad_()
            with torch.set_grad_enabled(reenable or torch.is_grad_enabled()):
                answers.append((inner * 2).requires_grad)
            return x * 2

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004 # torch's protocol
            return gradients[0] * 2

    Inner.apply(leaf())
    return answers[0]


def autocast_keeps_cut_weights() -> ProofResult:
    reached = _gradient_after_autocast(one_region=True)
    return yes(
        not reached,
        f"weight's gradient after a no_grad pass in the same region: "
        f"{'there' if reached else 'missing'}",
    )


def autocast_region_each() -> ProofResult:
    reached = _gradient_after_autocast(one_region=False)
    return yes(reached, f"with a region for each pass: {'there' if reached else 'missing'}")


def _gradient_after_autocast(*, one_region: bool) -> bool:
    layer, batch = nn.Linear(4, 4), torch.ones(2, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad():
            layer(batch)
        if one_region:
            result = layer(batch)
    if not one_region:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = layer(batch)
    if result.requires_grad:
        result.float().sum().backward()
    return layer.weight.grad is not None


def sum_of_losses_keeps_graphs() -> ProofResult:
    alive = _graphs_alive(lambda loss: loss)
    return yes(alive > 0, f"of 5 steps' saved tensors, {alive} are alive after the loop")


def sum_of_numbers_does_not() -> ProofResult:
    alive = _graphs_alive(lambda loss: loss.detach())
    return yes(alive == 0, f"of 5 steps' saved tensors, {alive} are alive after the loop")


def _graphs_alive(kept: Callable[[Tensor], Tensor]) -> int:
    class Held:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor.detach()

    held: weakref.WeakSet[Held] = weakref.WeakSet()

    def pack(tensor: Tensor) -> Held:
        packed = Held(tensor)
        held.add(packed)
        return packed

    weight, total = leaf(), torch.zeros(())
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed.tensor):
        for _ in range(5):
            total = total + kept(weight.square().sum())
    return len(held)


def compiled_under_each_mode() -> ProofResult:
    count = _compilations([torch.enable_grad, torch.no_grad, torch.inference_mode])
    return yes(count > 1, f"one function under three modes is compiled {counted(count, 'time')}")


def compiled_under_one_mode() -> ProofResult:
    count = _compilations([torch.no_grad] * 3)
    return yes(count == 1, f"under one mode it is compiled {counted(count, 'time')}")


def _compilations(modes: list[Callable[[], Any]]) -> int:
    count = 0

    def backend(graph: Any, inputs: Any) -> Any:  # noqa: ARG001 # the backend protocol's
        nonlocal count
        count += 1
        return graph.forward

    weight = leaf()
    try:
        compiled = torch.compile(lambda x: x * weight, backend=backend)
        for mode in modes:
            with mode():
                compiled(torch.ones(3))
    except (RuntimeError, ImportError) as why:
        raise Absent(f"torch.compile does not work here: {str(why).partition(chr(10))[0]}") from why
    return count


def entering_each_time() -> ProofResult:
    apart, together = _python_calls(each=True), _python_calls(each=False)
    return yes(
        apart > 4 * together,
        f"100 additions: {apart} Python calls with a block each, {together} with one around all",
    )


def entering_once() -> ProofResult:
    together = _python_calls(each=False)
    return yes(together < 100, f"100 additions in one block: {together} Python calls")


def _python_calls(*, each: bool) -> int:
    count, x = 0, torch.ones(3)

    def profile(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        if each:
            for _ in range(100):
                with torch.no_grad():
                    x = x + 1
        else:
            with torch.no_grad():
                for _ in range(100):
                    x = x + 1
    finally:
        sys.setprofile(before)
    return count


# --- inference tensors


def _built_in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))


def _train(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()


def module_built_in_inference() -> ProofResult:
    model = _built_in_inference_mode()
    first = next(model.parameters())
    trained = error_of(lambda: _train(model))
    loaded = error_of(lambda: model.load_state_dict(model.state_dict()))
    return yes(
        first.requires_grad and bool(trained) and bool(loaded),
        f"parameters require grad: {first.requires_grad}; training: {trained or 'ran'}; "
        f"load_state_dict: {loaded or 'ran'}",
    )


def deepcopy_outside() -> ProofResult:
    model = copy.deepcopy(_built_in_inference_mode())
    trained = error_of(lambda: _train(model))
    return yes(not trained, f"training a deepcopy made outside: {trained or 'ran'}")


def _features() -> Tensor:
    with torch.inference_mode():
        return torch.ones(3)


def inference_tensor_saved() -> ProofResult:
    added = error_of(lambda: leaf() + _features())
    multiplied = error_of(lambda: leaf() * _features())
    return yes(
        bool(multiplied) and not added, f"add: {added or 'ran'}; multiply: {multiplied or 'ran'}"
    )


def clone_outside() -> ProofResult:
    weight = leaf()
    (weight * _features().clone()).sum().backward()
    return yes(weight.grad is not None, f"with a clone, gradient {_numbers(weight.grad)}")


def change_after_inference() -> ProofResult:
    total = _features()
    error = error_of(lambda: total.div_(2))
    with torch.no_grad():
        off = error_of(lambda: total.div_(2))
    return yes(
        bool(error) and bool(off),
        f"after the block: {error or 'ran'}; under no_grad: {off or 'ran'}",
    )


def new_tensor_after_inference() -> ProofResult:
    total = _features() / 2
    error = error_of(lambda: total.div_(2))
    return yes(not error, f"total = total / n, then in place: {error or 'ran'}")


def _cache_made_in(mode: Callable[[], AbstractContextManager[object]]) -> tuple[Decoder, Any]:
    """Return a decoder that keeps a static cache, and the cache, made in its first prefill."""
    decoder = Decoder(depth=1, width=8).eval()
    with mode():
        _, cache = decoder(torch.zeros(1, 2, dtype=torch.int64), room=2)
    return decoder, cache


def _one_more_token(decoder: Decoder, cache: Any) -> str:
    with torch.no_grad():
        return error_of(lambda: decoder(torch.zeros(1, 1, dtype=torch.int64), cache))


def static_cache_after_inference() -> ProofResult:
    error = _one_more_token(*_cache_made_in(torch.inference_mode))
    return yes(
        bool(error),
        f"prefill under inference_mode, a token under no_grad: {error or 'ran'}",
    )


def static_cache_made_outside() -> ProofResult:
    decoder, cache = _cache_made_in(torch.no_grad)
    with torch.inference_mode():
        inside = error_of(lambda: decoder(torch.zeros(1, 1, dtype=torch.int64), cache))
    error = inside or _one_more_token(decoder, cache)
    return yes(
        not error,
        f"made under no_grad, a token under inference_mode, one under no_grad: {error or 'ran'}",
    )


def backward_in_inference() -> ProofResult:
    weight, error = leaf(), ""
    loss = (weight * weight).sum()
    with torch.inference_mode():
        loss.backward()
    assert weight.grad is not None
    marked = weight.grad.is_inference()
    error = error_of((weight * weight).sum().backward)
    return yes(
        marked and bool(error),
        f".grad is an inference tensor: {marked}; the next backward(): {error or 'ran'}",
    )


def gradient_set_to_none() -> ProofResult:
    weight = leaf()
    loss = (weight * weight).sum()
    with torch.inference_mode():
        loss.backward()
    weight.grad = None
    error = error_of((weight * weight).sum().backward)
    return yes(not error, f"after zero_grad(set_to_none=True): {error or 'ran'}")


def mark_stays_on() -> ProofResult:
    marked = _features()
    kept = {
        "detach": marked.detach().is_inference(),
        "view": marked.view(-1).is_inference(),
        "to(cpu)": marked.to("cpu").is_inference(),
    }
    return yes(all(kept.values()), f"still inference tensors: {_listed(kept)}")


def mark_comes_off() -> ProofResult:
    marked = _features()
    with scratch.folder() as folder:
        path = folder / "tensor.pt"
        torch.save(marked, path)
        loaded = torch.load(path, weights_only=True)
    kept = {
        "clone": marked.clone().is_inference(),
        "deepcopy": copy.deepcopy(marked).is_inference(),
        "save and load": loaded.is_inference(),
        "double": marked.double().is_inference(),
        "numpy": torch.from_numpy(marked.numpy()).is_inference(),
    }
    return yes(not any(kept.values()), f"still inference tensors: {_listed(kept)}")


def fsdp_in_inference() -> ProofResult:
    with _sharded() as model:
        batch = torch.ones(1, 4)

        def infer() -> None:
            with torch.inference_mode():
                model(batch)

        first = error_of(infer)
        later = error_of(lambda: model(batch).sum().backward())
    return yes(bool(first), f"first forward: {first or 'ran'}; training after it: {later or 'ran'}")


def fsdp_in_no_grad() -> ProofResult:
    with _sharded() as model:
        batch = torch.ones(1, 4)

        def infer() -> None:
            with torch.no_grad():
                model(batch)

        first = error_of(infer)
        later = error_of(lambda: model(batch).sum().backward())
    return yes(
        not (first or later),
        f"under no_grad: {first or 'ran'}; training after it: {later or 'ran'}",
    )


@contextmanager
def _sharded() -> Iterator[nn.Module]:
    from torch import distributed

    if not distributed.is_available():
        raise Absent("this torch was built without torch.distributed")
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
    except ImportError as why:
        raise Absent(f"this torch has no fully_shard: {why}") from why
    with scratch.folder() as folder:
        distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1
        )
        try:
            model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
            fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
            yield model
        finally:
            distributed.destroy_process_group()


def _numbers(tensor: Tensor | None) -> str:
    return "None" if tensor is None else str(tensor.tolist())


def _listed(facts: dict[str, bool]) -> str:
    return ", ".join(f"{name}: {fact}" for name, fact in facts.items())
