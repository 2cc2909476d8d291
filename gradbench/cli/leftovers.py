"""What killed commands have left behind is removed before anything is measured."""

from ..comparison.leftovers import remove_leftovers
from .app import err
from .screen import shown


def clean_up() -> None:
    """Remove what killed commands of this user have left, and say what that was."""
    for removed in remove_leftovers():
        err.print(f"[dim]{shown(removed)}[/dim]")
