"""A step with hooks on what autograd saves: what they saw, or why that is not all there is."""

from functools import partial
from typing import Final

from torch import nn
from torch.autograd.graph import Node
from torch.nn.modules.module import register_module_forward_hook

from ..devices import Device, Unreadable
from ..memory.fused_calls import FusedCalls
from ..memory.leaves import kept_unsaved, nodes
from ..memory.saved_tensors import SavedTensors, paths, unwatched_thread
from ..memory.step_phases import Marks
from ..workloads.arms import CellArm
from ..workloads.state import RandomNumbers
from . import ranks
from .attempts import Refusal, guarded

OTHER_PATH: Final = (
    "with hooks its step does not take torch's fused attention as often as it is timed with"
)


class SavedStep:
    """Makes a step of an arm with hooks, from the random numbers with which all steps begin.

    ``fused_calls`` are those of fused attention in a step without hooks.
    """

    def __init__(
        self,
        arm: CellArm,
        marks: Marks,
        numbers: RandomNumbers,
        device: Device,
        *,
        fused_calls: tuple[int, int],
    ) -> None:
        self._arm, self._marks, self._numbers, self._device = arm, marks, numbers, device
        self._fused_calls = fused_calls

    def read(self) -> SavedTensors | Unreadable:
        """Make the step; return what autograd saved of it, or why that is not known."""
        subject = self._arm.subject
        recorder = SavedTensors(modules=paths(*subject.parts()), apart=subject.resident())
        look = _GraphLook(recorder)
        fused = guarded(partial(self._with_hooks, recorder, look), self._device)
        if isinstance(fused, Refusal):
            if fused.cause == "out_of_memory":
                why = "memory ran out while saved tensors were counted"
                return Unreadable(f"{why}: {fused.reason}")
            return Unreadable(f"saved-tensor hooks do not work here: {fused.reason}")
        if look.unseen or look.elsewhere:
            what = f"{look.elsewhere} runs" if look.elsewhere else "a graph is built"
            return unwatched_thread(what)
        if fused.counts != self._fused_calls:
            return Unreadable(OTHER_PATH)
        if look.unsaved:
            return Unreadable(f"a graph is built, and {look.unsaved}, not saved")
        return recorder

    def _with_hooks(self, recorder: SavedTensors, look: "_GraphLook") -> FusedCalls:
        """Make a step with hooks, and another where a node of its graph was seen by none."""
        with recorder, FusedCalls() as fused:
            self._step(look)
        if ranks.any_of("a node is unseen", bool(look.unseen)):
            # was that there before? Then a further step has it, too
            self._step(again := _GraphLook(recorder))
            look.unseen -= again.nodes
        return fused

    def _step(self, look: "_GraphLook") -> None:
        self._marks.look = look
        looking = register_module_forward_hook(look.returned)
        try:
            self._numbers.put_back()
            with self._arm.held():
                self._arm.step()
        finally:
            looking.remove()
            self._marks.look = None


class _GraphLook:
    """Looks at the graphs of what a forward returns, for what no hook sees."""

    def __init__(self, recorder: SavedTensors) -> None:
        self._recorder, self._hooks = recorder, recorder.hooks
        self.unseen: set[Node] = set()  # nodes that hold what nobody packed
        self.nodes: set[Node] = set()
        self.unsaved = ""  # who keeps tensors that nobody saved
        self.elsewhere = ""  # the class of a module that ran in a thread that nobody watches

    def returned(self, module: nn.Module, _inputs: object, _output: object) -> None:
        """Look at which thread a module runs in."""
        if not self._hooks.here:
            self.elsewhere = type(module).__name__

    def __call__(self, output: object) -> None:
        self.unseen |= self._hooks.unseen(output)
        self.nodes |= set(nodes(output))
        if kept_unsaved(output):
            self.unsaved = "a node keeps tensors by an attribute"
        kept = self._hooks.given.kept()
        if any(one is None or not self._recorder.counts(one) for one in kept):
            self.unsaved = "a tensor's hook keeps tensors"
