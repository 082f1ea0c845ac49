"""The report page in headless Chromium: it starts without complaint and does what it shows."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lfvit.results.page import write_page

pytest_plugins = ("report_runs",)

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--allow-file-access-from-files",
    "--virtual-time-budget=5000",
    "--enable-logging=stderr",
    "--window-size=1200,900",
)


def browse(page: Path, profile: Path, *flags: str) -> tuple[str, list[str]]:
    """The document once its scripts have run, and what they wrote to the console."""
    command = [CHROMIUM, *FLAGS, *flags, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def ask(page: Path, folder: Path, script: str) -> dict:
    """What a script that acts on the loaded page finds there; it fills ``found``."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    assert text != page.read_text()
    report = "Object.assign(document.createElement('pre'), {id: 'found', textContent: text})"
    acts = (
        f"<script>const found = {{}}; (() => {{ {script} }})(); const text = JSON.stringify(found);"
        f"document.body.append({report});</script></body>"
    )
    copy = folder / "page.html"
    copy.write_text(text.replace("</body>", acts))
    document, console = browse(copy, folder / "profile")
    assert console == []
    (found,) = re.findall(r'<pre id="found">(.*?)</pre>', document, flags=re.DOTALL)
    return json.loads(html.unescape(found))


def test_it_starts_without_complaint(page, tmp_path):
    document, console = browse(page, tmp_path)
    assert console == []
    assert '<html lang="en" class="ready">' in document
    assert document.count('class="ours"') == 3


def test_the_slider_shows_the_numbers_of_the_file(page, runs, tmp_path):
    etas = (0, 20, 34, 70, 101)
    script = """
        const slider = document.getElementById("eta"), select = document.getElementById("curve");
        const outputs = [...document.querySelectorAll("output")];
        const read = () => Object.fromEntries(outputs.map(o => [o.id, o.textContent]));
        for (const name of ["CF-ViT", "LF-ViT, seed 1"]) {
          select.value = [...select.options].find(o => o.textContent === name).value;
          select.dispatchEvent(new Event("change"));
          found[name] = {};
          for (const i of ETAS) {
            slider.value = i;
            slider.dispatchEvent(new Event("input"));
            found[name][i] = read();
          }
        }
    """.replace("ETAS", str(list(etas)))
    found = ask(page, tmp_path, script)
    for name, folder in (("CF-ViT", "cf_0"), ("LF-ViT, seed 1", "lf_1")):
        path = runs / folder / "evaluation" / "evaluate.json"
        curve = json.loads(path.read_text())["curve"]
        for i in etas:
            shown, point = found[name][str(i)], curve[i]
            gap = f"{100 * point['gap']:.2f}".replace("-", "\N{MINUS SIGN}")
            assert shown == {
                "out-eta": f"{point['threshold']:.2f}",
                "out-top1": f"{point['top1']:.2f} %",
                "out-gmacs": f"{point['gmacs']:.4f} GMACs",
                "out-exits": f"{100 * point['exit_fraction']:.1f} %",
                "out-consistency": f"{100 * point['consistency']:.2f} %",
                "out-gap": f"{gap} points",
            }


def test_the_chart_answers_to_legend_switches_and_keys(page, nasty_class, tmp_path):
    script = """
        const chart = document.getElementById("cost-chart"), live = document.getElementById("live");
        const legend = document.getElementById("cost-legend");
        const all = (node, what) => [...node.querySelectorAll(what)];
        const count = () => [all(chart, ".ours").length, all(chart, ".published").length];
        const labels = () => all(chart, "text").map(t => t.textContent);
        const button = () => all(legend, "button").find(b => b.textContent === "LF-ViT");
        found.before = count();
        button().click();
        found.without = count();
        found.pressed = button().getAttribute("aria-pressed");
        button().click();
        found.again = count();
        document.getElementById("cost-published").click();
        found.unpublished = count();
        const unit = document.getElementById("unit");
        unit.value = "gmacs";
        unit.dispatchEvent(new Event("change"));
        found.linear = labels();
        document.getElementById("cost-log").click();
        found.logarithmic = labels();
        const press = (key) => chart.dispatchEvent(new KeyboardEvent("keydown", {key}));
        press("ArrowRight");
        found.first = live.textContent;
        press("ArrowRight");
        found.second = live.textContent;
        found.tip = chart.querySelector(".tip").textContent;
        press("Escape");
        found.hidden = chart.querySelector(".tip") === null;
        const mark = chart.querySelector(".ours .mark").getBoundingClientRect();
        const at = {clientX: mark.x + mark.width / 2, clientY: mark.y + mark.height / 2};
        chart.dispatchEvent(new PointerEvent("pointermove", at));
        found.hovered = chart.querySelector(".tip").textContent;
        document.getElementById("theme").click();
        document.getElementById("theme").click();
        found.dark = getComputedStyle(document.body).backgroundColor;
        found.intruders = document.querySelectorAll('img[src="x"]').length;
        found.nasty = document.getElementById("examples").textContent.includes(NASTY);
    """.replace("NASTY", json.dumps(nasty_class).replace("</", "<\\/"))
    found = ask(page, tmp_path, script)
    ours, papers = found["before"]
    assert ours == 3
    assert papers > 8
    assert found["without"] == [2, papers]
    assert found["pressed"] == "false"
    assert found["again"] == [3, papers]
    assert found["unpublished"] == [3, 0]
    assert "GMACs per image" in found["linear"]
    assert found["linear"] != found["logarithmic"]
    assert found["first"].startswith("CF-ViT, first pass alone")
    assert found["second"].startswith("CF-ViT, ")
    assert found["first"] != found["second"]
    assert "% top-1" in found["tip"]
    assert found["hidden"] is True
    assert "GMACs" in found["hovered"]
    assert found["dark"] == "rgb(20, 22, 27)"
    assert found["intruders"] == 0
    assert found["nasty"] is True


def test_more_models_are_off_until_they_are_switched_on(runs, tmp_path):
    page = tmp_path / "featured.html"
    write_page([runs], page, examples=0, featured=["ViT"])
    script = """
        const chart = document.getElementById("cost-chart");
        const legend = document.getElementById("cost-legend");
        const more = legend.querySelector("details");
        const count = () => chart.querySelectorAll(".ours").length;
        const button = (text) =>
          [...legend.querySelectorAll("button")].find(b => b.textContent === text);
        found.before = count();
        found.summary = more.querySelector("summary").textContent;
        found.open = more.open;
        button("CF-ViT").click();
        found.one = count();
        button("All").click();
        found.all = count();
        button("None").click();
        found.none = count();
        found.pressed = button("ViT").getAttribute("aria-pressed");
        found.published = chart.querySelectorAll(".published").length;
        found.first = document.getElementById("curve").options[0].textContent;
    """
    found = ask(page, tmp_path, script)
    assert found.pop("published") > 8
    assert found == {
        **{"before": 1, "summary": "2 more models", "open": False, "one": 2, "all": 3, "none": 0},
        **{"pressed": "false", "first": "CF-ViT"},
    }


def test_it_fits_a_phone(page, tmp_path):
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe src="{page.as_uri()}" style="width:390px;height:800px;border:0"></iframe>'
        "<pre></pre><script>onload = () => {"
        "const page = document.querySelector('iframe').contentDocument.documentElement;"
        "document.querySelector('pre').textContent = page.clientWidth + ' ' + page.scrollWidth"
        "}</script>"
    )
    document, _ = browse(frame, tmp_path / "profile")
    (sizes,) = re.findall(r"<pre>(\d+ \d+)</pre>", document)
    visible, needed = map(int, sizes.split())
    assert 360 <= visible <= 390
    assert needed == visible
