"""Counts in words: ``1 cell``, ``2,000 cells``."""


def counted(number: int, noun: str) -> str:
    """Return a number with its noun in the plural, unless it is one."""
    return f"{number:,} {plural(number, noun)}"


def plural(number: int, noun: str) -> str:
    """Return the noun as it follows the number: of ``more cell`` the last word counts."""
    if number == 1:
        return noun
    return f"{noun}es" if noun.endswith(("s", "ch")) else f"{noun}s"
