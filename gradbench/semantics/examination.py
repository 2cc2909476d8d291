"""Run everything: the table, each proof where it does no harm, the listings."""

import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Final, Literal

import torch

from ..records.semantics import (
    NOT_RUN,
    RAISED,
    Behaviour,
    ClaimResult,
    ListingResult,
    PitfallResult,
)
from ..runner import processes
from ..runner.fork_server import JobError, WorkerDied
from ..runner.processes import Processes
from . import listings, table
from .claims import CLAIMS
from .listings import LISTINGS, Ran
from .pitfalls import PITFALLS
from .proof import Absent, Claim, Pitfall, Proof, ProofResult, in_a_thread
from .record import against, differences, versions_where_shown

LIMIT_S: Final = 300.0
"""After which the process of the proofs that run in another is killed."""

Which = Literal["claim", "shows", "cures"]
Task = tuple[Which, str]


def examine(say: Callable[[str], None] = lambda _: None) -> Behaviour:
    """Return what this torch does, held against what is on record.

    Each proof runs in a fresh thread, so the caller's grad mode neither matters nor changes; those
    that fork, compile or print run in another process, meanwhile. The caller's random state is
    kept.
    """
    seconds: dict[str, float] = {}
    with ThreadPoolExecutor(max_workers=1) as pool:
        elsewhere = pool.submit(_run_alone)
        with _timed(seconds, "table"):
            say("the truth table")
            rows, transitions = table.rows(), table.transitions()
        answers: dict[Task, ProofResult] = {}
        with _timed(seconds, "proofs"):
            for task in _tasks(alone=False):
                say(" ".join(task))
                answers[task] = prove(_proof(*task))
        with _timed(seconds, "waiting for the other process"):
            say("proofs and listings in another process")
            more, ran = elsewhere.result()
    answers |= more
    behaviour = Behaviour(
        torch=torch.__version__,
        python=platform.python_version(),
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=seconds,
        recorded="",
        differences=(),
        transitions=tuple(transitions),
        table=tuple(rows),
        claims=tuple(_claim(claim, answers) for claim in CLAIMS),
        pitfalls=tuple(_pitfall(pitfall, answers) for pitfall in PITFALLS),
        listings=tuple(ran),
    )
    return held_against_record(behaviour)


def prove(proof: Proof) -> ProofResult:
    """Run a proof in a fresh thread; what it lacks or raises becomes the answer."""
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            return in_a_thread(proof)
    except Absent as reason:
        return ProofResult(NOT_RUN, str(reason))
    except Exception as error:  # noqa: BLE001 # another torch may raise anything: that is an answer
        return ProofResult(RAISED, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")


def held_against_record(behaviour: Behaviour) -> Behaviour:
    """Return the same with its differences from the record, and where pitfalls are on record."""
    recorded = against(behaviour.torch)
    return replace(
        behaviour,
        recorded=recorded,
        differences=tuple(differences(behaviour, recorded)),
        pitfalls=tuple(
            replace(pitfall, versions=versions_where_shown(pitfall, behaviour.torch))
            for pitfall in behaviour.pitfalls
        ),
    )


def prove_alone(tasks: Sequence[Task]) -> Iterator[ProofResult]:
    """Yield what each proof saw: a job for another process."""
    for task in tasks:
        yield prove(_proof(*task))


def run_listings(sources: Sequence[str]) -> Iterator[Ran]:
    """Yield how far each program came, each in a thread of its own: a job for another process."""
    for source in sources:
        yield in_a_thread(partial(listings.run, source))


def _tasks(*, alone: bool) -> list[Task]:
    tasks: list[Task] = [
        ("claim", claim.id) for claim in CLAIMS if claim.proof is not None and claim.alone is alone
    ]
    for pitfall in PITFALLS:
        if pitfall.alone is alone:
            tasks += [("shows", pitfall.id), ("cures", pitfall.id)]
    return tasks


def _proof(which: Which, name: str) -> Proof:
    if which == "claim":
        proof = next(claim.proof for claim in CLAIMS if claim.id == name)
        assert proof is not None
        return proof
    pitfall = next(pitfall for pitfall in PITFALLS if pitfall.id == name)
    return pitfall.shows if which == "shows" else pitfall.cures


def _run_alone() -> tuple[dict[Task, ProofResult], list[ListingResult]]:
    server = processes.start("system")
    try:
        return _prove_alone(server), _listings(server)
    finally:
        server.close()


def _prove_alone(server: Processes) -> dict[Task, ProofResult]:
    """Run the proofs in one process; one that takes it down is answered, and the rest go on."""
    answers: dict[Task, ProofResult] = {}
    left = _tasks(alone=True)
    while left:
        results: list[ProofResult] = []
        why = ""
        try:
            results.extend(server.run(prove_alone, left, limit_s=LIMIT_S))
        except (WorkerDied, JobError) as error:
            why = str(error).strip().splitlines()[-1]
        answers |= dict(zip(left, results, strict=False))
        left = left[len(results) :]
        if left:
            answers[left.pop(0)] = ProofResult(RAISED, why)
    return answers


def _listings(server: Processes) -> list[ListingResult]:
    programs = [
        (listing, repaired)
        for listing in LISTINGS.values()
        for repaired in (False, True)
        if repaired or listing.source
    ]
    sources = [one.repaired if repaired else one.source for one, repaired in programs]
    try:
        ran = list(server.run(run_listings, sources, limit_s=LIMIT_S))
    except (WorkerDied, JobError) as error:
        ran = [Ran("", error=f"not run: {error}")] * len(sources)
    return [
        listings.listing_result(listing, repaired=repaired, ran=one)
        for (listing, repaired), one in zip(programs, ran, strict=True)
    ]


def _claim(claim: Claim, answers: Mapping[Task, ProofResult]) -> ClaimResult:
    untestable = ProofResult("not testable", "")
    result = untestable if claim.proof is None else answers["claim", claim.id]
    return ClaimResult(
        id=claim.id,
        place=claim.place,
        says=claim.says,
        truth=claim.truth,
        about=claim.about,
        verdict=result.answer,
        seen=result.words,
    )


def _pitfall(pitfall: Pitfall, answers: Mapping[Task, ProofResult]) -> PitfallResult:
    shown, cured = answers["shows", pitfall.id], answers["cures", pitfall.id]
    return PitfallResult(
        id=pitfall.id,
        title=pitfall.title,
        happens=pitfall.happens,
        why=pitfall.why,
        cure=pitfall.cure,
        link=pitfall.link,
        silent=pitfall.silent,
        shown=shown.answer,
        shown_seen=shown.words,
        cured=cured.answer,
        cured_seen=cured.words,
        versions=(),
    )


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    seconds[part] = round(time.monotonic() - start, 2)
