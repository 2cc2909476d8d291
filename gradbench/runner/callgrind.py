"""Valgrind's callgrind: how to start it, ask it from inside, and read what it has counted."""

import ctypes
import mmap
import platform
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from ..devices import Unreadable

DUMPS: Final = "dump"  # relative, so that a folder's random name is no part of what is counted

# A client request (valgrind.h): four rotations that undo one another, which no compiler emits, and
# an exchange of rbx with itself; rax points to the request, rdx takes the answer. On the real
# processor they do nothing. As a C function of one pointer:
_REQUEST: Final[Mapping[str, bytes]] = {
    "x86_64": bytes.fromhex(
        "4889f8"  # mov rax, rdi
        "31d2"  # xor edx, edx
        "48c1c703 48c1c70d 48c1c73d 48c1c733"  # rol rdi, 3; 13; 61; 51
        "4887db"  # xchg rbx, rbx
        "4889d0"  # mov rax, rdx
        "c3"  # ret
    ),
}
_TOOL: Final = ord("C") << 24 | ord("T") << 16  # callgrind.h
_ZERO, _DUMP_AT, _START = _TOOL + 1, _TOOL + 3, _TOOL + 4
_NAMED: Final = re.compile(r"^desc: Trigger: Client Request: (.+)$", re.MULTILINE)
_TOTAL: Final = re.compile(r"^totals: (\d+)$", re.MULTILINE)


def command(python: Sequence[str], *, dumps: str = DUMPS) -> list[str]:
    """Return how to run Python under callgrind, which then writes files of that name.

    ``%p`` in the name is the process's number, of a fork its own; without a folder in it, they lie
    in the current one. Counting is off until `Requests.start`: importing torch takes a quarter of
    the time that way.
    Raise `Unreadable` where there is no valgrind, or no way to ask it.
    """
    machine = platform.machine()
    if machine not in _REQUEST:
        raise Unreadable(f"requests to valgrind are known for {', '.join(_REQUEST)}: not {machine}")
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise Unreadable("valgrind is not on the PATH: install it to count instructions")
    options = ["--tool=callgrind", "--instr-atstart=no", "--dump-line=no", "--vgdb=no"]
    return [valgrind, *options, f"--callgrind-out-file={dumps}", *python]


class Requests:
    """What a process asks of the callgrind it runs under; outside of it, nothing happens.

    Each is a call into C that allocates nothing, so that it disturbs as little as it can.
    """

    def __init__(self) -> None:
        code = _REQUEST[platform.machine()]
        self._page = mmap.mmap(
            -1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        )
        self._page.write(code)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        self._ask = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_void_p)(address)
        self._kept: list[object] = []
        self.start = self._request(_START)
        """Begin to count."""
        self.zero = self._request(_ZERO)
        """Forget what has been counted so far."""

    def dump(self, name: str) -> Callable[[], object]:
        """Return what writes down what has been counted, under a name, and zeroes it."""
        text = ctypes.create_string_buffer(name.encode())
        self._kept.append(text)
        return self._request(_DUMP_AT, ctypes.addressof(text))

    def _request(self, code: int, argument: int = 0) -> Callable[[], object]:
        request = (ctypes.c_size_t * 6)(code, argument)
        self._kept.append(request)
        ask, pointer = self._ask, ctypes.c_void_p(ctypes.addressof(request))
        return lambda: ask(pointer)


def read_dumps(folder: Path, *, dumps: str = DUMPS) -> dict[str, list[int]]:
    """Return the counts of a folder's dumps by what they count, in the order they were written.

    A dump that was cut short has no total, and counts for nothing.
    """
    files = sorted(folder.glob(f"{dumps}.*"), key=lambda file: int(file.suffix[1:]))
    counts: dict[str, list[int]] = {}
    for file in files:
        text = file.read_text("utf-8", errors="replace")
        name, total = _NAMED.search(text), _TOTAL.search(text)
        if name and total:
            counts.setdefault(name[1], []).append(int(total[1]))
    return counts
