"""Text of others made fit for a screen, a file or a log: all it holds can be read, and none acts.

Names of models, facts, reasons and files are whatever somebody wrote. Escape sequences would reach
a terminal, line ends would forge lines, text that runs backwards would lie, and a line of ``::``
would command GitHub's runner. `printable` is applied where such text becomes words of ours.
"""

import codecs
import re
import unicodedata
from collections.abc import Mapping
from typing import Any, Final

from .plurals import counted

LONGEST_LINE: Final = 2000
"""Characters of one line that says what is wrong; a name in it may have any length."""

_LINE_ENDS: Final = re.compile("[\t\n\v\f\r\x85\u2028\u2029]+")
_UNSEEN: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Categories of Unicode: controls, formats (text direction among them), surrogates, line ends."""

# Lines that GitHub's runner obeys, after blanks; and what Azure, TeamCity and its first version do.
_COMMAND: Final = re.compile(r"^([^\S\n]*):(?=:)|#(?=#(?:\[|vso\[|teamcity\[))", re.MULTILINE)
_FORMULA: Final = re.compile(r"^[\s']*[=+\-@\uff1d\uff0b\uff0d\uff20]")

ASCII: Final[Mapping[str, str]] = {
    "×": "x",
    "→": "->",
    "±": "+/-",
    "µ": "u",
    "≤": "<=",
    "≥": ">=",
    "…": "...",
    "—": "-",
    "–": "-",
    "·": "-",
    "•": "*",
    "’": "'",
    "“": '"',
    "”": '"',
    **dict(zip("▁▂▃▄▅▆▇█", "_..--==#", strict=True)),
}
"""What a screen without UTF-8 shows in place of our own characters."""


def printable(text: str) -> str:
    """Return text on one line in which every character can be seen: ``\\x1b`` for an escape."""
    if text.isprintable():
        return text
    folded = _LINE_ENDS.sub(" ", text.strip("\t\n\v\f\r\x85\u2028\u2029"))
    return "".join(_visible(character) for character in folded)


def printable_lines(text: str) -> str:
    """Return text of several lines, each of them `printable`."""
    return "\n".join(map(printable, text.split("\n")))


def printable_data(content: Any) -> Any:
    """Return plain data with every text in it `printable`, line by line: for other tools' files."""
    match content:
        case str():
            return printable_lines(content)
        case dict():
            return {printable(str(name)): printable_data(value) for name, value in content.items()}
        case list() | tuple():
            return [printable_data(value) for value in content]
        case _:
            return content


def one_line(text: str, *, longest: int = LONGEST_LINE) -> str:
    """Return text as `printable`, and cut where it is longer than anybody reads."""
    text = printable(text)
    if len(text) <= longest:
        return text
    return f"{text[:longest]}… ({counted(len(text) - longest, 'more character')})"


def brief(value: object, *, longest: int = 100) -> str:
    """Return a value as a complaint shows it: in one line, which is short whatever it holds."""
    if isinstance(value, int) and value.bit_length() > 63:
        return f"a number of {value.bit_length():,} bits"
    try:
        return one_line(repr(value[:longest] if isinstance(value, str) else value), longest=longest)
    except (ValueError, RecursionError):  # Python writes no number of thousands of digits
        return f"a {type(value).__name__} with what cannot be shown"


def without_commands(text: str) -> str:
    """Return text of which no line is a command to a CI system that reads it in a log."""
    return _COMMAND.sub(lambda match: "#\\" if match[0] == "#" else f"{match[1]}\\:", text)


def json_without_commands(text: str) -> str:
    """Return the same of JSON, which stays JSON and says the same."""
    return text.replace("##", "#\\u0023")  # only texts in it can hold these


def spreadsheet(value: str) -> str:
    """Return text that a spreadsheet takes for text: `printable`, and never a formula."""
    text = printable(value)
    return f"'{text}" if _FORMULA.match(text) else text


def _visible(character: str) -> str:
    noncharacter = ord(character) & 0xFFFE == 0xFFFE  # which XML cannot hold
    if unicodedata.category(character) not in _UNSEEN and not noncharacter:
        return character
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _in_ascii(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    shown = "".join(ASCII.get(character, _escaped(character)) for character in characters)
    return shown, error.end


def _escaped(character: str) -> str:
    return character.encode("ascii", "backslashreplace").decode("ascii")


ENCODING_ERRORS: Final = "gradbench-ascii"
"""A name for ``errors=`` of a stream: what its encoding lacks is written in ASCII, never raised."""
codecs.register_error(ENCODING_ERRORS, _in_ascii)
