"""The proofs of the claims: each runs what a claim is about and returns the verdict it sees."""

import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from .. import own_python
from ..devices import Unreadable, find
from ..memory.saved_tensors import SavedTensors
from .listings import LISTINGS, Ran, run
from .proof import Absent, ProofResult, bits, claim_verdict, error_of, leaf

DEPTH: Final = 32
WIDTH: Final = 16  # so small that torch uses one thread: a busy machine is slow to wake a second
BATCH: Final = 16


# --- title, introduction, and what is left out


def only_a_function() -> ProofResult:
    with torch.set_grad_enabled(False):
        inside = torch.is_grad_enabled()
    after = torch.is_grad_enabled()

    @torch.set_grad_enabled(False)
    def decorated() -> bool:
        return torch.is_grad_enabled()

    works = not inside and after and not decorated()
    return claim_verdict(
        not works, f"in a with: {inside}, after it: {after}, decorated: {decorated()}"
    )


def two_ways_only() -> ProofResult:
    weight = leaf()
    with torch.no_grad():
        ordinary = weight * 2
    with torch.inference_mode():
        marked, both = weight * 2, bits()
    third = marked.is_inference() and not ordinary.is_inference()
    return claim_verdict(
        not third, f"inference_mode sets {both} and marks what is made in it: {third}"
    )


def graph_is_controlled() -> ProofResult:
    weight = leaf()
    with torch.no_grad():
        product, view = weight * 2, weight[:2]
    cut = not product.requires_grad and (weight * 2).requires_grad
    return claim_verdict(
        cut,
        f"a product made in the block requires grad: {product.requires_grad}, "
        f"a view: {view.requires_grad}",
        always=not view.requires_grad,
    )


def on_everywhere() -> ProofResult:
    elsewhere = _other_thread_while(lambda: torch.set_grad_enabled(True), starts_with=False)
    return claim_verdict(elsewhere, f"set True here; another thread that was off reads {elsewhere}")


def within_a_block() -> ProofResult:
    def called() -> bool:
        return torch.is_grad_enabled()

    def generator() -> object:
        with torch.no_grad():
            yield

    with torch.no_grad():
        inside, in_callee = torch.is_grad_enabled(), called()
    after = torch.is_grad_enabled()
    suspended = iter(generator())  # type: ignore[call-overload] # a generator, as its name says
    next(suspended)
    leaked = not torch.is_grad_enabled()
    suspended.close()
    return claim_verdict(
        not inside and after,
        f"inside {inside}, after {after}, in a function called from it {in_callee}, "
        f"leaked by a suspended generator: {leaked}",
        always=in_callee and not leaked,
    )


def changes_results() -> ProofResult:
    model, batch = _mlp(), torch.ones(BATCH, WIDTH)
    outputs = []
    for enter in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with enter():
            outputs.append(model(batch))
    equal = all(torch.equal(outputs[0], other) for other in outputs[1:])
    weight = leaf()
    with torch.no_grad():
        view = weight.view(-1)
    view.sum().backward()
    lost = weight.grad is None
    return claim_verdict(
        lost or not equal,
        f"outputs bit-equal: {equal}; a gradient lost through a view without an error: {lost}",
        always=not equal,
    )


# --- section 1, paragraph 1


def runtime_wide_switch() -> ProofResult:
    def starts() -> bool:
        return torch.is_grad_enabled()

    torch.set_grad_enabled(False)
    elsewhere = _in_another_thread(starts)
    return claim_verdict(
        not elsewhere, f"set False here; a thread started after it reads {elsewhere}"
    )


def everything_is_tracked() -> ProofResult:
    torch.set_grad_enabled(True)
    plain = torch.ones(3)
    tracked = {
        "weight * 2": (leaf() * 2).requires_grad,
        "plain * 2": (plain * 2).requires_grad,
        "weight.argmax()": leaf().argmax().requires_grad,
    }
    return claim_verdict(all(tracked.values()), _listed(tracked))


def graph_for_backward() -> ProofResult:
    weight = leaf()
    product = weight * 2
    node = product.grad_fn
    assert node is not None
    ((end, _),) = (pair for pair in node.next_functions if pair[0] is not None)
    reached = getattr(end, "variable", None) is weight
    product.sum().backward()
    return claim_verdict(
        reached and weight.grad is not None,
        f"{node.name()} leads to the weight: {reached}; gradient {_numbers(weight.grad)}",
    )


def on_by_default() -> ProofResult:
    code = "import torch; print(torch.is_grad_enabled(), torch.is_inference_mode_enabled())"
    answer = subprocess.run(
        own_python.python("-c", code), capture_output=True, text=True, check=True
    )
    words = answer.stdout.strip()
    return claim_verdict(words == "True False", f"grad, inference in a fresh interpreter: {words}")


def entirely_off() -> ProofResult:
    torch.set_grad_enabled(False)
    product = leaf() * 2
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.ones(3), torch.ones(3))
        tangent = forward_ad.unpack_dual(dual * dual).tangent
    view = leaf()[:2]
    return claim_verdict(
        not product.requires_grad,
        f"weight * 2 requires grad: {product.requires_grad}; forward-mode derivatives go on: "
        f"{tangent is not None}; a view says it requires grad: {view.requires_grad}",
        always=tangent is None and not view.requires_grad,
    )


def less_memory() -> ProofResult:
    trained, frozen = _peak_ratio(frozen=False), _peak_ratio(frozen=True)
    return claim_verdict(
        trained >= 2,
        f"MLP of {DEPTH} layers: a forward adds {trained:.1f} times as much at its peak with grad "
        f"on as off; with frozen parameters {frozen:.2f} times",
        always=frozen >= 2,
    )


def useful_for_inference() -> ProofResult:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5))
    batch = torch.ones(BATCH, WIDTH)
    with torch.no_grad():
        kept = _saved(model, batch)
        alike = torch.equal(model(batch), model(batch))
        model.eval()
        alike_in_eval = torch.equal(model(batch), model(batch))
    return claim_verdict(
        kept == 0,
        f"{kept} B kept for backward; two passes agree before eval(): {alike}, after: "
        f"{alike_in_eval}",
        always=alike,
    )


def useful_when_pretrained() -> ProofResult:
    model, batch = _mlp(), torch.ones(BATCH, WIDTH)
    loaded = _saved(model, batch)
    with torch.no_grad():
        off = _saved(model, batch)
    model.requires_grad_(requires_grad=False)
    frozen = _saved(model, batch)
    return claim_verdict(
        loaded > off,
        f"kept for backward: {loaded} B as loaded, {off} B with grad off, {frozen} B frozen and "
        "with grad on",
        always=frozen > off,
    )


# --- section 1, paragraphs 2 and 3


def temporary() -> ProofResult:
    restored = []
    for ambient in (True, False):
        torch.set_grad_enabled(ambient)
        with torch.no_grad():
            pass
        restored.append(torch.is_grad_enabled() is ambient)
        with suppress(ZeroDivisionError), torch.no_grad():
            _ = 1 / 0
        restored.append(torch.is_grad_enabled() is ambient)
    return claim_verdict(
        all(restored), f"put back what was there, on or off, also after an error: {all(restored)}"
    )


def no_graph_in_the_block() -> ProofResult:
    torch.set_grad_enabled(True)
    weight = leaf()
    loss = (weight**3).sum()
    with torch.no_grad():
        product = weight * 2
        (derivative,) = torch.autograd.grad(loss, weight, create_graph=True)
        with torch.enable_grad():
            nested = weight * 2
    return claim_verdict(
        product.grad_fn is None,
        f"weight * 2 has a graph: {product.requires_grad}; inside a nested enable_grad: "
        f"{nested.requires_grad}; grad(create_graph=True): {derivative.requires_grad}",
        always=not (nested.requires_grad or derivative.requires_grad),
    )


def hierarchy() -> ProofResult:
    outcomes = {}
    for outer in (True, False):
        for inner in (True, False):
            with torch.set_grad_enabled(outer):
                torch.set_grad_enabled(inner)
                outcomes[outer, inner] = torch.is_grad_enabled()
    last_wins = all(state is inner for (_, inner), state in outcomes.items())
    return claim_verdict(not last_wins, f"whichever comes last decides, block or call: {last_wins}")


def sets_a_global_state() -> ProofResult:
    with torch.no_grad():
        torch.set_grad_enabled(True)
        inside = torch.is_grad_enabled()
    with torch.enable_grad():
        torch.set_grad_enabled(False)
    survived = not torch.is_grad_enabled()
    return claim_verdict(
        survived, f"called inside a block it acts ({inside}); it outlives the block: {survived}"
    )


def block_overrides() -> ProofResult:
    torch.set_grad_enabled(True)
    with torch.no_grad():
        inside = torch.is_grad_enabled()
    return claim_verdict(not inside, f"grad inside the block: {inside}")


def nothing_changes_when_off() -> ProofResult:
    torch.set_grad_enabled(False)
    weight = leaf()
    before = bits(), (weight * 2).requires_grad
    with torch.no_grad():
        inside = bits(), (weight * 2).requires_grad
    return claim_verdict(
        before == inside == ((False, False), False), f"before {before}, inside {inside}"
    )


def default_and_exceptions() -> ProofResult:
    torch.set_grad_enabled(False)
    with torch.enable_grad():
        excepted = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        overruled = not torch.is_grad_enabled()
    return claim_verdict(
        excepted and not torch.is_grad_enabled(),
        f"enable_grad under off: {excepted}; a call inside the block overrules it: {overruled}",
        always=not overruled,
    )


# --- listing 1


def first_call_enables() -> ProofResult:
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(True)
    after = torch.is_grad_enabled()
    return claim_verdict(
        after, f"before the call {before}, after it {after}", always=before is not after
    )


def fails_inside_the_block() -> ProofResult:
    scaled = leaf() * 2
    with torch.no_grad():
        shifted = (scaled + 1).sum()
        inside = error_of(shifted.backward)
    outside = error_of(shifted.backward)
    return claim_verdict(
        bool(inside), f"inside: {inside or 'ran'}; outside: {outside or 'ran'}", always=not outside
    )


def tracked_after_the_block() -> ProofResult:
    after = _cut_by_a_block(leaf()) * 3
    return claim_verdict(
        after.requires_grad,
        f"grad is {'on' if torch.is_grad_enabled() else 'off'}, and the result has a graph: "
        f"{after.requires_grad}",
    )


def gradients_reach_the_leaf() -> ProofResult:
    weight = leaf()
    result = _cut_by_a_block(weight) * 3
    error = error_of(result.sum().backward)
    return claim_verdict(not error and weight.grad is not None, error or f"gradient {weight.grad}")


def three_elements_need_no_argument() -> ProofResult:
    result = leaf() * 3
    error = error_of(result.backward)
    return claim_verdict(not error, error or "backward() ran")


def first_listing_completes() -> ProofResult:
    return _completes(run(LISTINGS["local-disable"].source))


def override_is_shown() -> ProofResult:
    torch.set_grad_enabled(True)
    with torch.no_grad():
        inside = torch.is_grad_enabled()
    return claim_verdict(
        not inside and torch.is_grad_enabled(), f"inside {inside}, after it on again"
    )


def block_result_is_untracked() -> ProofResult:
    shifted = _cut_by_a_block(leaf())
    return claim_verdict(not shifted.requires_grad, f"it requires grad: {shifted.requires_grad}")


# --- listing 2


def off_in_the_whole_program() -> ProofResult:
    torch.set_grad_enabled(False)
    here, elsewhere = torch.is_grad_enabled(), _in_another_thread(torch.is_grad_enabled)
    return claim_verdict(
        not here, f"here {here}, in a new thread {elsewhere}", always=not elsewhere
    )


def raises_because_it_is_off() -> ProofResult:
    recorded = (leaf() * 2).sum()
    torch.set_grad_enabled(False)
    unrecorded = (leaf() * 2).sum()
    off, earlier = error_of(unrecorded.backward), error_of(recorded.backward)
    torch.set_grad_enabled(True)
    on = error_of(unrecorded.backward)
    return claim_verdict(
        bool(off),
        f"while off: {off or 'ran'}; after switching on: {on or 'ran'}; a graph recorded before, "
        f"while off: {earlier or 'ran'}",
        always=bool(earlier) and not on,
    )


def global_dominates() -> ProofResult:
    torch.set_grad_enabled(False)
    with torch.enable_grad():
        inside = (leaf() * 2).requires_grad
    return claim_verdict(not inside, f"under off, enable_grad records: {inside}")


def backward_needs_grad_on() -> ProofResult:
    weight = leaf()
    loss = (weight * 2).sum()
    torch.set_grad_enabled(False)
    with torch.no_grad():
        error = error_of(loss.backward)
    return claim_verdict(bool(error), error or f"backward() ran; gradient {_numbers(weight.grad)}")


def second_listing_completes() -> ProofResult:
    ran = run(LISTINGS["global-disable"].source)
    return _completes(ran)


# --- listing 3


def flag_is_on_again() -> ProofResult:
    with torch.no_grad(), torch.enable_grad():
        inside = torch.is_grad_enabled()
    return claim_verdict(inside, f"grad in the nested block: {inside}")


def inner_backward_reaches_the_block() -> ProofResult:
    scaled = leaf() * 2
    with torch.no_grad():
        shifted = scaled + 1
        with torch.enable_grad():
            doubled = (shifted * 2).sum()
            error = error_of(doubled.backward)
    return claim_verdict(not error, error or "backward() ran")


def later_backward_reaches_the_leaf() -> ProofResult:
    weight = leaf()
    with torch.no_grad():
        shifted = weight * 2 + 1
    error = error_of((shifted * 3).sum().backward)
    return claim_verdict(not error and weight.grad is not None, error or f"gradient {weight.grad}")


def third_listing_completes() -> ProofResult:
    return _completes(run(LISTINGS["nested-reenable"].source))


def reenabling_records() -> ProofResult:
    weight = leaf()
    with torch.no_grad():
        earlier = weight * 2
        with torch.enable_grad():
            fresh, continued = weight * 2, earlier * 2
    with torch.inference_mode(), torch.enable_grad():
        flag, in_inference = torch.is_grad_enabled(), weight * 2
    return claim_verdict(
        fresh.requires_grad,
        f"recorded from a leaf: {fresh.requires_grad}, from a result of the block: "
        f"{continued.requires_grad}, in inference mode: {in_inference.requires_grad} with the flag "
        f"at {flag}",
        always=continued.requires_grad and in_inference.requires_grad,
    )


def any_depth() -> ProofResult:
    def nest(depth: int) -> bool:
        wanted = depth % 2 == 0
        with torch.set_grad_enabled(wanted):
            below = nest(depth - 1) if depth else True
            return below and (leaf() * 2).requires_grad is wanted

    right = nest(50)
    return claim_verdict(
        right, f"50 blocks, alternately on and off, each as asked on its way out: {right}"
    )


def stays_in_the_inner_block() -> ProofResult:
    weight = leaf()
    with torch.no_grad(), torch.enable_grad():
        (weight * 2).sum().backward()
    return claim_verdict(
        weight.grad is None, f"a leaf from outside has gradient {_numbers(weight.grad)}"
    )


def is_not_retained() -> ProofResult:
    weight = leaf()
    with torch.no_grad():
        with torch.enable_grad():
            loss = (weight * 2).sum()
        kept = loss.requires_grad
    error = error_of(loss.backward)
    return claim_verdict(
        not kept or bool(error),
        f"the graph is there in the outer block: {kept}; backward() after both: "
        f"{error or 'ran'}; gradient {_numbers(weight.grad)}",
    )


def only_its_input_changes() -> ProofResult:
    weight = leaf()
    with torch.no_grad():
        shifted = weight * 2
        with torch.enable_grad():
            (shifted * weight).sum().backward()
    return claim_verdict(
        shifted.grad is not None and weight.grad is None,
        f"gradient of the block's result {shifted.grad}, of the leaf {_numbers(weight.grad)}",
    )


# --- what they share


def _in_another_thread(function: Callable[[], bool]) -> bool:
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(function()))
    thread.start()
    thread.join()
    return answers[0]


def _other_thread_while(act: Callable[[], object], *, starts_with: bool) -> bool:
    """Return what a thread reads that set its mode before something was done in this one."""
    ready, done = threading.Event(), threading.Event()
    answers: list[bool] = []

    def other() -> None:
        torch.set_grad_enabled(starts_with)
        ready.set()
        done.wait()
        answers.append(torch.is_grad_enabled())

    thread = threading.Thread(target=other)
    thread.start()
    ready.wait()
    act()
    done.set()
    thread.join()
    return answers[0]


def _cut_by_a_block(weight: Tensor) -> Tensor:
    scaled = weight * 2
    with torch.no_grad():
        return scaled + 1


def _completes(ran: Ran) -> ProofResult:
    if ran.error:
        return claim_verdict(False, f"stops at {ran.stopped_at}: {ran.error.partition(chr(10))[0]}")
    return claim_verdict(True, "prints " + " / ".join(ran.printed.splitlines()))


def _mlp() -> nn.Module:
    layers = (layer for _ in range(DEPTH) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU()))
    return nn.Sequential(*layers)


def _saved(model: nn.Module, batch: Tensor) -> int:
    with SavedTensors(apart=[batch, *model.parameters()]) as saved:
        model(batch)
    return saved.nbytes


def _peak_ratio(*, frozen: bool) -> float:
    """Return what a forward adds at its peak with grad on, over the same with grad off."""
    try:
        ledger = find("cpu").ledger()
    except Unreadable as why:
        raise Absent(str(why)) from why
    model, batch = _mlp().requires_grad_(not frozen), torch.ones(BATCH, WIDTH)
    added = []
    for enter in (torch.enable_grad, torch.no_grad):
        with enter():
            _, window = ledger.observe(lambda: (model(batch), None)[1])
        added.append(window.peak_bytes - window.before_bytes)
    return added[0] / added[1]


def _numbers(tensor: Tensor | None) -> str:
    return "None" if tensor is None else str(tensor.tolist())


def _listed(facts: dict[str, bool]) -> str:
    return ", ".join(f"{name}: {fact}" for name, fact in facts.items())
