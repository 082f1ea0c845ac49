"""The report page, without a browser: what is in the file."""

import html
import json
import re
import shutil

import pandas as pd
import pytest
from synthetic import edit

from lfvit.measure.schemas import read_evaluation
from lfvit.results.artifacts.files import ArtifactFile, Column, read_artifacts, to_page
from lfvit.results.collect import collect
from lfvit.results.page import write_page
from lfvit.results.papers import published_points, published_rows
from lfvit.results.report import write_report
from lfvit.utils.atomic_io import write_json

pytest_plugins = ("report_runs",)


def spec_of(text):
    (found,) = re.findall(r'<script type="application/json" id="spec">(.*?)</script>', text)
    return json.loads(found)


def rows_of(page, name):
    """The rows of one of the chart's tables: curves, points or published."""
    return pd.DataFrame(spec_of(page.read_text())["datasets"][name])


def evaluation_of(runs, name):
    return read_evaluation(runs / name / "evaluation" / "evaluate.json")


def test_the_chart_has_the_numbers_of_the_files(runs, page):
    curves = rows_of(page, "curves").set_index("model")
    cf = evaluation_of(runs, "cf_0")
    assert list(curves.loc["CF-ViT", "top1"]) == pytest.approx([p.top1 for p in cf.curve])
    lf = [evaluation_of(runs, name) for name in ("lf_0", "lf_1")]
    means = [(a.top1 + b.top1) / 2 for a, b in zip(*(one.curve for one in lf), strict=True)]
    assert list(curves.loc["LF-ViT", "top1"]) == pytest.approx(means)
    one_pass = evaluation_of(runs, "vit_0").passes[0].gmacs
    shares = 100 * curves["gmacs"] / one_pass
    assert list(curves["share"]) == pytest.approx(list(shares))
    points = rows_of(page, "points").set_index(["model", "rule"])
    both = points.loc[("LF-ViT", "pass 2")]
    assert both["top1"] == pytest.approx(sum(one.passes[1].top1 for one in lf) / 2)
    assert set(points["kind"]) == {"pass", "rule", "guarantee"}


def test_tables_can_be_read_without_scripts(runs, page):
    text = re.sub(r"<script.*?</script>", "", page.read_text(), flags=re.DOTALL)
    cf = evaluation_of(runs, "cf_0")
    assert f'<td class="n">{cf.passes[0].top1:.2f}</td>' in text
    for point in cf.curve:
        cells = (f"{point.threshold:.2f}", f"{point.top1:.2f}", f"{point.exit_fraction:.1%}")
        line = "".join(f'<td class="n">{cell}</td>' for cell in (*cells, f"{point.gmacs:.4f}"))
        assert f'<tr data-eta="{cells[0]}">{line}</tr>' in text
    for point in cf.operating_points:
        assert point.reason is None or html.escape(point.reason) in text
    assert re.search(r'<div id="chart"[^>]*><svg ', text)
    for run in ("lf_0", "lf_1", "cf_0", "vit_0"):
        assert f"<td>{runs.name}/{run}/evaluation</td>" in text


def test_page_and_markdown_show_the_same_cells(runs, tmp_path):
    """Operating points of models; alpha, beta and eta of artifacts."""
    collection = collect([runs])
    write_report(collection, tmp_path / "page.md")
    row = {"alpha": 0.25, "beta": 0.99, "m": 5, "eta": 0.47, "top1": 80.1273}
    row["x_difference"] = 1.0
    columns = [Column(name, name) for name in ("alpha", "beta", "m", "eta")]
    columns += [Column("top1", "top-1", "%", 2), Column("x_difference", "x", "%", 1)]
    artifact = ArtifactFile(name="one", title="One", columns=columns, rows=[row])
    (tmp_path / "artifacts" / "one").mkdir(parents=True)
    write_json(tmp_path / "artifacts" / "one" / "artifact.json", artifact.model_dump())
    write_json(tmp_path / "artifacts" / "index.json", ["one"])
    write_page(collection, tmp_path / "page.html", artifacts=tmp_path / "artifacts", examples=0)
    for label, text in (
        ("Operating points", (tmp_path / "page.md").read_text()),
        ("One", to_page(artifact)),
    ):
        page = (tmp_path / "page.html").read_text()
        table = page.split(f'aria-label="{label}"><table>')[1].split("</table>")[0]
        cells = re.findall(r"<t[hd](?: [^>]*)?>(.*?)</t[hd]>", table)
        cells = [html.unescape(cell) for cell in cells]
        lines = re.findall(r"^\| (.*) \|$", text.split("\n\n## ")[0], flags=re.MULTILINE)
        assert "--" in lines.pop(1)
        assert cells == [cell.strip() for line in lines for cell in line.split(" | ")]
    assert {"0.25", "0.99", "5", "0.47", "80.13", "+1.0"} == set(cells[6:])


def test_an_evaluation_of_foreign_weights_stands_beside_the_others(runs, tmp_path):
    """Without a training, by a source that is no file, of a backbone of timm."""
    shutil.copytree(runs / "lf_0", tmp_path / "runs" / "lf_0")
    foreign = shutil.copytree(runs / "vit_0" / "evaluation", tmp_path / "runs" / "foreign")
    (foreign / "config.yaml").unlink()
    edit(foreign / "evaluate.json", checkpoint="timm/deit.pth", backbone="deit_tiny_patch16_224")
    write_page([tmp_path / "runs"], tmp_path / "page.html")
    write_report(collect([tmp_path / "runs"]), tmp_path / "page.md")
    assert "runs/foreign" in (tmp_path / "page.html").read_text()
    text = (tmp_path / "page.md").read_text()
    assert "- **ViT**: Trained elsewhere." in text
    assert "- **LF-ViT**: Seed 0: `python train.py`" in text


def test_nothing_comes_from_elsewhere(page):
    text = page.read_text()
    assert "default-src 'none'" in text
    body = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    for address in re.findall(r'(?:src|href|action)\s*=\s*"([^"]*)"', body):
        assert address.startswith(("#", "data:")), address
    styles = "".join(re.findall(r"<style>.*?</style>", text, flags=re.DOTALL))
    assert "url(" not in styles
    assert "@import" not in styles
    assert len(text) < 3e6


def test_examples_of_every_kind_beside_each_other(page_with_examples, nasty):
    text = page_with_examples.read_text()
    assert nasty not in text
    assert html.escape(nasty) in text  # below an image of that class
    for title in ("Easy and right", "Easy and wrong", "Hard and right", "Hard and wrong"):
        assert title in text
    images = text.count('<figure class="example">')
    assert images >= 2
    assert text.count("<b>LF-ViT</b>") == text.count("<b>CF-ViT</b>") == images
    assert f'alt="An image of class {html.escape(nasty)}: the first pass of LF-ViT' in text


def test_missing_checkpoints_are_reported(runs, tmp_path):
    write_page([runs / "lf_0"], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert re.search(r'<p class="note">Not shown: LF-ViT: .*last\.ckpt', text)
    assert "Images per second were not measured" in text


def test_artifacts(tmp_path, page):
    text = page.read_text()
    assert '<tr><td>LF-ViT</td><td class="n"></td><td class="n">80.13</td></tr>' in text
    assert "top-1 (%)" in text
    assert "A label that states what it proves." in text
    assert "artifact.json cannot be read" in text
    assert 'src="data:image/png;base64,iVBORw==" alt="A figure"' in text
    (tmp_path / "index.json").write_text("[")
    (fault,) = read_artifacts(tmp_path)
    assert fault["fault"].startswith("cannot be read")


def test_published_points_are_the_papers():
    table = published_points()
    shown = table[table["model"] == "LF-ViT"]
    rows = [r for r in published_rows("lf_vit.table2_vs_backbone") if r["model"] == "LF-ViT"]
    assert list(shown["images_per_second"]) == [row["throughput"] for row in rows]
    assert list(shown["top1"]) == [row["top1"] for row in rows]
    assert shown["setting"].iloc[0] == "m = 4, η = 0.62"
    assert {"CF-ViT (DeiT-S)", "DeiT-T, ToMe", "ThinkingViT"} <= set(table["model"])


@pytest.mark.parametrize("images", [8, 50_000])
def test_published_points_stand_beside_imagenet_alone(runs, tmp_path, images):
    copied = shutil.copytree(runs, tmp_path / "runs")
    for path in copied.rglob("evaluate.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "images": images}))
    write_page([copied], tmp_path / "page.html", examples=0)
    shown = len(rows_of(tmp_path / "page.html", "published"))
    assert shown == (len(published_points()) if images == 50_000 else 0)
    assert ("<label hidden>" in (tmp_path / "page.html").read_text()) == (not shown)


@pytest.mark.parametrize("featured", [["ViT", "nobody", "LF-ViT"], []])
def test_featured_models_come_first_and_the_others_wait(runs, tmp_path, monkeypatch, featured):
    monkeypatch.setattr("lfvit.results.page.MAX_FEATURED", 2)
    write_page([runs], tmp_path / "page.html", examples=0, featured=featured)
    text = (tmp_path / "page.html").read_text()
    boxes = re.findall(r'name="model" value="([^"]*)"( checked)?', text)
    last = "CF-ViT" if featured else "ViT"
    assert [bool(checked) for _, checked in boxes] == [True, True, False]
    assert boxes[-1][0] == last
    assert spec_of(text)["params"][0] == {"name": "hidden", "value": [last]}
    table = text[text.index(">Operating points<") :]
    models = [table.index(f"<td>{model}</td>") for model, _ in boxes]
    assert models == sorted(models)
