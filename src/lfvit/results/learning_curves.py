"""Loss and accuracy by epoch of every training, from metrics.csv, for the report page."""

import json
from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

from lfvit.results.collect import Run, training_folder

CURVES = {"train/loss": "loss (training)", "val/loss": "loss (validation)", "val/top1": "top-1 (%)"}


def read_curves(runs: Sequence[Run]) -> pd.DataFrame:
    """Rows of model, seed, epoch (from 1), curve and value; none where nothing was logged."""
    folders = {training_folder(run.folder, run.evaluation): run for run in runs}
    parts = []
    for folder, run in folders.items():
        if folder is None:
            continue
        try:
            rows = pd.read_csv(folder / "metrics.csv")
        except (OSError, ValueError):  # another logger, or cut off
            continue
        known = [name for name in CURVES if name in rows]
        if "epoch" not in rows or not known:
            continue
        means = rows.groupby("epoch")[known].mean().rename(columns=CURVES).reset_index()
        long = means.melt("epoch", var_name="curve").dropna()
        parts.append(long.assign(epoch=long["epoch"] + 1, model=run.model, seed=run.seed))
    columns = ["epoch", "curve", "value", "model", "seed"]
    return pd.concat(parts) if parts else pd.DataFrame(columns=columns)


def learning_chart(curves: pd.DataFrame) -> dict[str, Any]:
    """A Vega-Lite specification with a panel per curve and a line per training."""
    chart = (
        alt.Chart(alt.NamedData("learning"))
        .mark_line()
        .encode(
            x=alt.X("epoch:Q", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)),
            color=alt.Color("model:N", title=None, legend=alt.Legend(orient="bottom")),
            detail="seed:N",
            column=alt.Column("curve:N", title=None, sort=list(CURVES.values())),
        )
        .properties(width=240, height=200)
        .resolve_scale(y="independent")
    )
    spec = chart.configure(background="transparent", font="inherit").to_dict()
    return {**spec, "datasets": {"learning": json.loads(curves.to_json(orient="records"))}}
