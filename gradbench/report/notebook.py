"""Runs as a notebook shows them: the answer and a table, in the notebook's own colours."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..analysis import headline
from ..analysis.run_view import MEMORY, TIME, Value, View
from ..experiment.matrix import GRAD_MODES, Cell
from ..records.run import Run
from ..records.selfcheck import SelfCheck
from .page import render, write
from .template import fragment

MANY = 60  # rows


class Report:
    """One or more runs: shown in a notebook, or written as a page."""

    def __init__(
        self,
        runs: Run | Sequence[Run],
        *,
        reference: str = GRAD_MODES[0],
        checks: Mapping[str, SelfCheck] | None = None,
    ) -> None:
        self.runs = [runs] if isinstance(runs, Run) else list(runs)
        self.reference, self.checks = reference, checks

    def __repr__(self) -> str:
        """Return the answer of each run, for where no page can be shown."""
        return "\n".join(
            f"{run.name}: {' '.join(headline.answer(run))}".replace("`", "") for run in self.runs
        )

    def html(self) -> str:
        """Return the page."""
        return render(self.runs, checks=self.checks)

    def write(self, path: str | Path) -> Path:
        """Write the page and return where; raise `StoreError` where that cannot be."""
        return write(self.runs, Path(path), checks=self.checks)

    def _repr_html_(self) -> str:
        runs = [self._shown(View(run)) for run in self.runs]
        return fragment("notebook.html.j2", runs=runs, reference=self.reference)

    def _shown(self, view: View) -> dict[str, object]:
        return {
            "name": view.run.name,
            "answer": headline.answer(view),
            "rows": [(cell, self._values(view, cell)) for cell in view.cells[:MANY]],
            "rest": len(view.cells) - MANY,
        }

    def _values(self, view: View, cell: Cell) -> list[Value]:
        return [
            value
            for meter in (TIME, MEMORY)
            for value in (view.value(cell, meter), view.ratio(cell, meter, self.reference))
        ]
