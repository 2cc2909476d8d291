"""The command ``gradbench``, and ``python -m gradbench``."""

import signal
import sys
from pathlib import Path


def main() -> None:
    """Run the command line.

    Until that takes signals over, Ctrl-C ends the process at once, and without a traceback of
    imports: nothing has begun.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .cli import main as run_command_line

    run_command_line()


def _current_folder_last() -> None:
    """Undo what ``python -m`` does: a random.py where the user stands is not the library's.

    Unless gradbench itself comes from there, as in a checkout.
    """
    if not sys.flags.safe_path and Path(sys.path[0]) != Path(__file__).parents[1]:
        sys.path.append(sys.path.pop(0))


if __name__ == "__main__":
    _current_folder_last()
    main()
