"""A Markdown page of results, written from the files that runs left behind."""

import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from lfvit.errors import DataError
from lfvit.results.collect import Collection, nothing_found
from lfvit.results.evaluated import Run
from lfvit.results.frame import over_seeds
from lfvit.results.result_sections import examples_section, paired_sections
from lfvit.results.seeds import by_model, plot_with_bands, yardstick
from lfvit.results.tables import certificates_table, rules_table, threshold_table
from lfvit.runs.provenance import commit
from lfvit.utils.markdown import code, escape


@dataclass(frozen=True)
class PageText:
    """What people want on a page of results. notes: files of Markdown to take in, artifacts' or
    own, with their pictures. pictures, names: images of each kind that are shown, or listed by
    name. command: that writes the page."""

    title: str
    intro: str = ""
    notes: Sequence[Path] = ()
    pictures: int = 0
    names: int = 0
    command: str = ""


def write_results(found: Collection, text: PageText, output: Path) -> None:
    """Write a Markdown page about some runs, with figures beside it and pictures in images/.

    Args:
        found: see `collect`.
        text: around the figures; for pictures, the model and its images have to be there.
        output: the page.

    Raises:
        DataError: not one run was evaluated.
    """
    if not found.runs:
        raise DataError(nothing_found(found))
    output.parent.mkdir(parents=True, exist_ok=True)
    groups = by_model(found.runs)
    figure = output.with_name(f"{output.stem}_accuracy_vs_gmacs.png")
    plot_with_bands(groups, figure)
    parts = [
        f"# {text.title}",
        text.intro,
        _about_images(found.runs),
        _table(found, groups),
        f"![Accuracy against cost]({figure.name})",
        *paired_sections(groups, output),
        *examples_section(groups, text.pictures, text.names, output),
        *[taken_in(notes, output) for notes in text.notes],
        *[part for runs in groups.values() if runs[0].two_pass for part in _thresholds(runs)],
        "## How the models were trained\n\n" + "\n".join(map(_provenance, groups.values())),
        _left_out(found),
        f"*Written by {code(text.command)}, commit {commit()}.*" if text.command else "",
    ]
    output.write_text("\n\n".join(part for part in parts if part) + "\n")


def taken_in(notes: Path, output: Path) -> str:
    """A page as a part of another: headings one deeper, pictures copied to images/ beside it."""

    def copied(link: re.Match[str]) -> str:
        picture = notes.parent / link[2]
        if not picture.is_file():
            return link[0]
        copy = output.parent / "images" / f"{output.stem}_{picture.name}"
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(picture, copy)
        return f"![{link[1]}](images/{copy.name})"

    text = re.sub(r"^(#+ )", r"#\1", notes.read_text().strip(), flags=re.MULTILINE)
    return re.sub(r"!\[([^\]]*)\]\(([^)\s]+)\)", copied, text)


def _about_images(runs: list[Run]) -> str:
    counts = {(run.data, run.evaluation["images"]) for run in runs}
    images = ", ".join(
        f"{count:,} validation images of {escape(data)}" for data, count in sorted(counts)
    )
    return (
        f"Top-1 on {images}, which training never saw. GMACs are multiply-accumulates per image, "
        f"counted in {runs[0].evaluation['macs_counter']}."
    )


def _table(found: Collection, groups: Mapping[str, Sequence[Run]]) -> str:
    """Passes and rules of every model, means over seeds with their standard deviation."""
    means = over_seeds(found.table)
    rows = means[means["top1_mean"].notna() & means["kind"].isin(("pass", "rule"))]
    name = yardstick(groups)
    last = groups[list(groups)[-1] if name is None else name]
    base = fmean(run.evaluation["first"]["gmacs"] for run in last)
    several = bool((means["seeds"] > 1).any())
    lines = [
        "| model | run | seeds | top-1 (%) | GMACs | cost of one pass (%) | answered early (%) |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows.itertuples():
        top1, gmacs = _spread(row, "top1", 2), _spread(row, "gmacs", 4)
        early = f"{100 * row.exit_fraction_mean:.1f}" if row.kind == "rule" else ""
        lines.append(
            f"| {escape(row.model)} | {escape(row.run)} | {row.seeds} | {top1} | {gmacs} "
            f"| {100 * row.gmacs_mean / base:.0f} | {early} |"
        )
    note = "±: the sample standard deviation over seeds. " if several else "One seed of each. "
    chosen = (
        "Rows with a rule: its threshold was chosen on one part of the images and is reported on "
        "the other."
        if (rows["kind"] == "rule").any()
        else ""
    )
    return "\n".join(lines) + f"\n\n{note}{chosen}".rstrip()


def _spread(row: Any, name: str, digits: int) -> str:
    mean, spread = getattr(row, f"{name}_mean"), getattr(row, f"{name}_std")
    return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if row.seeds > 1 else "")


def _thresholds(runs: Sequence[Run]) -> Iterator[str]:
    """Of the first seed: thresholds chosen on one part of the images, certified, and all."""
    run = runs[0]
    calibration = run.evaluation.get("calibration")
    if calibration is not None:
        yield (
            f"## Thresholds chosen for {escape(run.name)}\n\n"
            f"On {calibration['calibration_images']:,} of the images, by class, seed "
            f"{calibration['seed']}; the table reports the other "
            f"{calibration['reported_images']:,}."
        )
        yield rules_table(calibration)
        if calibration.get("risk"):
            yield (
                "The lowest threshold that keeps a risk within its bound on new images of the same "
                f"distribution, each with probability {1 - calibration['risk']['delta']:g}, and "
                "the risk met on the other part:"
            )
            yield certificates_table(calibration["risk"])
    if run.evaluation.get("curve"):
        yield f"## Every threshold of {escape(run.name)}"
        yield threshold_table(run.evaluation["curve"])


def _provenance(runs: Sequence[Run]) -> str:
    run = runs[0]
    evaluated = (
        f"Evaluated: {escape(Path(run.evaluation['checkpoint']).name)}, in "
        f"{escape(run.evaluation['precision'])}, at commit "
        f"{escape((run.evaluation.get('environment') or {}).get('commit'))}."
    )
    metrics, environment = run.metrics, run.environment
    if not metrics or not environment:
        return f"- **{escape(run.model)}**: trained elsewhere. {evaluated}"
    packages = environment["packages"]
    minutes = [f"{each.metrics['train_seconds'] / 60:.0f}" for each in runs if each.metrics]
    commits = {str(each.environment.get("commit")) for each in runs}
    others = sorted(commits - {str(environment["commit"])})
    commit_of = str(environment["commit"])
    if others:
        commit_of += f" (other seeds also at {', '.join(others)})"
    seeds = ", ".join(str(each.seed) for each in runs)
    return (
        f"- **{escape(run.model)}**, seed{'s' if len(runs) > 1 else ''} {seeds}: "
        f"{code(without_paths(environment['command']))}, commit {escape(commit_of)}, "
        f"{escape(metrics['machine'])}, {environment['threads']} thread(s), "
        f"torch {packages['torch']}, timm {packages.get('timm')}. From {escape(run.start)}: "
        f"{metrics['epochs']} epochs over {metrics['train_images']:,} images, "
        f"{metrics['parameters'] / 1e6:.2f} M parameters, "
        f"{' and '.join(minutes)} minutes. {evaluated}"
    )


def _left_out(found: Collection) -> str:
    if not found.skipped:
        return ""
    return "## Left out\n\n" + "\n".join(
        f"- {escape(s.place)}: {escape(s.reason)}" for s in found.skipped
    )


def without_paths(command: str) -> str:
    """The command with folders of this machine replaced by a placeholder."""
    try:
        split = shlex.split(command)
    except ValueError:  # from a file that no command of ours wrote
        return command
    words = []
    for word in split:
        key, equals, value = word.partition("=")
        if equals and os.path.isabs(value):
            words.append(f"{key}=DIR")
        else:
            words.append("DIR" if os.path.isabs(word) else word)
    return shlex.join(words)
