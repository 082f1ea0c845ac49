"""The report page in headless Chromium: chart, slider, switches, colours and narrow screens."""

import pytest

from lfvit.measure.schemas import read_evaluation
from lfvit.results.page import write_page

pytest_plugins = ("report_runs", "browser")

TOOLS = """
const found = {}, find = (id) => document.getElementById(id);
const wait = () => new Promise((resolve) => setTimeout(resolve, 300));
const all = (selector) => [...document.querySelectorAll(selector)];
"""


@pytest.fixture
def run_script(browser):
    """Run a script on a page; it fills ``found``, and ``wait()`` waits for the chart."""

    def run(page, script):
        browser.open(page.as_uri())
        browser.wait("document.documentElement.className == 'ready'")
        found = browser.run(f"(async () => {{{TOOLS} await wait(); {script}; return found}})()")
        assert browser.complaints() == []
        return found

    return run


def test_it_starts_without_complaint(page, run_script):
    found = run_script(page, "found.chart = find('chart').className")
    assert found["chart"].startswith("chart vega-embed")


def test_the_slider_moves_every_curve_and_shows_the_numbers_of_the_files(page, runs, run_script):
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
    found = run_script(page, script)
    curve = read_evaluation(runs / "cf_0" / "evaluation" / "evaluate.json").curve
    for eta, shown in found.items():
        point = next(p for p in curve if f"{p.threshold:.2f}" == f"{float(eta):.2f}")
        assert [row[0] for row in shown["rows"]] == ["CF-ViT", "LF-ViT"]
        cells = (f"{point.threshold:.2f}", f"{point.top1:.2f}", f"{point.exit_fraction:.1%}")
        assert shown["rows"][0][1:] == [*cells, f"{point.gmacs:.4f}"]
        assert len(shown["rings"]) == 2
        ring = f"early exits: {point.exit_fraction:.1%}; GMACs: {point.gmacs:.4f}"
        assert any(ring in label for label in shown["rings"])


def test_switches_change_the_chart(page, run_script):
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
    found = run_script(page, script)
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


def test_more_models_are_off_until_they_are_switched_on(runs, run_script, tmp_path):
    write_page([runs], tmp_path / "featured.html", examples=0, featured=["ViT"])
    script = """
        const count = () => all("#chart path[aria-label*='rule: pass']").length;
        found.before = count();
        found.summary = document.querySelector("fieldset summary").textContent;
        all("input[name=model]").find((box) => box.value === "CF-ViT").click();
        await wait();
        found.one = count();
    """
    found = run_script(tmp_path / "featured.html", script)
    assert found == {"before": 1, "summary": "2 more models", "one": 3}


def test_names_stay_words(page_with_examples, run_script):
    script = "found.intruders = document.querySelectorAll('img[src=\"x\"]').length;"
    assert run_script(page_with_examples, script) == {"intruders": 0}


def test_it_fits_a_phone(page_with_examples, browser, run_script):
    screen = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.call("Emulation.setDeviceMetricsOverride", **screen)
    try:
        page = "const page = document.documentElement;"
        script = f"{page} found.sizes = [page.clientWidth, page.scrollWidth]"
        visible, needed = run_script(page_with_examples, script)["sizes"]
    finally:
        browser.call("Emulation.clearDeviceMetricsOverride")
    assert 360 <= visible <= 390
    assert needed == visible
