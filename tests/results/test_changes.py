"""The table of what the second look changes, class by class."""

import pandas as pd

from lfvit.results.changes import classes_table
from lfvit.results.comparisons import Evaluated


def test_names_of_classes_are_shown_as_they_are():
    answers = {"target": [0, 1], "first": [0, 0], "second": [0, 1], "confidence": [0.9, 0.4]}
    rows = pd.DataFrame(answers, index=["a.jpg", "b.jpg"])
    classes = ["jack-o'-lantern", "salt & pepper | <mix>"]
    table = classes_table({"lf_vit": [Evaluated({}, rows)]}, "lf_vit", classes)
    assert table.splitlines()[2:] == [
        "| jack-o'-lantern | 1 | 100.0 | 100.0 | 0.0 | 0.0 |",
        "| salt & pepper \\| &lt;mix> | 1 | 0.0 | 100.0 | 100.0 | 0.0 |",
    ]
