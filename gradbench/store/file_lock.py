"""Locks on open files, which end with the process that holds them: each system's own."""

import sys
from typing import IO, Any

if sys.platform == "win32":
    import msvcrt

    def hold(file: IO[Any], *, wait: bool = True) -> None:
        """Hold the file alone; raise `OSError` where another does and ``wait`` is False."""
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)

    def held(file: IO[Any]) -> bool:
        """Say whether another process holds the file alone."""
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return True
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
        return False
else:
    import fcntl

    def hold(file: IO[Any], *, wait: bool = True) -> None:
        """Hold the file alone; raise `OSError` where another does and ``wait`` is False."""
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)

    def held(file: IO[Any]) -> bool:
        """Say whether another process holds the file alone."""
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        return False
