"""Numbers with the units people read, three significant digits."""

import re
from fractions import Fraction
from typing import Final

_TIMES: Final = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns"))
_ENERGIES: Final = ((1e9, "kJ"), (1e6, "J"), (1e3, "mJ"), (1.0, "µJ"))
_COUNTS: Final = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_BYTES: Final = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def digits(value: float) -> str:
    """Return three significant digits; numbers from 100 up are written out, with commas."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return text if "e" not in text else f"{value:.2e}"


def duration(nanoseconds: float) -> str:
    """Return ``1.23 ms`` for 1_230_000."""
    for scale, unit in _TIMES:
        if abs(nanoseconds) >= scale * 0.9995:
            return f"{digits(nanoseconds / scale)} {unit}"
    return f"{digits(nanoseconds)} ns"


def size(number: float) -> str:
    """Return ``1.5 MiB`` for 1_572_864, and bytes below 1 KiB."""
    for scale, unit in _BYTES:
        if abs(number) >= scale * 0.9995:
            return f"{digits(number / scale)} {unit}"
    return f"{number:,.0f} B"


def energy(microjoules: float) -> str:
    """Return ``1.23 mJ`` for 1_230."""
    for scale, unit in _ENERGIES:
        if abs(microjoules) >= scale * 0.9995:
            return f"{digits(microjoules / scale)} {unit}"
    return f"{digits(microjoules)} µJ"


def count(number: float) -> str:
    """Return ``1.23 M`` for 1_230_000: thousands, millions and so on as k, M, G, T."""
    for scale, prefix in _COUNTS:
        if abs(number) >= scale * 0.9995:
            return f"{digits(number / scale)} {prefix}"
    return digits(number)


def relative(ppt: float) -> str:
    """Return ``1.2e-06`` for 1_200_000 parts per trillion, and ``0`` for none at all."""
    return f"{ppt / 1e12:.2g}"


def quantity(value: float, unit: str) -> str:
    """Return a value in one of the records' units with the prefix that suits it."""
    words = {"ns": duration, "bytes": size, "uJ": energy, "instructions": count, "ppt": relative}
    return words[unit](value)


def parse_size(text: str) -> int:
    """Return the bytes that ``80GiB``, ``1.5 MiB``, ``24 GB`` or ``4096`` mean.

    ``kB``, ``MB``, ``GB`` and ``TB`` are powers of 1000. Raise ValueError for anything else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text, re.IGNORECASE)
    scales = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
    scales |= {unit.lower(): scale for scale, unit in _BYTES}
    if match is None or match[2].lower() not in scales:
        raise ValueError(f"{text!r} is no size: write 80GiB, 1.5MiB or 24GB")
    return int(Fraction(match[1]) * scales[match[2].lower()])


def rate(per_second: float) -> str:
    """Return ``12.3 k/s`` for 12_300: thousands and millions as k and M."""
    for scale, prefix in ((1e6, " M"), (1e3, " k")):
        if per_second >= scale * 0.9995:
            return f"{digits(per_second / scale)}{prefix}/s"
    return f"{digits(per_second)} /s"


def factor(ratio: float) -> str:
    """Return a ratio with enough digits to tell it from 1: ``0.987``, ``1.034``, ``16.5``."""
    return f"{ratio:.3f}" if 0.1 <= abs(ratio) < 10 or ratio == 0 else digits(ratio)


def interval(low: float, high: float) -> str:
    """Return ``[0.981, 0.993]``."""
    return f"[{factor(low)}, {factor(high)}]"


def noise(share: float) -> str:
    """Return how far equal arms may lie apart: ``±0.30%``, and beyond 100% as a factor."""
    if share > 1:
        return f"a factor of {1 + share:.1f}"
    return f"±{f'{share:.0%}' if share >= 0.1 else f'{share * 100:.2g}%'}"


def percentage(share: float) -> str:
    """Return ``23.8%`` for 0.238: three digits, and no more of them than tenths."""
    return f"{digits(round(share * 100, 1))}%"


def share(value: float) -> str:
    """Return a relative change as ``35%``, and beyond 100% as the factor that it comes to."""
    return f"{value:.0%}" if value <= 1 else f"a factor of {1 + value:.1f}"
