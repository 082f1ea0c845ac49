"""What the second look changes: class by class, and image by image."""

from collections.abc import Mapping, Sequence

import pandas as pd

from lfvit.measure.thresholds import correct_at
from lfvit.results.comparisons import Evaluated
from lfvit.utils.markdown import escape


def classes_table(
    models: Mapping[str, Sequence[Evaluated]], two_pass: str, classes: Sequence[str]
) -> str:
    """Top-1 of every class, means over seeds, and what the second look of one model does to it.

    Args:
        models: name -> one entry per seed.
        two_pass: the model whose two passes are told apart.
        classes: names by class index.
    """
    lead = [each.predictions for each in models[two_pass]]
    first, both = ([correct_at(rows, eta) for rows in lead] for eta in (0.0, None))
    pairs = list(zip(first, both, strict=True))
    columns = {f"{two_pass}, first pass": first, f"{two_pass}, both passes": both}
    for name, each in models.items():
        if name != two_pass:
            columns[name] = [correct_at(one.predictions) for one in each]
    columns["put right by the second look"] = [~a & b for a, b in pairs]
    columns["put wrong by the second look"] = [a & ~b for a, b in pairs]
    targets = pd.concat([one.predictions["target"] for each in models.values() for one in each])
    targets = targets[~targets.index.duplicated()]
    shares = {
        title: pd.concat([f.groupby(targets.loc[f.index]).mean() for f in flags], axis=1).mean(
            axis=1
        )
        for title, flags in columns.items()
    }
    counts = lead[0].groupby("target").size()
    lines = [
        "| class | images | " + " | ".join(f"{escape(title)} (%)" for title in shares) + " |",
        "|---|--:|" + "--:|" * len(shares),
    ]
    for target, count in counts.items():
        values = " | ".join(f"{100 * share[target]:.1f}" for share in shares.values())
        lines.append(f"| {escape(classes[int(str(target))])} | {count} | {values} |")
    return "\n".join(lines)


def harmed(predictions: Sequence[pd.DataFrame]) -> "pd.Series[int]":
    """Images that the first pass gets right and the second wrong -> in how many seeds."""
    counts = pd.concat(
        [(correct_at(rows, 0.0) & ~correct_at(rows)).astype(int) for rows in predictions], axis=1
    ).sum(axis=1)
    return counts[counts > 0].sort_values(ascending=False, kind="stable")


def changes_text(name: str, predictions: Sequence[pd.DataFrame]) -> str:
    """How many answers the second look changes, and to what end."""
    kinds: dict[str, list[float]] = {
        "put right": [],
        "put wrong": [],
        "changed from one wrong class to another": [],
    }
    for rows in predictions:
        first, both = correct_at(rows, 0.0), correct_at(rows)
        other = ~first & ~both & (rows["prediction_1"] != rows["prediction_2"])
        for kind, flags in zip(kinds, (~first & both, first & ~both, other), strict=True):
            kinds[kind].append(100 * flags.mean())
    told = ", ".join(f"{_mean(values)} % {kind}" for kind, values in kinds.items())
    text = f"Of the answers of {name}'s first pass the second changes: {told}."
    counts = harmed(predictions)
    seeds = len(predictions)
    if seeds > 1 and len(counts):
        always = int((counts == seeds).sum())
        text += (
            f" {len(counts)} images are put wrong in at least one of the {seeds} seeds, "
            f"{always} in all of them."
        )
    return text


def _mean(values: Sequence[float]) -> str:
    series = pd.Series(values)
    spread = f" ± {series.std():.2f}" if len(series) > 1 else ""
    return f"{series.mean():.2f}{spread}"
