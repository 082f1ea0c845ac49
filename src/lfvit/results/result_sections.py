"""Sections of a page of results: model against model, what a second look changes, pictures."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lfvit.errors import DataError, LFViTError
from lfvit.results.changes import changes_text, classes_table
from lfvit.results.comparisons import Evaluated, Row, against, equal_accuracy, verdict
from lfvit.results.evaluated import Run
from lfvit.results.intervals import plot_differences
from lfvit.results.page_examples import choose_models, open_run
from lfvit.results.result_pictures import Kind, choose, save_examples
from lfvit.results.seeds import yardstick
from lfvit.utils.markdown import escape

WAYS = ("first", "both", "calibrated", "equal", "budget")
EXPLAINED = (
    "On the same images. Intervals: 95 % over images for these trained models (bootstrap; an image "
    "counts with its mean over seeds); ±: the sample standard deviation over seeds, on these "
    "images; p: McNemar's exact test of each seed. Early exits are compared on the half of the "
    "images that their thresholds were not chosen on."
)


def paired_sections(groups: Mapping[str, Sequence[Run]], output: Path) -> Iterator[str]:
    """Every model beside the one-pass yardstick, and what second looks change.

    Only seeds that both models have are compared.
    """
    name = yardstick(groups)
    read: dict[str, dict[object, Evaluated]] = {}
    missing: list[str] = []
    for model, runs in groups.items():
        for run in runs:
            try:
                found = Evaluated.read(run.evaluation, run.folder)
                read.setdefault(model, {})[run.seed] = found
            except DataError as error:
                missing.append(f"- {escape(run.place)}: {escape(str(error))}")
    if missing:
        yield "## Not compared image by image\n\n" + "\n".join(missing)
    groups = {model: groups[model] for model in read}
    name = name if name in read else None
    two_pass = [model for model, runs in groups.items() if runs[0].two_pass]
    if name is not None and len(groups) > 1:
        rows, faults = _rows(groups, read, name)
        if faults:
            yield "\n".join(faults)
        if rows:
            figure = output.with_name(f"{output.stem}_differences.png")
            plot_differences([(f"{m}, {row.way}", row) for m, row in rows], [figure])
            yield f"## Beside {escape(str(name))}, image by image\n\n{EXPLAINED}\n\n{_table(rows)}"
            yield f"![Differences]({figure.name})"
            yield from _answers(rows)
    for model in two_pass:
        same = {m: list(each.values()) for m, each in read.items() if m in (model, name)}
        try:
            classes = _classes(groups[model][0])
            table = classes_table(same, model, classes)
        except (LFViTError, LookupError) as error:
            table = f"No table by class: {escape(str(error))}."
        predictions = [each.predictions for each in read[model].values()]
        shown = escape(model)
        yield f"## What the second look of {shown} changes\n\n{changes_text(shown, predictions)}"
        yield table


def _rows(
    groups: Mapping[str, Sequence[Run]],
    read: Mapping[str, Mapping[object, Evaluated]],
    name: str,
) -> tuple[list[tuple[str, Row]], list[str]]:
    """The comparisons, and why others could not be made."""
    rows, faults = [], []
    for model, runs in groups.items():
        seeds = [seed for seed in read[model] if seed in read[name]]
        if model == name or not seeds or runs[0].data != groups[name][0].data:
            continue
        ours, theirs = ([read[m][seed] for seed in seeds] for m in (model, name))
        try:
            rows += [(model, against(ours, theirs, way)) for way in _ways(ours)]
        except DataError as error:
            faults.append(f"- {escape(model)} beside {escape(name)}: {escape(str(error))}")
    return rows, faults


def _ways(seeds: Sequence[Evaluated]) -> Sequence[str]:
    """Ways of running a model that all of its evaluations know."""
    if seeds[0].evaluation["second"] is None:
        return ("both",)
    chosen = all(
        each.evaluation.get("calibration")
        and (each.evaluation.get("calibrated") or {}).get("threshold") is not None
        for each in seeds
    )
    return WAYS if chosen else WAYS[:2]


def _table(rows: Sequence[tuple[str, Row]]) -> str:
    lines = [
        "| model | run | seeds | images | difference, points of top-1 | 95 % | p | cost (%) | |",
        "|---|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for model, row in rows:
        found = row.comparison
        spread = "" if found.spread is None else f" ± {found.spread:.2f}"
        cost = f"{row.cost:.0f}" + (f" ± {row.cost_spread:.0f}" if row.cost_spread else "")
        p = ", ".join(f"{value:.2g}" for value in found.p_values)
        lines.append(
            f"| {escape(model)} | {row.way} | {row.seeds} | {found.images:,} | "
            f"{found.difference:+.2f}{spread} | {found.low:+.2f} to {found.high:+.2f} | {p} | "
            f"{cost} | {verdict(row)} |"
        )
    return "\n".join(lines)


def _answers(rows: Sequence[tuple[str, Row]]) -> Iterator[str]:
    """The paper's question, for every two-pass model."""
    by_model: dict[str, list[Row]] = {}
    for model, row in rows:
        by_model.setdefault(model, []).append(row)
    told = [
        f"- **{escape(model)}**: "
        + equal_accuracy(each[WAYS.index("equal")], each[WAYS.index("budget")])
        for model, each in by_model.items()
        if len(each) == len(WAYS)
    ]
    if told:
        yield "## Equal accuracy at 37 % of the cost?\n\n" + "\n".join(told)


def _classes(run: Run) -> list[str]:
    return list(open_run(run)[0].record["classes"])


def examples_section(
    groups: Mapping[str, Sequence[Run]], pictures: int, names: int, output: Path
) -> Iterator[str]:
    """Images of LF-ViT, or the two-pass model there is: in images/ beside the page, and by name."""
    leads = choose_models([runs[0] for runs in groups.values()])
    if not leads or not (pictures or names):
        return
    runs = groups[leads[0].model]
    stem = output.parent / "images" / output.stem
    try:
        seeds = [Evaluated.read(run.evaluation, run.folder) for run in runs]
        drawn = save_examples(runs[0], choose(seeds, pictures), stem) if pictures else {}
        listed = list(_named(runs[0], seeds[0], choose(seeds, names))) if names else []
    except (LFViTError, OSError, ValueError) as error:
        yield f"## Examples\n\nNot shown: {error}."
        return
    eta = seeds[0].evaluation["calibrated"]["threshold"]
    yield f"## Examples\n\nOf {runs[0].name}, with its calibrated threshold, {eta:g}."
    if drawn:
        yield (
            "Left: the first look; middle: where the class token attended; right: what the second "
            "look sees."
        )
    for caption, path in drawn.items():
        title, place = caption.partition(":")[0], path.relative_to(output.parent).as_posix()
        yield f"{caption}.\n\n![{title}]({place})"
    yield from listed


def _named(run: Run, seed: Evaluated, kinds: Sequence[Kind]) -> Iterator[str]:
    """A table of images for each kind: for photographs that a page may not show."""
    classes = _classes(run)
    for kind in kinds:
        lines = ["| image | is | first look | confidence | both looks |", "|---|---|---|--:|---|"]
        for image in kind.images:
            row = seed.predictions.loc[image]
            target, first, second = (
                escape(classes[int(row[key])]) for key in ("target", "prediction_1", "prediction_2")
            )
            lines.append(
                f"| {escape(image)} | {target} | {first} | {row['confidence_1']:.2f} | {second} |"
            )
        yield f"{kind.caption}.\n\n" + "\n".join(lines)
