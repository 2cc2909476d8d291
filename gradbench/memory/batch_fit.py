"""The largest batch that fits a budget: a line is followed to it, and checked there twice.

A prediction is asked for the checks. A run has its measured peaks alone, and its line ends there.
"""

from collections.abc import Callable
from typing import Final

from ..errors import GradbenchError, Impossible
from ..experiment.matrix import Cell
from ..records.predictions import LARGEST_BATCH, Fit, Prediction

SMALLEST: Final = (2, 1, 3, 4, 8, 16, 32)
"""Where the first batch that works is looked for; BatchNorm cannot be trained with one sample."""

CHECKS: Final = 3
"""How often a line is followed to a guess."""

Predict = Callable[[int], Prediction]
Estimate = Callable[[int], int | None]
"""A peak without a step, or None where there is none to give."""

Follow = Callable[[int, int], Estimate | None]
"""Return a way to estimate peaks from two batch sizes."""


def largest(
    cell: Cell,
    budget_bytes: int,
    predict: Predict,
    follow: Follow,
    *,
    final: type[GradbenchError] | tuple[type[GradbenchError], ...] = (),
) -> Fit:
    """Return the largest batch whose process fits; raise what every small batch raises.

    What is ``final`` is raised at once: no other batch would mend it.

    A batch is guessed by following the line through two small ones. If it is predicted to fit,
    and the next not to, it is found. If not, the line is moved by what it was off there, and after
    a few times `_Search` goes on from what is known.
    """
    search = _Search(budget_bytes, predict, final)
    first = search.first()
    if search.peak(first) > budget_bytes:
        return search.below(cell, first)
    estimate = follow(first, 2 * first)
    fits, over = first, 0
    off_bytes = 0  # how far the line was off where a step was last predicted
    for _ in range(CHECKS):
        if estimate is None:
            break
        guess = followed_to(estimate, budget_bytes - off_bytes, fits=fits, over=over)
        for batch in (guess, guess + 1):
            if not fits < batch < (over or LARGEST_BATCH + 1):
                continue
            if search.peak(batch) <= budget_bytes:
                fits = batch
            else:
                over = batch
                break
        if fits in (over - 1, LARGEST_BATCH):
            break
        off_bytes = search.peak(guess) - (estimate(guess) or search.peak(guess))
    return search.between(cell, fits, over)


def followed_to(estimate: Estimate, budget_bytes: int, *, fits: int = 0, over: int = 0) -> int:
    """Return the largest batch that fits by estimates alone; `LARGEST_BATCH` where all do.

    It lies between a batch that ``fits`` and one that is ``over``, 0 where none is known.
    """
    last = (over or LARGEST_BATCH + 1) - 1

    def exceeds(batch: int) -> bool:
        nbytes = estimate(batch)
        return nbytes is None or nbytes > budget_bytes

    high = fits + 1
    while high <= last and not exceeds(high):
        fits, high = high, high * 2
    high = min(high, last + 1)
    while high - fits > 1:
        middle = (fits + high) // 2
        fits, high = (fits, middle) if exceeds(middle) else (middle, high)
    return fits


class _Search:
    """Asks each batch once, and narrows down between one that fits and one that does not."""

    def __init__(
        self,
        budget_bytes: int,
        predict: Predict,
        final: type[GradbenchError] | tuple[type[GradbenchError], ...],
    ) -> None:
        self._budget_bytes, self._predict, self._final = budget_bytes, predict, final
        self._tried: dict[int, Prediction] = {}

    def first(self) -> int:
        """Return the first batch that works; raise what the first of all raised."""
        errors: list[GradbenchError] = []
        for batch in SMALLEST:
            try:
                self.peak(batch)
            except self._final:
                raise
            except GradbenchError as error:
                errors.append(error)
            else:
                return batch
        raise errors[0]

    def peak(self, batch: int) -> int:
        """Return a batch's predicted peak."""
        if batch not in self._tried:
            self._tried[batch] = self._predict(batch)
        return self._tried[batch].process_bytes

    def fit(self, cell: Cell, batch: int, following: int | None) -> Fit:
        """Return the answer: the batch, 0 for none, and the next one up, which does not fit."""
        one = self._tried[batch or following or 0]
        return Fit(
            cell,
            self._budget_bytes,
            batch,
            self.peak(batch) if batch else None,
            self.peak(following) if following is not None else None,
            one.context_bytes,
            one.unprobed,
            one.run_otherwise,
            one.measured_at,
            one.why_measured,
            one.checked_at,
        )

    def below(self, cell: Cell, over: int) -> Fit:
        """Return the answer where the first batch that works is too large: one sample, or none."""
        try:
            fits = self.peak(1) <= self._budget_bytes
        except GradbenchError:
            return self.fit(cell, 0, over)
        return self.fit(cell, 1, over) if fits else self.fit(cell, 0, 1)

    def between(self, cell: Cell, fits: int, over: int) -> Fit:
        """Search on from a batch that fits to one that does not, 0 where none is known.

        Peaks rise with the batch in straight pieces, so a guess lies where the line through the
        closest batches that fit and do not meets the budget; where that did not halve what is
        between them, the next guess does.
        """
        if not over:
            over = min(fits * 4, LARGEST_BATCH)
            while self.peak(over) <= self._budget_bytes:
                if over == LARGEST_BATCH:
                    self._hold_that_it_grows(over)
                    return self.fit(cell, over, None)
                fits, over = over, min(over * 4, LARGEST_BATCH)
        halve = False
        while over - fits > 1:
            between = over - fits
            slope = (self.peak(over) - self.peak(fits)) / between
            left = self._budget_bytes - self.peak(fits)
            guess = fits + int(left // slope) if slope > 0 else 0
            middle = (fits + over) // 2 if halve else min(max(guess, fits + 1), over - 1)
            if self.peak(middle) <= self._budget_bytes:
                fits = middle
                if fits + 1 < over and self.peak(fits + 1) > self._budget_bytes:
                    over = fits + 1
            else:
                over = middle
            halve = not halve and (over - fits) * 2 > between
        return self.fit(cell, fits, over)

    def _hold_that_it_grows(self, most: int) -> None:
        """Raise `Impossible` where millions of samples take as much as the first batch did."""
        least = min(self._tried)
        if self.peak(most) == self.peak(least):
            raise Impossible(
                f"its peak is the same at batch {least:,} as at {most:,}: what it is called with "
                "does not have the batch size that is asked for"
            )
