"""Text that others wrote (names, commands, errors), as it stands in a page of Markdown."""

import re
from typing import Any


def escaped(value: Any) -> str:
    """Shown as it is, on one line: no table, link, picture, code or HTML can begin in it."""
    words = " ".join(str(value).split())
    words = re.sub(r"&(?=#?\w+;)", "&amp;", words)
    words = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", words)
    return re.sub(r"([\\`|]|\](?=[(\[:]))", r"\\\1", words)


def code(value: Any) -> str:
    """Between backticks, more of them than the text has in a row."""
    words = " ".join(str(value).split())
    longest = max((len(run) for run in re.findall("`+", words)), default=0)
    if not longest:
        return f"`{words}`"
    return f"{'`' * (longest + 1)} {words} {'`' * (longest + 1)}"
