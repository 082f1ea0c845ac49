"""The report page, without a browser: what is in the file."""

import base64
import html
import json
import re
import shutil

import pytest

from lfvit.errors import DataError
from lfvit.results.page import fixed, percent, read_artifacts, write_page
from lfvit.results.page_data import published, published_figures

pytest_plugins = ("report_runs",)


def data_of(text):
    """The numbers in the page."""
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    return json.loads(found)


def evaluation_of(folder):
    return json.loads((folder / "evaluation" / "evaluate.json").read_text())


def test_the_numbers_are_those_of_the_files(runs, page_text):
    data = data_of(page_text)
    names = [curve["name"] for curve in data["curves"]]
    assert names == ["CF-ViT", "LF-ViT, seed 0", "LF-ViT, seed 1"]
    for curve, name in zip(data["curves"], ("cf_0", "lf_0", "lf_1"), strict=True):
        expected = evaluation_of(runs / name)
        for key in expected["curve"][0]:
            assert curve[key] == [point[key] for point in expected["curve"]]
        assert curve["second"] == expected["second"]
    ours = {entry["name"]: entry for entry in data["series"] if not entry["published"]}
    assert list(ours) == ["CF-ViT", "LF-ViT", "ViT"]
    vit = evaluation_of(runs / "vit_0")["first"]
    assert {entry["one_pass"] for entry in ours.values()} == {vit["gmacs"]}
    lf = [evaluation_of(runs / name) for name in ("lf_0", "lf_1")]
    for i, point in enumerate(ours["LF-ViT"]["curve"]):
        tops = [found["curve"][i]["top1"] for found in lf]
        assert point["top1"] == pytest.approx(sum(tops) / 2)
    both = next(p for p in ours["LF-ViT"]["points"] if p["run"] == "both passes")
    assert both["top1"] == pytest.approx(sum(found["second"]["top1"] for found in lf) / 2)


def test_tables_can_be_read_without_scripts(runs, page_text):
    text = re.sub(r"<script.*?</script>", "", page_text, flags=re.DOTALL)
    for name in ("cf_0", "vit_0"):
        first = evaluation_of(runs / name)["first"]
        assert f'<td class="n">{first["top1"]:.2f}</td>' in text
        assert f'<td class="n">{first["gmacs"]:.4f}</td>' in text
    for certificate in evaluation_of(runs / "cf_0")["calibration"]["risk"]["certificates"]:
        assert certificate["outcome"] == "found" or certificate["outcome"] in text
    assert re.search(r'<noscript><img class="static" src="data:image/svg', text)
    for run in ("lf_0", "lf_1", "cf_0", "vit_0"):
        assert f"<code>{runs.name}/{run}/evaluation</code>" in text


def test_nothing_comes_from_elsewhere(page_text):
    assert "default-src 'none'" in page_text
    for address in re.findall(r'(?:src|href|action)\s*=\s*"([^"]*)"', page_text):
        assert address.startswith(("#", "data:")), address
    styles = "".join(re.findall(r"<style>.*?</style>", page_text, flags=re.DOTALL))
    assert "url(" not in styles
    assert "@import" not in styles
    assert len(page_text) < 6e6


def test_names_cannot_leave_their_place(page_text, runs, nasty_class, tmp_path):
    assert nasty_class not in page_text
    assert html.escape(nasty_class) in page_text  # below an image of that class
    folder = shutil.copytree(runs / "lf_0", tmp_path / "<img src=y onerror=alert(2)>")
    path = folder / "evaluation" / "evaluate.json"
    found = json.loads(path.read_text())
    found["method"]["name"] = nasty_class
    path.write_text(json.dumps(found))
    write_page([tmp_path], tmp_path / "page.html", title=nasty_class, intro=nasty_class, examples=0)
    text = (tmp_path / "page.html").read_text()
    assert data_of(text)["curves"][0]["name"] == nasty_class
    assert nasty_class not in text
    assert "<img src=y" not in text
    assert text.count("</script>") == 2


def test_examples_of_every_kind_beside_each_other(page_text):
    for title in ("Easy and right", "Easy and wrong", "Hard and right", "Hard and wrong"):
        assert title in page_text
    images = page_text.count('class="shot truth"')
    assert images >= 2
    assert page_text.count("<strong>LF-ViT</strong>") == images
    assert page_text.count("<strong>CF-ViT</strong>") == images
    assert re.search(
        r'alt="The second look of LF-ViT: a window of \d by \d of the 7 by 7', page_text
    )
    assert 'alt="The second look of CF-ViT: cells all over the image' in page_text


def test_what_is_gone_is_said(runs, tmp_path):
    folder = shutil.copytree(runs / "lf_0", tmp_path / "run")
    path = folder / "evaluation" / "evaluate.json"
    found = json.loads(path.read_text())
    found["checkpoint"] = "/gone/checkpoints/nowhere.ckpt"
    path.write_text(json.dumps(found))
    write_page([tmp_path], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert re.search(r'<p class="note">Not shown: LF-ViT: /gone/checkpoints/nowhere.ckpt', text)
    assert "None of these models was timed" in text


def test_artifacts(tmp_path, page_text):
    assert "Tables and figures of the papers" in page_text
    assert "<td>LF-ViT</td>" in page_text
    assert '<td class="n">80.13</td>' in page_text
    assert '<td class="n">80.5</td>' in page_text
    assert '<td class="n">\N{EN DASH}</td>' in page_text
    assert "A label that says what it proves." in page_text
    assert "artifact.json cannot be read" in page_text
    assert 'src="data:image/png;base64,iVBORw==" alt="A figure"' in page_text
    (tmp_path / "index.json").write_text("[")
    (fault,) = read_artifacts(tmp_path)
    assert fault["fault"].startswith("cannot be read")


def test_published_points_are_the_papers(page_text):
    shown = [entry for entry in data_of(page_text)["series"] if entry["published"]]
    assert shown == published()
    points = {
        (p["top1"], p["gmacs"], p["speed"])
        for entry in shown
        if entry["name"] == "LF-ViT, DeiT-S"
        for p in entry["points"]
    }
    rows = published_figures()["lf_vit"]["table2_vs_backbone"]
    assert points == {
        (r["top1"], r["gmacs"], r["throughput"]) for r in rows if r["model"] == "LF-ViT"
    }
    assert all(entry["points"] for entry in shown)


def test_featured_models_come_first_and_the_others_wait(runs, tmp_path):
    output = tmp_path / "page.html"
    write_page([runs], output, examples=0, featured=["ViT", "nobody", "LF-ViT"])
    text = output.read_text()
    data = data_of(text)
    ours = [(e["name"], e["featured"]) for e in data["series"] if not e["published"]]
    assert ours == [("ViT", True), ("LF-ViT", True), ("CF-ViT", False)]
    assert [c["name"] for c in data["curves"]] == ["LF-ViT, seed 0", "LF-ViT, seed 1", "CF-ViT"]
    (static,) = re.findall(r'<noscript><img class="static" src="data:[^,]*,([^"]*)"', text)
    picture = base64.b64decode(static).decode()
    assert "ViT" in picture
    assert "CF-ViT" not in picture
    body = text[: text.index('<section id="threshold"')]
    cost, more = body.split("<details><summary>1 more model</summary>")
    assert '<th scope="row">LF-ViT' in cost
    assert '<th scope="row">CF-ViT' not in cost
    assert '<th scope="row">CF-ViT' in more


def test_of_many_models_the_first_are_shown(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("lfvit.results.page.MOST", 2)
    write_page([runs], tmp_path / "page.html", examples=0)
    data = data_of((tmp_path / "page.html").read_text())
    assert [e["featured"] for e in data["series"] if not e["published"]] == [True, True, False]


def test_nothing_to_show(tmp_path):
    with pytest.raises(DataError, match="no evaluated run"):
        write_page([tmp_path], tmp_path / "page.html")


def test_numbers_as_printed():
    assert fixed(1234.567, 1) == "1,234.6"
    assert fixed(-0.001, 2) == "0.00"
    assert fixed(-1.5, 1) == "\N{MINUS SIGN}1.5"
    assert fixed(None, 1) == fixed(float("nan"), 1) == "\N{EN DASH}"
    assert percent(0.1234, 1) == "12.3"


def test_the_curve_against_speed(runs, tmp_path):
    """Time per image is linear in the share of exits, so the curve is no straight line."""
    evaluation = evaluation_of(runs / "lf_0")
    ends = evaluation["first"]["gmacs"], evaluation["second"]["gmacs"]
    rows = [
        {
            "settings": '{"name": "lf_vit"}',
            "batch_size": 1,
            "exit_fraction": share,
            "gmacs": gmacs,
            "images_per_second": speed,
        }
        for share, gmacs, speed in ((0.0, ends[1], 10.0), (1.0, ends[0], 40.0))
    ]
    (tmp_path / "benchmark.json").write_text(json.dumps({"rows": rows}))
    write_page([runs / "lf_0", tmp_path], tmp_path / "page.html", examples=0)
    text = (tmp_path / "page.html").read_text()
    (entry,) = [e for e in data_of(text)["series"] if not e["published"]]
    for shown, point in zip(entry["curve"], evaluation["curve"], strict=True):
        seconds = point["exit_fraction"] / 40 + (1 - point["exit_fraction"]) / 10
        assert shown["speed"] == pytest.approx(1 / seconds)
    assert "Measured with batch 1, fp32, machine not recorded" in text
