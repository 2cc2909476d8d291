"""The command ``gradbench``, and ``python -m gradbench``."""

import _signal  # type: ignore[import-not-found,unused-ignore] # signal imports enum, and more
import os
import sys

BROKEN = 70
"""As `exit_status.ExitStatus` has it, which is not imported before there is a use for it."""


def main() -> None:
    """Run the command line.

    Until that takes signals over, Ctrl-C ends the process at once, and without a traceback of
    imports: nothing has begun. So nothing that is imported stands before this.
    """
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    if __name__ == "__main__":
        current_folder_last()
    try:
        from .cli import main as run_command_line
    except Exception as error:  # noqa: BLE001 # Python would end with 1, which is a regression
        words = f"it cannot be loaded: {error!r} (python -c 'import gradbench.cli' says where)"
        if sys.stderr is not None:  # or it is closed
            sys.stderr.write(f"gradbench: {words}\n")
        sys.exit(BROKEN)
    run_command_line()


def current_folder_last() -> None:
    """Undo what ``python -m`` does: a random.py where the user stands is not the library's.

    Unless gradbench itself comes from there, as in a checkout. Nothing is imported for that: a
    fnmatch.py would be, too.
    """
    package = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 # loaded already
    if not sys.flags.safe_path and sys.path[0] != os.path.dirname(package):  # noqa: PTH120 # too
        sys.path.append(sys.path.pop(0))


if __name__ == "__main__":
    main()
