"""Which facts of their environments must agree before figures of two runs may be compared."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from ..experiment.plan import PROTOCOLS
from ..plurals import counted
from ..records.machines import MIXED, unused_name
from ..records.measurements import Environment, Fact

Facts = Mapping[str, Fact]
Kind = Literal["exact", "instructions", "ratio", "timed", "series"]
"""What a figure is compared as.

``exact`` repeats to the byte, ``instructions`` repeats for one build and one interpreter, ``ratio``
is taken between two modes within a run, ``timed`` is tied to the machine that it was read on.
``series`` is a time that stands in one line of a history with others: there any other fact may
change on the way, and is named where it changes together with the figure.
"""
Scope = Literal["software", "machine"]

_ALL: Final[tuple[Kind, ...]] = ("exact", "instructions", "ratio", "timed", "series")
_JUDGED: Final[tuple[Kind, ...]] = ("exact", "instructions", "ratio", "timed")
_NOISY: Final[tuple[Kind, ...]] = ("ratio", "timed", "series")
_TIMES: Final[tuple[Kind, ...]] = ("timed", "series")

RELEASE: Final = "torch release"
"""The fact ``torch`` without its build: ``2.13.0`` of ``2.13.0+cu130``."""


@dataclass(frozen=True, slots=True)
class _Row:
    """One fact, and the kinds of figures for which it must agree, by where those were measured."""

    fact: str
    scope: Scope
    on_cpu: tuple[Kind, ...]
    on_gpu: tuple[Kind, ...]
    of_gpu: bool = False  # recorded for each GPU: ``cuda:1 gpu`` where the device has a number
    families: tuple[str, ...] = ()  # of devices that have the fact, where not all have
    where_known: bool = False  # a side that could not read it is compared all the same

    def holds(self, kind: Kind, device: str) -> bool:
        if self.families and device.partition(":")[0] not in self.families:
            return False
        return kind in (self.on_cpu if device == "cpu" else self.on_gpu)

    def name(self, device: str) -> str:
        """Return the name that the fact of this device is recorded under."""
        return f"{device} {self.fact}" if self.of_gpu and ":" in device else self.fact


_TABLE: Final = (
    # fact, scope, kinds of a CPU's figures, kinds of a GPU's figures
    _Row("protocol", "software", _ALL, _ALL),
    # On the CPU a build (+cpu, +cu130) changes no deterministic metric; on a GPU it brings kernels.
    _Row(RELEASE, "software", ("exact", "instructions", "ratio"), ()),
    _Row("torch", "software", _TIMES, _ALL),
    _Row("python", "software", ("instructions", "timed"), ("instructions", "timed")),
    # The host's instructions change the host's part of a GPU's time, and none of its bytes.
    _Row("cpu_capability", "machine", _JUDGED, ("ratio", "timed")),
    _Row("cpu", "machine", _NOISY, _NOISY),
    _Row("host", "machine", _TIMES, _TIMES),
    _Row("cores", "machine", _TIMES, _TIMES),
    _Row("gpu", "machine", (), _ALL, of_gpu=True),
    _Row("gpu_capability", "machine", (), _JUDGED, of_gpu=True),
    _Row("gpu_driver", "software", (), ("timed",), of_gpu=True),
    _Row("gpu_power_limit_mw", "machine", (), ("timed",), of_gpu=True, where_known=True),
    _Row("gpu_mig", "machine", (), ("timed",), of_gpu=True, where_known=True),
    _Row("cuda", "software", (), _JUDGED, of_gpu=True, families=("cuda",)),
    _Row("cudnn", "software", (), _JUDGED, of_gpu=True, families=("cuda",)),
    _Row("cudnn_benchmark", "software", (), _JUDGED, of_gpu=True, families=("cuda",)),
    _Row("cuda_allocator", "software", (), _JUDGED, of_gpu=True, families=("cuda",)),
    _Row("cuda_settings", "software", (), _JUDGED, of_gpu=True, families=("cuda",)),
    _Row("accelerator_settings", "software", (), _JUDGED, of_gpu=True, families=("xpu", "mps")),
)


def agreeing(kind: Kind, devices: Iterable[str], *, scope: Scope | None = None) -> tuple[str, ...]:
    """Return the facts that must agree for figures of the kind, by the names they are read by."""
    return tuple(
        dict.fromkeys(
            row.name(device)
            for device in devices
            for row in _TABLE
            if row.holds(kind, device) and scope in (None, row.scope)
        )
    )


def read(facts: Facts, name: str) -> Fact | None:
    """Return a fact by a name of `agreeing`, or None where it was not recorded."""
    if name == RELEASE:
        build = facts.get("torch")
        return None if build is None else str(build).partition("+")[0]
    return facts.get(name)


def processor(facts: Facts, device: str) -> Fact | None:
    """Return what a device is, the model of the CPU or of the GPU, or None if not recorded."""
    name = "cpu" if device == "cpu" else "gpu"
    return next(facts.get(row.name(device)) for row in _TABLE if row.fact == name)


def difference(baseline: Facts, candidate: Facts, *, kind: Kind, device: str) -> str:
    """Return in words why figures of the kind, read on the device, may not be compared, or ``""``.

    A fact that either side did not record, or could not read, counts as different (unless its row
    says otherwise), and so does one
    that is several facts: shards of one run may come from several machines.
    """
    words = []
    for row in _TABLE:
        if not row.holds(kind, device):
            continue
        name = row.name(device)
        sides = read(baseline, name), read(candidate, name)
        if not (row.where_known and any(map(_unread, sides))):
            words.append(_differs(name, *sides))
    return "; ".join(filter(None, words))


def mismatch(first: Facts, second: Facts, names: Sequence[str]) -> str:
    """Return in words how two environments differ in the facts named, or ``""``.

    A fact that neither has counts as equal: both were captured by one gradbench.
    """
    pairs = ((name, read(first, name), read(second, name)) for name in names)
    return "; ".join(
        f"{name} was {'not recorded' if before is None else repr(before)}, "
        f"is {'not there' if after is None else repr(after)}"
        for name, before, after in pairs
        if before != after
    )


def machine_name(facts: Facts, known: Mapping[str, Environment], devices: Iterable[str]) -> str:
    """Return which of the known machines these facts are of, or a name that none of them has."""
    names = agreeing("timed", ["cpu", *devices])
    same = (name for name, one in known.items() if not mismatch(one.facts, facts, names))
    return next(same, "") or unused_name(facts, known)


def machine_kind(facts: Facts, devices: Iterable[str]) -> str:
    """Return in words what is equal for machines that are built alike: all but the host."""
    names = [n for n in agreeing("timed", ["cpu", *devices], scope="machine") if n != "host"]
    words = [
        counted(fact, "core") if name == "cores" and isinstance(fact, int) else str(fact)
        for name in names
        if (fact := facts.get(name)) is not None
    ]
    return ", ".join(words) or "unknown"


def identity(facts: Facts, names: Sequence[str]) -> str:
    """Return twelve characters that are equal where all the facts named are equal."""
    values = json.dumps([read(facts, name) for name in names])
    return hashlib.sha256(values.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def kept_for_exact(facts: Facts, devices: Iterable[str]) -> dict[str, Fact]:
    """Return the facts that figures which repeat need of a committed baseline, and no other."""
    kinds: tuple[Kind, ...] = ("exact", "instructions")
    devices = list(devices)
    names = {name for kind in kinds for name in agreeing(kind, devices)}
    names |= {"torch"} if RELEASE in names else set()
    return {name: fact for name, fact in facts.items() if name in names}


def _unread(fact: Fact | None) -> bool:
    return fact is None or str(fact).startswith("unknown:")


def _differs(name: str, before: Fact | None, after: Fact | None) -> str:
    if _unread(before) or _unread(after):
        return f"{name} is not recorded on both sides"
    sides = str(before), str(after)
    if mixed := next((side for side in sides if side.startswith(MIXED)), ""):
        return f"{name} is {mixed}"
    if sides[0] == sides[1]:
        return ""
    since = PROTOCOLS.get(sides[1], "") if name == "protocol" else ""
    return f"{name} was {sides[0]!r}, is {sides[1]!r}{f' ({since})' if since else ''}"
