"""Tables as Markdown and on the terminal, and text from outside inside a page of Markdown."""

import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pandas as pd


class Cells(NamedTuple):
    """A table as text. numeric: columns that are aligned to the right."""

    titles: list[str]
    numeric: list[bool]
    rows: list[list[str]]


def to_markdown(
    table: "pd.DataFrame | Sequence[Mapping[str, Any]]",
    formats: Mapping[str, str] | None = None,
    titles: Mapping[str, str] | None = None,
) -> str:
    """Format a table in Markdown. Cells are escaped; missing values (None, NaN) are empty.

    Args:
        table: a DataFrame, whose index is left out, or rows with the same keys.
        formats: column -> format specification of its numbers, such as ".2f", "+.2f", "," or ".1%".
        titles: column -> title, where it is not the column's name. With it, only its columns are
            shown, in its order.

    Returns:
        The lines of the table, without a newline at the end.
    """
    return cells_to_markdown(format_cells(table, formats, titles))


def cells_to_markdown(cells: Cells) -> str:
    """A table in Markdown, see `to_markdown`."""
    lines = [[escape(title) for title in cells.titles]]
    lines.append(["--:" if numeric else "---" for numeric in cells.numeric])
    lines += [[escape(cell) for cell in row] for row in cells.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def print_table(
    table: "pd.DataFrame | Sequence[Mapping[str, Any]]",
    formats: Mapping[str, str] | None = None,
    titles: Mapping[str, str] | None = None,
    *,
    title: str | None = None,
    caption: str | None = None,
) -> None:
    """Print a table to the terminal, see `to_markdown`."""
    from rich.console import Console
    from rich.table import Table

    cells = format_cells(table, formats, titles)
    screen = Table(title=title, caption=caption)
    for name, numeric in zip(cells.titles, cells.numeric, strict=True):
        screen.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in cells.rows:
        screen.add_row(*row)
    # into a file, as wide as it is
    Console(markup=False, width=None if sys.stdout.isatty() else 1000).print(screen)


def format_cells(
    table: "pd.DataFrame | Sequence[Mapping[str, Any]]",
    formats: Mapping[str, str] | None = None,
    titles: Mapping[str, str] | None = None,
) -> Cells:
    """The text of every cell, see `to_markdown`; numbers and columns with a format are numeric."""
    formats = formats or {}
    if not isinstance(table, Sequence):
        table = table.astype(object).where(table.notna(), None).to_dict("records")
    titles = titles or {name: name for name in (table[0] if table else ())}
    columns: dict[str, list[Any]] = {}
    for name in titles:
        values = [row.get(name) for row in table]
        columns[name] = [None if isinstance(v, float) and v != v else v for v in values]
    numeric = [
        name in formats
        or (any(v is not None for v in values) and all(_is_number(v) for v in values))
        for name, values in columns.items()
    ]
    text = [
        [_format(value, formats.get(name, "")) for value in values]
        for name, values in columns.items()
    ]
    return Cells(list(titles.values()), numeric, [list(row) for row in zip(*text, strict=True)])


def _is_number(value: Any) -> bool:
    return value is None or (hasattr(value, "__float__") and not isinstance(value, str | bool))


def _format(value: Any, specification: str) -> str:
    if value is None:
        return ""
    return format(value, specification) if _is_number(value) else str(value)


def escape(value: Any) -> str:
    """Text on one line that Markdown shows as it is: no table, link, image, code or HTML in it."""
    text = " ".join(str(value).split())
    text = re.sub(r"&(?=#?\w+;)", "&amp;", text)
    text = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)
    return re.sub(r"([\\`|]|\](?=[(\[:]))", r"\\\1", text)


def code(value: Any) -> str:
    """Text between backticks, more of them than it has in a row."""
    text = " ".join(str(value).split())
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    if not longest:
        return f"`{text}`"
    return f"{'`' * (longest + 1)} {text} {'`' * (longest + 1)}"
