"""A prediction is made in a child: what a step does to its process reaches no other prediction."""

import os
import random
import signal
import threading
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jobs
import psutil
import pytest
import torch
from batches import unlabelled
from torch import nn

from gradbench.devices.cpu import CPU
from gradbench.experiment.matrix import GRAD_MODES, Cell
from gradbench.experiment.plan import Plan
from gradbench.memory import measured_step, predict
from gradbench.memory.child_process import Children, Died, TimedOut, frames_of
from gradbench.memory.predict import EndsItsProcess, Predictor, TookTooLong, Unpredictable
from gradbench.records.measurements import Measurement, Skipped
from gradbench.runner.prediction_pass import predict_block
from gradbench.workloads.models import MODELS, Model

REMEMBERED = {}


class Ends(nn.Linear):
    def forward(self, x):
        if not torch.is_grad_enabled():
            os._exit(0)
        return super().forward(x)


class Widens(nn.Linear):
    def forward(self, x):
        before = torch.zeros(64).nbytes
        torch.set_default_dtype(torch.float64)
        return super().forward(x) + torch.zeros(before)[: x.shape[0], None].to(x.dtype)


class Remembers(nn.Linear):
    def forward(self, x):
        if "scale" not in REMEMBERED:
            REMEMBERED["scale"] = torch.ones(8)
        return super().forward(x) * REMEMBERED["scale"]


def predicted(module, modes=GRAD_MODES):
    """What a block's predictions are, by mode, made in the order of the modes."""
    model = Model(build=lambda: module(8, 8), batch=lambda n: torch.ones(n, 8))
    cells = [Cell(model="mine", workload="inference", grad_mode=m, batch_size=4) for m in modes]
    found = predict_block(cells, model, Plan(), ["predicted_peak"])
    return {o.cell.grad_mode: o for o in found if isinstance(o, Measurement | Skipped)}


def test_a_step_that_ends_its_process_costs_its_own_prediction_alone():
    outcomes = predicted(Ends)
    assert isinstance(outcomes["global_on"], Measurement)
    for mode in GRAD_MODES[1:]:
        assert outcomes[mode].cause == "crashed"
        assert outcomes[mode].reason == "its step ended its process: ended early with exit status 0"


@pytest.mark.slow
@pytest.mark.parametrize("module", [Widens, Remembers])
def test_a_prediction_is_the_same_whichever_modes_were_predicted_before(module):
    forth, back = predicted(module), predicted(module, GRAD_MODES[::-1])
    assert {mode: o.values for mode, o in forth.items()} == {m: o.values for m, o in back.items()}
    assert forth["global_off"].values == forth["no_grad"].values
    assert torch.get_default_dtype() is torch.float32
    assert REMEMBERED == {}


def test_what_ends_the_child_is_said_to_the_caller():
    model = Model(build=partial(os._exit, 3), batch=lambda n: torch.ones(n, 8))
    cell = Cell(model="mine", workload="inference", grad_mode="no_grad", batch_size=4)
    with pytest.raises(EndsItsProcess, match="its step ended its process: ended early"):
        Predictor("cpu").predict(cell, model)


def held(name):
    """A module whose forward does what its name says before it multiplies."""
    return Model(partial(HELD[name], 4, 2), partial(unlabelled, shape=(4,)))


class Endless(nn.Linear):
    def forward(self, x):
        while True:
            time.sleep(0.01)


FREE = 2**32


class Huge(nn.Linear):
    def forward(self, x):
        torch.empty(FREE, dtype=torch.uint8)
        return super().forward(x) if x.sum().item() < 1e9 else x


class Draws(nn.Linear):
    def forward(self, x):
        return super().forward(x.repeat(1 + random.randrange(8), 1))


class KeepsAState(nn.Linear):
    generator = torch.Generator()

    def forward(self, x):
        self.state = self.generator.get_state()
        return super().forward(x)


HELD = {kind.__name__: kind for kind in (Endless, Huge, Draws, KeepsAState)}
ONE = Cell(model="it", workload="inference", grad_mode="no_grad", batch_size=4)


def test_a_step_without_end_is_killed_at_its_limit_and_that_is_the_reason():
    with pytest.raises(TookTooLong, match=r"killed at its time limit of 0\.5 s"):
        Predictor("cpu", limit_s=0.5).predict(ONE, held("Endless"))


def test_a_block_whose_predictions_take_all_its_time_has_a_reason_a_cell():
    cells = [replace(ONE, grad_mode=mode) for mode in GRAD_MODES[:2]]
    said = [
        message
        for message in predict_block(cells, held("Endless"), Plan(limit_s=1.0), ())
        if isinstance(message, Skipped)
    ]
    assert [(one.cell, one.cause) for one in said] == [(cell, "timed_out") for cell in cells]


def test_a_step_that_is_too_large_to_be_run_here_is_not_run(monkeypatch):
    """It asks for all free memory, and would be measured, for it looks at a number."""
    monkeypatch.setattr(measured_step, "free_bytes", lambda: FREE)  # others take and give, too
    with pytest.raises(Unpredictable, match="it needs more than half of the free memory, "):
        Predictor("cpu").predict(ONE, held("Huge"))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Draws", "its step draws random numbers of Python or NumPy"),
        ("KeepsAState", "its step keeps real tensors, which nobody counts"),
    ],
)
def test_what_a_step_takes_from_elsewhere_is_measured_and_says_so(name, why):
    prediction = Predictor("cpu").predict(ONE, held(name))
    assert prediction.why_measured.startswith(why)
    assert prediction.measured_at == (4,)


@pytest.mark.slow
def test_where_no_process_can_be_forked_a_fresh_one_predicts_the_same(monkeypatch):
    model = MODELS["mlp_tiny"]
    one = replace(ONE, model="mlp_tiny")
    expected = Predictor("cpu").predict(one, model)
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("a process was forked"))
    found = Predictor("cpu", forks=False).predict(one, model)
    assert found.breakdown == expected.breakdown
    assert found.unprobed == expected.unprobed == ()


def test_in_a_process_group_no_step_is_measured_by_a_child_that_would_wait_for_it(monkeypatch):
    there = SimpleNamespace(is_available=lambda: True, is_initialized=lambda: True)
    monkeypatch.setattr(predict, "dist", there)
    with pytest.raises(Unpredictable, match=r"draws random numbers.*is in a process group"):
        Predictor("cpu").predict(ONE, held("Draws"))


def complain(_say=None):
    raise ValueError("no weights")


def test_what_a_child_raises_has_its_authors_frames_with_it():
    for children in (Children(device=CPU()), Children(device=CPU(), forks=False)):
        with pytest.raises(ValueError, match="no weights") as raised:
            children.run(complain)
        first, *_, last = frames_of(raised.value).splitlines()
        assert first.endswith("in complain")
        assert last == "ValueError: no weights"
    assert frames_of(Died("it ended")) == ""


def test_a_fresh_process_that_ends_says_how():
    children = Children(device=CPU(), forks=False)
    with pytest.raises(Died, match="ended early with exit status 7"):
        children.run(ends_with_seven)


def test_a_child_is_waited_for_and_not_what_it_has_started_which_ends_with_it(tmp_path):
    daemon = Children(device=CPU()).run(lambda _say: jobs.daemon())
    assert not psutil.pid_exists(daemon)

    def die(_say):
        (tmp_path / "daemon").write_text(str(jobs.daemon()))
        os._exit(3)

    with pytest.raises(Died, match="exit status 3"):
        Children(device=CPU()).run(die)
    assert not psutil.pid_exists(int((tmp_path / "daemon").read_text()))


def test_a_child_that_stops_its_parent_is_ended_at_its_limit_all_the_same():
    def stop(_say):
        os.kill(os.getppid(), signal.SIGSTOP)
        time.sleep(600)

    with pytest.raises(TimedOut, match=r"time limit of 0\.5 s"):
        Children(device=CPU(), limit_s=0.5).run(stop)


def test_a_child_that_forks_and_returns_in_both_answers_once():
    def forks(say):
        os.fork()
        say(1)
        return "one answer"

    assert Children(device=CPU()).run(forks) == "one answer"


def ends_with_seven(_say):
    os._exit(7)


def test_what_runs_beside_answers_when_it_is_waited_for_and_is_ended_when_it_is_left():
    with Children(device=CPU()).beside(lambda _: os.getpid()) as result:
        assert result() != os.getpid()

    def asleep(_say):
        signal.signal(signal.SIGALRM, signal.SIG_IGN)  # of its own limit
        while True:  # so that whoever waits for it waits for ever
            time.sleep(60)

    before = set(psutil.Process().children())
    with pytest.raises(KeyboardInterrupt), Children(device=CPU()).beside(asleep):
        (child,) = (one.pid for one in set(psutil.Process().children()) - before)
        raise KeyboardInterrupt
    assert not psutil.pid_exists(child)


def in_parallel(_say=None):
    """Compute with two threads; return how many those were, and the sum."""
    torch.set_num_threads(2)
    return torch.get_num_threads(), torch.ones(2**20).sum().item()


def test_a_child_computes_with_several_threads_also_after_its_parent_did():
    """Its parent's are not there, and waiting for them would take for ever."""
    before, answers = torch.get_num_threads(), []

    def parent():
        in_parallel()
        answers.append(Children(device=CPU(), limit_s=30).run(in_parallel))

    thread = threading.Thread(target=parent)  # so that no pool stays behind in this process
    thread.start()
    thread.join()
    torch.set_num_threads(before)
    assert answers == [(2, 2**20)]
