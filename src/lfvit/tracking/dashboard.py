"""python -m lfvit.tracking.dashboard --project NAME: a W&B report on the runs of a project.

Accuracy against cost, every threshold, each pass by epoch, exits, regions, predictions and the
settings of a sweep, in one page:

    python -m lfvit.tracking.dashboard --project lfvit --entity TEAM
    python -m lfvit.tracking.dashboard --project lfvit --group SWEEP --offline report.json

With --offline nothing is sent: the file holds the report as it would be created.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lfvit.cli import entry_point
from lfvit.errors import ConfigError

COLUMNS = ("method.name", "method.region_size", "method.alpha", "method.beta", "threshold")
"""The settings of a sweep that the parallel coordinates show by default."""

MEASURED = ("gmacs", "exit_fraction", "top1")


def build_report(
    project: str,
    entity: str | None = None,
    group: str | None = None,
    columns: Sequence[str] = COLUMNS,
) -> Any:
    """The report, not yet sent anywhere.

    Args:
        project: W&B's project.
        entity: user or team; None is the account's own.
        group: only the runs of one group, such as a sweep; None for all.
        columns: settings to compare, by their names in the config.

    Returns:
        A ``wandb_workspaces.reports.v2.Report``.

    Raises:
        ConfigError: the library is missing.
    """
    try:
        import wandb_workspaces.reports.v2 as wr
    except ImportError as error:
        raise ConfigError(
            "the dashboard needs wandb-workspaces; install it with pip install 'lfvit[dashboard]'"
        ) from error

    def runs(name: str, *job_types: str) -> Any:
        filters = [f"JobType in {list(job_types)}"] if job_types else []
        if group is not None:
            filters.append(f"Group = '{group}'")
        return wr.Runset(name=name, filters=" and ".join(filters))

    def grid(runset: Any, *panels: Any) -> Any:
        return wr.PanelGrid(runsets=[runset], panels=list(panels))

    def lines(title: str, *metrics: str, x: int = 0) -> Any:
        return wr.LinePlot(
            title=title, x="epoch", y=list(metrics), layout=wr.Layout(x=x, w=12, h=8)
        )

    points = wr.ScatterPlot(
        title="top1 against gmacs",
        x=wr.SummaryMetric("gmacs"),
        y=wr.SummaryMetric("top1"),
        layout=wr.Layout(w=12, h=9),
    )
    curve = wr.CustomChart(
        query={"summaryTable": {"tableKey": "threshold_curve"}},
        chart_name="wandb/line/v0",
        chart_fields={"x": "gmacs", "y": "top1", "stroke": "name"},
        chart_strings={"title": "Every threshold"},
        layout=wr.Layout(x=12, w=12, h=9),
    )
    settings = [wr.ParallelCoordinatesPlotColumn(wr.Config(name)) for name in columns]
    measured = [wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(name)) for name in MEASURED]
    compared = wr.ParallelCoordinatesPlot(
        title="Settings, cost and accuracy",
        columns=[*settings, *measured],
        layout=wr.Layout(w=24, h=10),
    )
    options: dict[str, Any] = {} if entity is None else {"entity": entity}
    return wr.Report(
        project=project,
        title="Accuracy against cost" + ("" if group is None else f": {group}"),
        description="top1: percent, at each model's threshold. gmacs: 1e9 multiply-accumulates per "
        "image there, on average.",
        width="fluid",
        blocks=[
            wr.H2("Accuracy against cost"),
            wr.P("One point per run: what the model answers at its threshold, and what it costs."),
            grid(runs("Trained and evaluated", "train", "evaluate"), points, curve),
            wr.H2("Each pass by epoch"),
            grid(
                runs("Training", "train"),
                lines("Each pass on every image", "val/first_top1", "val/top1"),
                lines("At the threshold", "val/early_exit_top1", x=12),
                lines("Answered by the first pass", "val/exit_fraction"),
                lines("Images per second", "train/images_per_second", x=12),
            ),
            wr.H2("Settings"),
            grid(runs("Training", "train"), compared),
            wr.H2("Where the models look, and what they answer"),
            grid(
                runs("Trained and evaluated", "train", "evaluate"),
                wr.MediaBrowser(
                    title="Regions", media_keys=["regions"], layout=wr.Layout(w=24, h=12)
                ),
                wr.WeavePanelSummaryTable(table_name="predictions", layout=wr.Layout(w=24, h=12)),
            ),
        ],
        **options,
    )


def write_report(report: Any, path: Path) -> None:
    """Write what ``report.save()`` would create, as JSON."""
    model = report._to_model()  # the library has no public way to look at it without an account
    content = {
        "entity": model.project.entity_name,
        "project": model.project.name,
        "title": model.display_name,
        "description": model.description,
        "spec": json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True)),
    }
    path.write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lfvit.tracking.dashboard", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--project", required=True)
    parser.add_argument("--entity", help="user or team; by default the account's own")
    parser.add_argument("--group", help="only the runs of one group, such as a sweep")
    parser.add_argument(
        "--columns", nargs="+", default=COLUMNS, help="settings to compare, such as optimizer.lr"
    )
    parser.add_argument("--offline", type=Path, metavar="FILE", help="write it here, send nothing")
    arguments = parser.parse_args()
    entity = arguments.entity
    if arguments.offline is not None:
        entity = entity or ""  # asking W&B for the account's own would need the network
    report = build_report(arguments.project, entity, arguments.group, arguments.columns)
    if arguments.offline is not None:
        write_report(report, arguments.offline)
        print(f"written to {arguments.offline}; nothing was sent")
    else:
        report.save()
        print(report.url)


if __name__ == "__main__":
    entry_point(main)()
