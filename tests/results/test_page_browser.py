"""The report page in headless Chromium: chart, slider, switches, colours and narrow screens."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lfvit.measure.schemas import read_evaluation
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
    "--virtual-time-budget=10000",
    "--enable-logging=stderr",
    "--window-size=1200,900",
)


def browse(page: Path, profile: Path) -> tuple[str, list[str]]:
    """The document once its scripts have run, and what they wrote to the console."""
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def run_script(page: Path, folder: Path, script: str) -> dict:
    """Run a script on the loaded page; it fills ``found``, and ``wait()`` waits for the chart."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    assert text != page.read_text()
    report = "Object.assign(document.createElement('pre'), {id: 'found', textContent: text})"
    actions = f"""<script type="module">
        const found = {{}}, find = (id) => document.getElementById(id);
        const wait = () => new Promise((resolve) => setTimeout(resolve, 300));
        const all = (selector) => [...document.querySelectorAll(selector)];
        await wait();
        {script}
        const text = JSON.stringify(found);
        document.body.append({report});
    </script></body>"""
    copy = folder / "page.html"
    head, _, tail = text.rpartition("</body>")  # the script of Vega has one, too
    copy.write_text(head + actions + tail)
    document, console = browse(copy, folder / "profile")
    assert console == []
    (found,) = re.findall(r'<pre id="found">(.*?)</pre>', document, flags=re.DOTALL)
    return json.loads(html.unescape(found))


def test_it_starts_without_complaint(page, tmp_path):
    document, console = browse(page, tmp_path)
    assert console == []
    assert '<html lang="en" class="ready">' in document
    assert 'id="chart" class="chart vega-embed' in document


def test_the_slider_moves_every_curve_and_shows_the_numbers_of_the_files(page, runs, tmp_path):
    script = """
        for (const eta of ["0", "0.34", "1.01"]) {
          find("eta").value = eta;
          find("eta").dispatchEvent(new Event("input"));
          await wait();
          found[eta] = {
            rows: all("#at-eta tbody tr").map((row) => [...row.cells].map((c) => c.textContent)),
            rings: all("#chart .role-mark path[stroke-width='3']").map(
              (path) => path.getAttribute("aria-label")),
          };
        }
    """
    found = run_script(page, tmp_path, script)
    curve = read_evaluation(runs / "cf_0" / "evaluation" / "evaluate.json").curve
    for eta, shown in found.items():
        point = next(p for p in curve if f"{p.threshold:.2f}" == f"{float(eta):.2f}")
        assert [row[0] for row in shown["rows"]] == ["CF-ViT", "LF-ViT"]
        assert shown["rows"][0][1:] == [
            f"{point.threshold:.2f}",
            f"{point.top1:.2f}",
            f"{point.exit_fraction:.1%}",
            f"{point.gmacs:.4f}",
        ]
        assert len(shown["rings"]) == 2
        ring = f"early exits: {point.exit_fraction:.1%}; GMACs: {point.gmacs:.4f}"
        assert any(ring in label for label in shown["rings"])


def test_switches_change_the_chart(page, tmp_path):
    script = """
        const count = () => [
          all("#chart path[aria-label*='rule: pass']").length,
          all("#chart path[aria-label*='source:']").length,  // none beside these images
        ];
        const ticks = () => all("#chart .role-axis-label text").map((t) => t.textContent).join();
        const box = (name) => all("input[name=model]").find((one) => one.value === name);
        const controls = find("controls").elements;
        const act = async (action) => { action(); await wait(); return count(); };
        found.before = count();
        found.without = await act(() => box("LF-ViT").click());
        found.rows = all("#at-eta tbody tr").length;
        found.none = await act(() => controls.none.click());
        found.again = await act(() => controls.all.click());
        found.share = ticks();
        await act(() => {
          controls.x.value = "gmacs";
          controls.x.dispatchEvent(new Event("change"));
        });
        found.gmacs = ticks();
        found.title = all("#chart .role-axis-title text").map((t) => t.textContent);
        await act(() => controls.log.click());
        found.log = ticks();
        const mark = all("#chart path[aria-label*='rule: pass 2']")[0].getBoundingClientRect();
        const at = { clientX: mark.x + mark.width / 2, clientY: mark.y + mark.height / 2 };
        all("#chart path[aria-label*='rule: pass 2']")[0].dispatchEvent(
          new PointerEvent("pointermove", { ...at, bubbles: true }));
        await wait();
        found.tip = document.querySelector("#vg-tooltip-element.visible")?.textContent;
        find("theme").click();
        find("theme").click();
        found.dark = getComputedStyle(document.body).backgroundColor;
    """
    found = run_script(page, tmp_path, script)
    assert found["before"] == found["again"]
    marks, papers = found["before"]
    assert papers == 0
    assert marks == 5
    assert found["without"] == [3, papers]
    assert found["rows"] == 1
    assert found["none"] == [0, papers]
    assert len({found["share"], found["gmacs"], found["log"]}) == 3
    assert found["title"] == ["GMACs per image", "top-1 (%)"]
    assert "top-1 (%)" in found["tip"]
    assert found["dark"] == "rgb(20, 22, 27)"


def test_more_models_are_off_until_they_are_switched_on(runs, tmp_path):
    write_page([runs], tmp_path / "featured.html", examples=0, featured=["ViT"])
    script = """
        const count = () => all("#chart path[aria-label*='rule: pass']").length;
        found.before = count();
        found.summary = document.querySelector("fieldset summary").textContent;
        all("input[name=model]").find((box) => box.value === "CF-ViT").click();
        await wait();
        found.one = count();
    """
    found = run_script(tmp_path / "featured.html", tmp_path, script)
    assert found == {"before": 1, "summary": "2 more models", "one": 3}


def test_names_stay_words(page_with_examples, tmp_path):
    script = "found.intruders = document.querySelectorAll('img[src=\"x\"]').length;"
    assert run_script(page_with_examples, tmp_path, script) == {"intruders": 0}


def test_it_fits_a_phone(page_with_examples, tmp_path):
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe src="{page_with_examples.as_uri()}" style="width:390px;height:800px;border:0">'
        "</iframe><pre></pre><script>onload = () => setTimeout(() => {"
        "const page = document.querySelector('iframe').contentDocument.documentElement;"
        "document.querySelector('pre').textContent = page.clientWidth + ' ' + page.scrollWidth"
        "}, 1000)</script>"
    )
    document, _ = browse(frame, tmp_path / "profile")
    (sizes,) = re.findall(r"<pre>(\d+ \d+)</pre>", document)
    visible, needed = map(int, sizes.split())
    assert 360 <= visible <= 390
    assert needed == visible
