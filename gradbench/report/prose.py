"""Sentences of ours as markup: what stands in backticks is a name."""

import re

from markupsafe import Markup, escape


def prose(sentence: str) -> Markup:
    """Return the sentence escaped, names in backticks as ``<code>``."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(sentence))))  # noqa: S704 # escaped before
