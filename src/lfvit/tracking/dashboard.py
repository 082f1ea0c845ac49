"""``lfvit dashboard --project NAME``: a W&B report on the runs of a project.

Accuracy against cost, every threshold, each pass by epoch, settings, regions and predictions. With
--offline FILE nothing is sent: the file holds the report as it would be created.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SETTINGS = ("method.name", "method.region_size", "method.alpha", "method.beta", "threshold")


def build_report(project: str, entity: str | None = None, group: str | None = None) -> Any:
    """Build the report without sending it.

    Args:
        project: W&B's project.
        entity: user or team; None is the account's own.
        group: only the runs of one group, such as a sweep.

    Returns:
        A ``wandb_workspaces.reports.v2.Report``; its ``save()`` sends it.
    """
    import wandb_workspaces.reports.v2 as wr

    def grid(job_types: list[str], *panels: Any) -> Any:
        filters = f"JobType in {job_types}" + (f" and Group = '{group}'" if group else "")
        name = " and ".join(job_types)
        return wr.PanelGrid(runsets=[wr.Runset(name=name, filters=filters)], panels=[*panels])

    def lines(title: str, *metrics: str, x: int = 0) -> Any:
        layout = wr.Layout(x=x, w=12, h=8)
        return wr.LinePlot(title=title, x="epoch", y=[*metrics], layout=layout)

    measured = [wr.SummaryMetric(name) for name in ("gmacs", "exit_fraction", "top1")]
    columns: list[Any] = [*(wr.Config(name) for name in SETTINGS), *measured]
    points = wr.ScatterPlot(
        title="top1 against gmacs", x=measured[0], y=measured[2], layout=wr.Layout(w=12, h=9)
    )
    curve = wr.CustomChart(
        query={"summaryTable": {"tableKey": "threshold_curve"}},
        chart_name="wandb/line/v0",
        chart_fields={"x": "gmacs", "y": "top1", "stroke": "name"},
        chart_strings={"title": "Every threshold"},
        layout=wr.Layout(x=12, w=12, h=9),
    )
    compared = wr.ParallelCoordinatesPlot(
        columns=[wr.ParallelCoordinatesPlotColumn(column) for column in columns],
        layout=wr.Layout(w=24, h=10),
    )
    wide = wr.Layout(w=24, h=12)
    return wr.Report(
        project=project,
        title="Accuracy against cost" + (f": {group}" if group else ""),
        description="top1: percent, at each model's threshold. gmacs: 1e9 multiply-accumulates per "
        "image there, on average.",
        width="fluid",
        blocks=[
            grid(["train", "evaluate"], points, curve),
            wr.H2("By epoch"),
            grid(
                ["train"],
                lines("Each pass on every image", "val/first_top1", "val/top1"),
                lines("At the threshold", "val/early_exit_top1", x=12),
                lines("Answered by the first pass", "val/exit_fraction"),
                lines("Images per second", "train/images_per_second", x=12),
            ),
            wr.H2("Settings, cost and accuracy"),
            grid(["train"], compared),
            wr.H2("Regions and predictions"),
            grid(
                ["train", "evaluate"],
                wr.MediaBrowser(title="Regions", media_keys=["regions"], layout=wide),
                wr.WeavePanelSummaryTable(table_name="predictions", layout=wide),
            ),
        ],
        **({"entity": entity} if entity is not None else {}),
    )


def main(arguments: Sequence[str]) -> None:
    """``lfvit dashboard``."""
    parser = argparse.ArgumentParser(prog="lfvit dashboard")
    parser.add_argument("--project", required=True)
    parser.add_argument("--entity", help="user or team; by default the account's own")
    parser.add_argument("--group", help="only the runs of one group, such as a sweep")
    parser.add_argument("--offline", type=Path, metavar="FILE", help="write it here, send nothing")
    options = parser.parse_args(arguments)
    if options.offline is None:
        report = build_report(options.project, options.entity, options.group)
        report.save()
        print(report.url)
    else:  # asking W&B for the account's own entity would need the network
        report = build_report(options.project, options.entity or "", options.group)
        # the library has no public way to see a report without an account
        text = report._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=2)
        options.offline.parent.mkdir(parents=True, exist_ok=True)
        options.offline.write_text(text)
        print(f"written to {options.offline}; nothing was sent")
