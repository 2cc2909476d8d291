"""What commands print: text of others as a part of it, and JSON that commands no CI system."""

import json
from collections.abc import Iterable, Mapping

from rich.markup import escape

from ..printable import json_without_commands, one_line, printable
from ..terminal.screen import Screen as Screen


def print_json(content: object, *, indent: int | None = None) -> None:
    """Print plain data as JSON in which no text is a command to a CI system."""
    print(json_without_commands(json.dumps(content, indent=indent)))


def print_json_list(name: str, items: Iterable[object], rest: Mapping[str, object]) -> None:
    """Print an object with a list under a name, an item a line, and the rest behind it.

    An item is printed before the next is made, so that a list of any length takes no memory.
    """
    print(f"{{{json.dumps(name)}: [", end="")
    for number, item in enumerate(items):
        print("," if number else "")
        print(json_without_commands(json.dumps(item)), end="")
    members = (f", {json.dumps(key)}: {json.dumps(value)}" for key, value in rest.items())
    print(json_without_commands(f"]{''.join(members)}}}"))


def shown(text: object) -> str:
    """Return text of others as a part of what is printed: on one line, and no markup."""
    return escape(printable(str(text)))


def shown_lines(text: str) -> str:
    """Return text of others of several lines, each as `shown` returns it."""
    return "\n".join(map(shown, text.split("\n")))


def shown_briefly(text: object) -> str:
    """Return the same of what is wrong, cut where it is longer than anybody reads."""
    return escape(one_line(str(text)))
