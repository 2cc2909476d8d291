"""The names by which a comparison's worker drives a version of gradbench.

A comparison runs the candidate's worker script on both sides, and on each side the worker imports
that side's gradbench. When gradbench itself is compared, the two differ. So this module's path and
names stay, wherever what they name may move.
"""

from ..experiment.matrix import Cell as Cell
from ..experiment.model_source import ModelSource as ModelSource
from ..memory.saved_tensors import SavedTensors as SavedTensors
from ..memory.step_operations import counted_step as counted_step, operations_of as operations_of
from ..runner.attempts import settle as settle
from ..runner.callgrind import Requests as Requests
from ..runner.instructions_pass import (
    ROUNDS as ROUNDS,
    WARM_UP_STEPS as WARM_UP_STEPS,
    Counter as Counter,
)
from ..runner.timing_rules import calibrate as calibrate, precision as precision
from ..workloads.arms import build as build, make_arm as make_arm
from ..workloads.models import MODELS as MODELS
from ..workloads.own_models import (
    file_of as file_of,
    from_path as from_path,
    model_of as model_of,
    resolve as resolve,
)
