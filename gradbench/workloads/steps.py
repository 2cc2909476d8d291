"""What one step does with a grad mode: forward, training, one after the other, or tokens."""

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from ..errors import Impossible, in_one_line
from .distributed import SHARDING, Spread, replicated, sharded
from .generation import Decoding, Generation, lengthened, likeliest
from .grad_modes import MODES, GradMode
from .module_parts import parameters, parts, tensors_of
from .trees import Batch, mapped, tensors

P = ParamSpec("P")
T = TypeVar("T")

Step = Callable[[], object]

Region = Callable[[], AbstractContextManager[object]]

Optimizers = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

# So small that the weights stay where they are: step 10,000 costs what step 1 did.
LEARNING_RATE: Final = 1e-6
OPTIMIZERS: Final[Mapping[str, Optimizers]] = {
    "sgd": partial(torch.optim.SGD, lr=LEARNING_RATE),
    "sgd_momentum": partial(torch.optim.SGD, lr=LEARNING_RATE, momentum=0.9),
    "adamw": partial(torch.optim.AdamW, lr=LEARNING_RATE),
}


@dataclass(frozen=True, slots=True)
class Subject:
    """One model and one batch, shared by every mode of a block."""

    module: nn.Module
    forward: Callable[..., Any]  # the module, compiled or not
    given: Any  # the batch, as the model wants it: see `batch`
    loss: Callable[[Any, Any], Tensor]  # of an output and what was given
    head: nn.Module | None = None  # taken out of the module, which then yields features
    cut: "Cut | None" = None  # what stands in the place of the head
    optimizer: Optimizers = OPTIMIZERS["sgd"]
    generation: Generation | None = None
    new_tokens: int = 0  # that are made after the prompt
    notes: Mapping[str, str | int | float | bool] = field(default_factory=dict)  # on its figures
    region: Region | None = None  # what forward and loss stand in together: autocast's

    @property
    def batch(self) -> Batch:
        """What the module is called with."""
        return Batch.of(self.given)

    def call(self) -> Callable[[], Any]:
        """Return the call of the module on its batch."""
        return self.inside(self.bare_call())

    def call_and_loss(self) -> Callable[[], Tensor]:
        """Return the call, and the loss of what it returns."""
        call, loss, given = self.bare_call(), self.loss, self.given
        return self.inside(lambda: loss(call(), given))

    def bare_call(self) -> Callable[[], Any]:
        """Return the call, for whoever stands in the region."""
        batch = self.batch
        return partial(self.forward, *batch.args, **batch.kwargs)

    def inside(self, function: Callable[P, T]) -> Callable[P, T]:
        """Return a function that runs in the region, if there is one."""
        region = self.region
        if region is None:
            return function

        def within(*args: P.args, **kwargs: P.kwargs) -> T:
            with region():
                return function(*args, **kwargs)

        return within

    @property
    def device(self) -> torch.device:
        """Where the module is, or its batch."""
        placed = (one.device for one in self.resident() if not one.is_meta)
        return next(placed, torch.device("cpu"))

    def clear_gradients(self) -> None:
        """Drop the gradients, so that what a step adds is counted from the same start."""
        for parameter in self.parameters():
            parameter.grad = None

    def parts(self) -> list[nn.Module]:
        """Return the modules that hold parameters."""
        return [self.module, *([self.head] if self.head is not None else [])]

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of all parts."""
        return [parameter for part in self.parts() for parameter in parameters(part)]

    def resident(self) -> list[Tensor]:
        """Return what is there whether a graph is kept or not: parameters, buffers, the batch."""
        owned = [tensor for part in self.parts() for tensor in tensors_of(part)]
        return [*owned, *(tensor for _, tensor in tensors(self.given))]


class Cut(nn.Module):
    """Stands where a head was: passes features on, and keeps them if what is returned is a tree."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the head would have been called with first."""
        if not torch.compiler.is_compiling():
            self.calls.append((args, kwargs))
        return args[0] if args else next(iter(kwargs.values()))


@dataclass(frozen=True, slots=True)
class Workload:
    """How to make a step, and what it asks of whoever runs it."""

    name: str
    prepare: Callable[[Subject, GradMode], Step]
    needs_graph: bool = False  # backward() runs where the mode rules
    mode_inside: bool = False  # the step enters the mode itself: the caller must not hold it
    splits_head: bool = False  # the model's head is trained apart from the rest
    optimizes: bool = True  # the step ends with an optimizer's
    reenables: bool = False  # the step turns grad on again inside the mode
    evaluates: bool = False  # the step trains outside the mode after an evaluation inside it
    generates: bool = False  # the step makes tokens: the model has a `Generation`
    set_up_inside: bool = False  # what a step begins with is made inside the mode, by its construct
    spread: Spread | None = None  # the model is spread over ranks, which step together
    one_subject: bool = True  # modes step the same module; or is each given one of its own?
    imports: tuple[str, ...] = ()  # modules that may be imported before processes are forked

    def held(self, mode: GradMode) -> AbstractContextManager[object]:
        """Return the context that the caller holds around steps."""
        return nullcontext() if self.mode_inside else mode.hold()

    def output(self, subject: Subject, mode: GradMode) -> object:
        """Return what the forward of a step returns, called once where the mode is held."""
        if self.generates:
            return self.prepare(subject, mode)()
        if self.evaluates:
            switch(subject.module, training=False)
        inside = mode.reenable() if self.reenables else nullcontext()
        with mode.enter() if self.mode_inside else inside:
            return subject.call()()


def switch(module: nn.Module, *, training: bool) -> None:
    """Call ``train()`` or ``eval()``; where that raises, say so to each part by hand.

    They may be words for something else, its author's training loop say. A module that was exported
    in one mode refuses both for good, and stays as it is.
    """
    change = module.train if training else module.eval
    try:
        change()
    except Exception:  # noqa: BLE001 # whatever its author's own method raises
        if not isinstance(module, torch.fx.GraphModule):
            for part in parts(module):
                part.training = training


def inference(subject: Subject, _mode: GradMode) -> Step:
    """Forward in ``eval()``."""
    switch(subject.module, training=False)
    return subject.call()


def training(subject: Subject, _mode: GradMode) -> Step:
    """Forward in ``train()``, loss, backward and an optimizer step, wherever the caller stands."""
    switch(subject.module, training=True)
    optimizer = _optimizer(subject, subject.module, "it")
    call_and_loss = subject.call_and_loss()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        _backward(call_and_loss())
        optimizer.step()

    return step


def _optimizer(subject: Subject, part: nn.Module, whose: str) -> torch.optim.Optimizer:
    """Return what trains a part; raise `Impossible` where there is nothing in it to train."""
    parameters = list(part.parameters())
    if not parameters:
        raise Impossible(
            f"{whose} has no parameters to train, as after dynamic quantization: measure inference"
        )
    return subject.optimizer(parameters)


def _backward(loss: Any) -> None:
    """Go backward from a loss; raise `TypeError` that says what it is where it is no one number."""
    try:
        loss.backward()
    except (AttributeError, RuntimeError) as error:
        if not isinstance(loss, Tensor):
            words = f"its loss is {type(loss).__name__}, not a tensor: return one number"
            raise TypeError(words) from error
        if loss.numel() != 1:
            words = f"its loss has the shape {tuple(loss.shape)}: return its mean or its sum"
            raise TypeError(words) from error
        raise


def training_reenabled(subject: Subject, mode: GradMode) -> Step:
    """Do as `training` does, inside the construct that records a graph within the mode."""
    train, reenable = training(subject, mode), mode.reenable

    def step() -> None:
        with reenable():
            train()

    return step


def frozen_backbone(subject: Subject, mode: GradMode) -> Step:
    """Compute features inside the mode, train the head on them outside.

    Nothing is frozen by ``requires_grad``: under ``global_on`` autograd records the backbone and
    backward runs through it for gradients that nobody uses, which is what the modes save.
    """
    if subject.head is None:
        raise Impossible("frozen_backbone trains a model's head, and this model names none")
    head = subject.head
    switch(subject.module, training=False)
    switch(head, training=True)
    optimizer = _optimizer(subject, head, "its head")
    enter, call, given, loss = mode.enter, subject.bare_call(), subject.given, subject.loss
    clear, cut, region = subject.clear_gradients, subject.cut, subject.region or nullcontext

    def step() -> None:
        clear()
        with region():
            with enter():
                features = _features(call(), cut)
            args, kwargs = mapped(features, _recordable)
            del features
            value = loss(head(*args, **kwargs), given)
        _backward(value)
        del value
        optimizer.step()

    return step


def evaluation(subject: Subject, mode: GradMode) -> Step:
    """Forward in ``eval()`` inside the mode, which the step enters and leaves."""
    module, enter, call = subject.module, mode.enter, subject.call()

    def step() -> None:
        switch(module, training=False)
        with enter():
            call()

    return step


def evaluate_then_train(subject: Subject, mode: GradMode) -> Step:
    """Evaluate inside the mode, then do a training step outside it.

    Training finds in the module what the evaluation has left there, such as a cache that it filled.
    """
    train, evaluate = training(subject, mode), evaluation(subject, mode)
    module = subject.module

    def step() -> None:
        evaluate()
        switch(module, training=True)
        train()

    return step


def _features(output: object, cut: Cut | None) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Return what the head is to be called with: the output, or what the cut saw last."""
    calls = [] if cut is None else list(cut.calls)
    if cut is not None:
        cut.calls.clear()
    return calls[-1] if calls else ((output,), {})


def _recordable(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy of an inference tensor, which autograd may not save."""
    return tensor.clone() if tensor.is_inference() else tensor


def prefill(subject: Subject, _mode: GradMode) -> Step:
    """Take in the prompts in ``eval()``, into a cache with room for new tokens; make the first."""
    how, model, prompts = _generating(subject)

    def step() -> tuple[Tensor, Tensor]:
        scores, _ = how.prefill(model, prompts, subject.new_tokens)
        return likeliest(scores), scores

    return step


def decode(subject: Subject, mode: GradMode) -> Step:
    """Make one token in ``eval()``, on a cache that holds the prompts and new tokens.

    The cache comes of one prefill and has no graph: what the graph of earlier tokens keeps, where
    one is recorded, `generate` shows.
    """
    how, model, prompts = _generating(subject)
    length, token = prompts.shape[1] + subject.new_tokens - 1, prompts[:, :1]

    def set_up() -> Any:
        return how.prefill(model, lengthened(prompts, length), 1)[1]

    def one_token(cache: Any) -> tuple[Tensor, Tensor]:
        scores, _ = how.decode(model, token, cache)
        return likeliest(scores), scores

    return Decoding(set_up, one_token, mode.enter)


def generate(subject: Subject, _mode: GradMode) -> Step:
    """Take in the prompts and make all new tokens in ``eval()``, each the likeliest."""
    how, model, prompts = _generating(subject)

    def step() -> Tensor:
        scores, cache = how.prefill(model, prompts, subject.new_tokens)
        tokens = [likeliest(scores)]
        for _ in range(subject.new_tokens - 1):
            scores, cache = how.decode(model, tokens[-1], cache)
            tokens.append(likeliest(scores))
        return torch.cat(tokens, 1)

    return subject.inside(step)


def _generating(subject: Subject) -> tuple[Generation, Callable[..., Any], Tensor]:
    """Return how the subject makes tokens, what it calls for that, and the prompts."""
    switch(subject.module, training=False)
    assert subject.generation is not None  # `Model.generating` has refused one without
    (prompts,) = subject.batch.args
    how = subject.generation
    how = replace(how, prefill=subject.inside(how.prefill), decode=subject.inside(how.decode))
    return how, subject.forward, prompts


WORKLOADS: Final[Mapping[str, Workload]] = {
    workload.name: workload
    for workload in (
        Workload("inference", inference, optimizes=False),
        Workload("training", training, needs_graph=True),
        Workload("training_reenabled", training_reenabled, reenables=True),
        Workload("frozen_backbone", frozen_backbone, mode_inside=True, splits_head=True),
        Workload("evaluate_then_train", evaluate_then_train, mode_inside=True, evaluates=True),
        Workload("prefill", prefill, optimizes=False, generates=True),
        Workload("decode", decode, optimizes=False, generates=True, set_up_inside=True),
        Workload("generate", generate, optimizes=False, generates=True),
        Workload("inference_ddp", inference, optimizes=False, spread=replicated),
        Workload("training_ddp", training, needs_graph=True, spread=replicated),
        Workload(
            "inference_fsdp2",
            inference,
            optimizes=False,
            spread=sharded,
            one_subject=False,
            imports=SHARDING,
        ),
        Workload(
            "training_fsdp2",
            training,
            needs_graph=True,
            spread=sharded,
            one_subject=False,
            imports=SHARDING,
        ),
    )
}


NOTHING_RECORDED: Final = (
    "does not require grad and does not have a grad_fn",
    "Inference tensors cannot be saved for backward",
)
"""torch's words for a backward() over what was not recorded."""


MADE_INSIDE: Final = ("nference tensor", "InferenceMode", "inference mode", "no_grad mode")
"""torch's words for what was made inside a mode and does not go into a graph outside it."""


_MISFIT: Final = re.compile(r"argument|shape|size|dim|index|dtype|channels|expected", re.I)
"""Words of errors over what a module was called with."""


def must_fail(workload: str, grad_mode: str) -> bool:
    """Return whether the step runs backward() where nothing is recorded."""
    return WORKLOADS[workload].needs_graph and not MODES[grad_mode].records


def may_fail(workload: str, grad_mode: str) -> bool:
    """Return whether the mode alone can be why the step fails, as it must or by what it leaves."""
    row = WORKLOADS[workload]
    return (row.needs_graph or row.evaluates) and not MODES[grad_mode].records


def says_the_mode(workload: str, grad_mode: str, error: BaseException) -> bool:
    """Return whether torch's words are those of a step that fails for its mode.

    Training must fail so where the mode records nothing, and may after an evaluation there; but so
    does a model that no mode can train, so whoever calls that expected asks the same step under
    ``global_on``, too.
    """
    if not (may_fail(workload, grad_mode) and isinstance(error, RuntimeError)):
        return False
    made_inside = MADE_INSIDE if WORKLOADS[workload].evaluates else ()
    return any(words in str(error) for words in (*NOTHING_RECORDED, *made_inside))


def is_over_the_call(error: BaseException) -> bool:
    """Return whether an error may be over what the module was called with: then that is said."""
    return isinstance(error, TypeError | RuntimeError | IndexError) and bool(
        _MISFIT.search(in_one_line(error))
    )
