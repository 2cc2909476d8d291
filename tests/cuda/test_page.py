"""The page of a run that was measured on the simulated runtime has a GPU's figures and words."""

import pytest
from pages import Page
from simulated_gpu.stand_in import in_child

from gradbench import runner
from gradbench.experiment.matrix import Matrix
from gradbench.experiment.plan import Plan
from gradbench.records.measurements import Measurement
from gradbench.records.run import Run
from gradbench.report import render

pytestmark = pytest.mark.simulated_cuda

METERS = ("step_time", "host_time", "device_time", "energy", "peak_allocated", "peak_reserved")


@in_child
def test_a_run_on_a_gpu_shows_its_figures_and_no_words_of_the_cpu():
    cells = Matrix(
        models=["mlp_tiny"], grad_modes=["global_on", "no_grad"], devices=["cuda"], batch_sizes=[8]
    )
    plan = Plan(budget_s=0.1, warmup_s=0.02, limit_s=300)
    run = Run("run", tuple(runner.run(cells, plan=plan, meters=METERS)), sealed=True)
    read = {outcome.meter for outcome in run.outcomes if isinstance(outcome, Measurement)}
    assert read == set(METERS)
    text = Page(render(run)).text
    for word in ("host time", "device time", "bound by", "energy", "reserved", "Simulated GPU"):
        assert word in text
    for word in ("page fault", "minor faults", "malloc", "VmHWM"):
        assert word not in text
