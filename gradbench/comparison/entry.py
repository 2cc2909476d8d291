"""The names by which a comparison's worker drives a version of gradbench.

A comparison runs the candidate's worker script on both sides, and on each side the worker imports
that side's gradbench. When gradbench itself is compared, the two differ. So this module's path and
names stay, wherever what they name may move.
"""

from ..arms import build as build, make_arm as make_arm
from ..matrix import Cell as Cell
from ..models import MODELS as MODELS, from_path as from_path, resolve as resolve
from ..runner.block import settle as settle
from ..saved import SavedTensors as SavedTensors
