"""The address of a commit's page at its forge."""

import re
from collections.abc import Callable

from ..errors import GradbenchError


def commit_url(remote: str) -> str:
    """Return the address of a commit's page, with ``{commit}`` in its place, of a git remote.

    Empty for a remote that is no forge's. What stands before an ``@``, perhaps a token, is dropped.
    """
    match = re.fullmatch(
        r"(?:(?:https?|ssh|git)://)?(?:[^@/]+@)?([\w.-]+)(?::\d+(?=/))?[:/]/?"
        r"([\w./~-]+?)(?:\.git)?/?",
        remote.strip(),
    )
    if match is None or "." not in match[1] or "/" not in match[2]:
        return ""
    host, path = match.groups()
    middle = "/-/commit/" if "gitlab" in host else "/commit/"
    return f"https://{host}/{path}{middle}{{commit}}"


Link = Callable[[str], str]


def linker(template: str) -> Link:
    """Return what turns a label into an address; raise `GradbenchError` for a template without
    ``{commit}`` or with another scheme than http."""
    if not template:
        return lambda _: ""
    if "{commit}" not in template or not template.startswith(("https://", "http://")):
        raise GradbenchError(f"{template!r} is no commit's address: write https://…/{{commit}}")

    def link(label: str) -> str:
        known = re.fullmatch(r"[0-9a-f]{7,64}\+?", label)
        return template.replace("{commit}", label.rstrip("+")) if known else ""

    return link
