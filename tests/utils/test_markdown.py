"""Tables as Markdown."""

import pandas as pd

from lfvit.utils.markdown import to_markdown

ROWS = [
    {"model": "a|b", "top1": 70.126, "exit": 0.5, "spread": "1.0 ± 0.2", "images": 3925},
    {"model": "<b>", "top1": float("nan"), "exit": None, "spread": "", "images": 16},
]
FORMATS = {"top1": ".2f", "exit": ".1%", "spread": "", "images": ","}
TABLE = r"""
| model | top1 | exit | spread | images |
| --- | --: | --: | --: | --: |
| a\|b | 70.13 | 50.0% | 1.0 ± 0.2 | 3,925 |
| &lt;b> |  |  |  | 16 |
""".strip()


def test_rows_and_frames_give_the_same_table():
    assert to_markdown(ROWS, FORMATS) == TABLE
    assert to_markdown(pd.DataFrame(ROWS).astype({"images": "Int64"}), FORMATS) == TABLE


def test_titles_choose_and_order_the_columns():
    table = to_markdown(ROWS, titles={"images": "images", "model": "model | name"})
    assert table.splitlines()[:2] == ["| images | model \\| name |", "| --: | --- |"]
    assert to_markdown([], titles={"a": "a"}) == "| a |\n| --- |"
