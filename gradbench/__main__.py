"""The command ``gradbench``, and ``python -m gradbench``."""

import _signal  # type: ignore[import-not-found,unused-ignore] # signal imports enum, and more
import sys


def main() -> None:
    """Run the command line.

    Until that takes signals over, Ctrl-C ends the process at once, and without a traceback of
    imports: nothing has begun. So nothing that is imported stands before this.
    """
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    if __name__ == "__main__":
        current_folder_last()
    from .cli import main as run_command_line

    run_command_line()


def current_folder_last() -> None:
    """Undo what ``python -m`` does: a random.py where the user stands is not the library's.

    Unless gradbench itself comes from there, as in a checkout.
    """
    from pathlib import Path

    if not sys.flags.safe_path and Path(sys.path[0]) != Path(__file__).parents[1]:
        sys.path.append(sys.path.pop(0))


if __name__ == "__main__":
    main()
