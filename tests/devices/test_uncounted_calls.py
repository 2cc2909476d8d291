"""What cannot be counted while it runs is refused before it does, and nothing stays patched."""

import pytest
import torch
from torch import nn

from gradbench.devices import OutOfSight
from gradbench.devices.cpu import ProfilerLedger
from gradbench.devices.trace import cpu_changes, trace
from gradbench.devices.uncounted_calls import SCRIPTS, no_forks

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TorchScript itself


class Forking(nn.Module):
    """Gives a part of its work to `torch.jit.fork`."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        part = torch.jit.fork(self.layer, x)
        return self.layer(x) + torch.jit.wait(part)


class Around(nn.Module):
    """Calls a module that forks, in a branch."""

    def __init__(self):
        super().__init__()
        self.inside = Forking()

    def forward(self, x, forks: bool = True):
        if forks:
            x = self.inside(x)
        return x


def doubled(x: torch.Tensor) -> torch.Tensor:
    return torch.jit.wait(torch.jit.fork(torch.relu, x)) * 2


def twice(x: torch.Tensor) -> torch.Tensor:
    return doubled(x) * 2


SCRIPTED = {
    "module": lambda: torch.jit.script(Forking()),
    "module inside": lambda: torch.jit.script(Around()),
    "function inside": lambda: torch.jit.script(twice),
    "traced": lambda: torch.jit.trace(Forking(), torch.ones(1, 4)),
    "in eager": lambda: nn.Sequential(nn.ReLU(), torch.jit.script(Forking())),
}


@pytest.mark.parametrize("build", SCRIPTED.values(), ids=SCRIPTED)
@pytest.mark.parametrize("read", [cpu_changes, lambda call: trace(lambda _: call())])
def test_a_graph_that_forks_is_refused_before_it_runs(build, read):
    script, x = build(), torch.ones(1, 4)
    with pytest.raises(OutOfSight, match=r"its TorchScript forks \(prim::fork\)"):
        read(lambda: script(x))
    assert script(x).shape == (1, 4)  # outside it is as it was


def test_a_refusal_that_the_call_catches_is_one_all_the_same():
    script = SCRIPTED["module"]()

    def catching():
        try:
            return script(torch.ones(1, 4))
        except OutOfSight:
            return None

    with pytest.raises(OutOfSight, match="prim::fork"):
        cpu_changes(catching)


@pytest.mark.parametrize(
    "build",
    [
        Forking,
        lambda: torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU())),
    ],
    ids=["eager", "without a fork"],
)
def test_what_runs_in_the_calling_thread_is_counted(build):
    module, x, ledger = build(), torch.ones(1, 4), ProfilerLedger()
    with torch.no_grad():
        module(x)
        output, window = ledger.observe(lambda: module(x))
    assert window.after_bytes == output.nbytes == 16
    assert window.peak_bytes > 16


def test_scripts_are_called_as_before_once_it_is_over():
    own = [kind.__call__ for kind in SCRIPTS]
    with no_forks():
        assert [kind.__call__ for kind in SCRIPTS] != own
    assert [kind.__call__ for kind in SCRIPTS] == own
