"""Runs as a notebook shows them: the answer and a table, in the notebook's own colours."""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from ..analysis.run_view import MEMORY, TIME, View
from ..experiment.matrix import GRAD_MODES
from ..records.run import Run
from . import headline
from .page import Checks, render, write
from .template import prose

MANY = 60  # rows
_HEADINGS = ("cell", "grad mode", "step time", "×", "memory", "×")


class Report:
    """One or more runs: shown in a notebook, or written as a page."""

    def __init__(
        self,
        runs: Run | Sequence[Run],
        *,
        reference: str = GRAD_MODES[0],
        checks: Checks | None = None,
    ) -> None:
        self.runs = [runs] if isinstance(runs, Run) else list(runs)
        self.reference, self.checks = reference, checks

    def html(self) -> str:
        """Return the page."""
        return render(self.runs, checks=self.checks)

    def write(self, path: str | Path) -> Path:
        """Write the page and return where; raise `StoreError` where that cannot be."""
        return write(self.runs, Path(path), checks=self.checks)

    def _repr_html_(self) -> str:
        return str(Markup("").join(self._shown(run) for run in self.runs))

    def _shown(self, run: Run) -> Markup:
        view = View(run)
        answer = Markup("").join(
            Markup("<p>{}</p>").format(prose(s)) for s in headline.answer(view)
        )
        lines = Markup("").join(
            Markup("<tr><td>{}</td><td>{}</td>{}</tr>").format(
                str(cell.block),
                cell.grad_mode,
                Markup("").join(
                    Markup('<td style="text-align:right" title="{}">{}</td>').format(
                        value.detail, value.text
                    )
                    for value in (
                        view.value(cell, TIME),
                        view.ratio(cell, TIME, self.reference),
                        view.value(cell, MEMORY),
                        view.ratio(cell, MEMORY, self.reference),
                    )
                ),
            )
            for cell in view.cells[:MANY]
        )
        rest = len(view.cells) - MANY
        more = f"{rest} more cells: Report(run).write('page.html')" if rest > 0 else ""
        head = Markup("").join(Markup("<th>{}</th>").format(name) for name in _HEADINGS)
        return Markup(
            "<div><p><b>run {}</b>; × is the ratio to {}</p>{}"
            "<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table><p>{}</p></div>"
        ).format(run.name, self.reference, answer, head, lines, more)
