"""Possible interference with a measurement: thresholds, plain sentences, and remedies."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from ..plurals import counted
from ..records.machines import MIXED
from ..records.measurements import NOT_GUARANTEED, Fact, Measurement
from ..records.run import Run
from . import format_units
from .run_sentences import leaks, oddities, other_paths


@dataclass(frozen=True, slots=True)
class Finding:
    """One possible interference: the sign of it, and the remedy."""

    name: str
    sentence: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Symptom:
    """A number read off a timed measurement, and when it is too large.

    ``read`` returns the number, or None where the measurement does not hold it.
    """

    name: str
    threshold: float
    read: Callable[[Measurement], float | None]
    sentence: str  # formatted with the value in `words`
    remedy: str
    words: Callable[[float], str] = "{:.1f}".format


def spread(measurement: Measurement) -> float:
    """Return the 90th percentile of the rounds over their median."""
    values = measurement.per_step()
    return float(np.quantile(values, 0.9) / np.median(values))


def drift(measurement: Measurement) -> float:
    """Return how far the median of the last third of rounds is from that of the first, relative."""
    values = measurement.per_step()
    third = max(1, len(values) // 3)
    return abs(float(np.median(values[-third:]) / np.median(values[:third])) - 1)


def _note(name: str) -> Callable[[Measurement], float | None]:
    def read(measurement: Measurement) -> float | None:
        value = measurement.notes.get(name)
        return float(value) if isinstance(value, int | float) else None

    return read


def _beside(measurement: Measurement) -> float | None:
    """Return on how many other devices blocks were measured at the same time."""
    others = measurement.notes.get("measured_beside")
    return float(len(str(others).split(", "))) if others is not None else None


BUSY: Final = 0.5
"""Load before a run, over the cores, from which it is worth a warning."""

OTHERS_BUSY_CORES: Final = 0.5
"""Cores that other processes keep busy, from which it is worth a warning."""

STEAL: Final = 0.02
"""Share of the time that the hypervisor takes, from which it is worth a warning."""

SYMPTOMS: Final = (
    Symptom(
        "other work",
        OTHERS_BUSY_CORES,
        _note("others_busy_cores"),
        "other processes kept {value} cores busy",
        "stop other work, or measure where there is none",
    ),
    Symptom(
        "side by side",
        0.0,
        _beside,
        "blocks of {value} ran at the same time",
        "their processes share the host's caches and memory bandwidth: bytes do not show it, and "
        "times to compare with another run's want --one-at-a-time",
        lambda value: counted(int(value), "other device"),
    ),
    Symptom(
        "steal",
        STEAL,
        _note("steal"),
        "the hypervisor took {value} of the machine's time for its other guests",
        "measure at another time or on a dedicated machine; intervals are wider for it",
        format_units.share,
    ),
    Symptom(
        "involuntary switches",
        0.1,
        _note("switches_per_batch"),
        "a timed batch was preempted {value} times on average",
        "stop other work, or keep a core free for gradbench",
        format_units.digits,
    ),
    Symptom(
        "page faults",
        1.0,
        _note("minor_faults_per_step"),
        "a step took {value}",
        "with malloc=system this is expected; with pinned, warm up longer: warmup_s in a TOML file",
        lambda value: counted(round(value), "page fault"),
    ),
    Symptom(
        "spread",
        1.5,
        spread,
        "a tenth of the rounds took {value} times the median or longer",
        "read the interval, not single rounds; a quieter machine narrows it",
    ),
    Symptom(
        "drift",
        0.05,
        drift,
        "times moved by {value} from the first third of the rounds to the last",
        "use ratios, in which drift cancels; do not compare these times with another run's",
        format_units.share,
    ),
    Symptom(
        "throttling",
        0.0,
        _note("throttled_share"),
        "the GPU lowered its clocks in {value} of the samples",
        "lock the clocks at one that it can hold (nvidia-smi -lgc); to let it cool does not help "
        "against a power cap",
        format_units.share,
    ),
)


def diagnose(measurement: Measurement) -> list[Finding]:
    """Return the possible interference with a timed measurement, thresholds as in `SYMPTOMS`."""
    if measurement.unit != "ns" or not measurement.values:
        return []
    symptoms = []
    for symptom in SYMPTOMS:
        value = symptom.read(measurement)
        if value is not None and value > symptom.threshold:
            sentence = symptom.sentence.format(value=symptom.words(value))
            symptoms.append(Finding(symptom.name, sentence, symptom.remedy))
    return symptoms


def possible_interference(run: Run) -> list[str]:
    """Return what may have moved a run's figures, a sentence each with its remedy.

    What the environment says, what the timed rounds show, and what steps leave behind for others.
    The one list: page, terminal, Markdown and annotations print it.
    """
    facts = run.environment.facts
    lines = [
        f"{warning.name}: {warning.sentence}; {warning.remedy}" for warning in before_a_run(facts)
    ]
    lines += [
        f"{name}: {words}" for name, words in facts.items() if name.startswith(NOT_GUARANTEED)
    ]
    lines += [
        f"mixed machines: {name} is {value}"
        for name, value in facts.items()
        if isinstance(value, str) and value.startswith(MIXED)
    ]
    if facts.get("git_dirty") is True:
        lines.append("dirty tree: the working directory held changes that no commit names")
    return [*lines, *_symptoms(run), *leaks(run), *other_paths(run), *oddities(run)]


def _symptoms(run: Run) -> list[str]:
    """Return the symptoms of timed figures, each once, with the blocks it was seen in."""
    blocks_by_symptom: dict[tuple[str, str], dict[str, str]] = {}
    for outcome in run.outcomes:
        if isinstance(outcome, Measurement) and outcome.meter == "step_time":
            for symptom in diagnose(outcome):
                blocks = blocks_by_symptom.setdefault((symptom.name, symptom.remedy), {})
                blocks.setdefault(str(outcome.cell.block), symptom.sentence)
    lines = []
    for (name, remedy), blocks in blocks_by_symptom.items():
        (block, sentence), *more = blocks.items()
        rest = f" and {counted(len(more), 'more block')}" if more else ""
        lines.append(f"{name}: {sentence} in {block}{rest}; {remedy}")
    return lines


def before_a_run(facts: Mapping[str, Fact]) -> list[Finding]:
    """Return what would interfere with a run here, by `environment.capture` and its `watch`."""
    warnings = []
    busy = facts.get("others_busy_cores")
    if isinstance(busy, int | float) and busy > OTHERS_BUSY_CORES:
        sentence = f"other processes keep {busy:.1f} cores busy, of {facts.get('cores')}"
        warnings.append(Finding("other work", sentence, "stop it first, or expect wider intervals"))
    warnings += _load(facts) if busy is None else []  # watched, it says more than a past load
    governor = str(facts.get("cpu_governor", ""))
    if governor in ("powersave", "ondemand", "conservative", "schedutil"):
        warnings.append(
            Finding(
                "governor",
                f"the CPU's governor is {governor}: its clock follows the work",
                "cpupower frequency-set -g performance",
            )
        )
    if facts.get("torch_debug") is True:
        warnings.append(
            Finding("debug build", "torch is a debug build", "install a release build of torch")
        )
    nice = facts.get("nice")
    if isinstance(nice, int) and nice > 0:
        warnings.append(
            Finding(
                "nice", f"this process has nice {nice}", "start it with nice 0: others go first"
            )
        )
    steal = facts.get("steal")
    if isinstance(steal, int | float) and steal > STEAL:
        warnings.append(
            Finding(
                "steal",
                f"the hypervisor takes {steal:.0%} of the time for its other guests",
                "measure at another time or on a dedicated machine",
            )
        )
    return [*warnings, *_gpu(facts)]


COMPUTE_MODES: Final[Mapping[int, str]] = {
    2: "the GPU's compute mode lets no process in",
    3: "the GPU's compute mode lets one process in: a comparison of versions needs two",
}


def _gpu(facts: Mapping[str, Fact]) -> Iterator[Finding]:
    """Yield what of a GPU's setting would interfere, by what `devices` describe of it."""
    mode = facts.get("gpu_compute_mode")
    if isinstance(mode, int) and mode in COMPUTE_MODES:
        yield Finding("compute mode", COMPUTE_MODES[mode], "nvidia-smi -c DEFAULT")
    if "CUDA_LAUNCH_BLOCKING=1" in str(facts.get("cuda_settings", "")):
        yield Finding(
            "launch blocking",
            "CUDA_LAUNCH_BLOCKING=1 makes the host wait for each kernel: its time holds the GPU's",
            "unset it",
        )
    if facts.get("gpu_persistence") is False:
        yield Finding(
            "persistence",
            "the GPU's driver may unload between two processes: each then starts it again",
            "nvidia-smi -pm 1",
        )


def _load(facts: Mapping[str, Fact]) -> list[Finding]:
    load, cores = facts.get("load_before"), facts.get("cores")
    if not (isinstance(load, int | float) and isinstance(cores, int)) or load <= BUSY * cores:
        return []
    sentence = f"it was {load:.2f} on {counted(cores, 'core')} before the run"
    return [Finding("load", sentence, "stop other work first")]
