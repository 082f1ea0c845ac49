"""lfvit demo: what the page says at a threshold, and the page itself in headless Chromium."""

import os
import socket
import subprocess
import sys
from importlib.util import find_spec

import pytest
from PIL import Image

from lfvit.commands.demo import SHIPPED, Shown, check_port
from lfvit.commands.predict import predict_file
from lfvit.errors import ConfigError
from lfvit.models import zoo
from lfvit.results.hub import Pretrained

pytest_plugins = ("browser",)


@pytest.fixture(scope="module")
def cfg(composed):
    return composed("demo", "accelerator=cpu", "precision=fp32")


@pytest.fixture(scope="module")
def shown(cfg, trained_run, trained_vit):
    return Shown(cfg, str(trained_run), str(trained_vit))


@pytest.fixture(scope="module")
def examples(shown, tmp_path_factory):
    return shown.examples(None, tmp_path_factory.mktemp("examples"))


def test_the_threshold_chooses_between_passes_that_ran_once(shown, examples, monkeypatch):
    seen = shown.see(examples[0])
    monkeypatch.setattr(shown, "trained", None)  # from here on there is no model to run
    monkeypatch.setattr(shown, "one_pass", None)
    first = seen.prediction.logits.softmax(dim=1)[0].max().item()
    for threshold in (0, first, first + 1e-3, 1.01):
        classes, picture, text = shown.answer(seen, threshold)
        number = int(first < threshold)
        assert picture is seen.pictures[number]
        assert f"**Pass {number + 1} answers**" in text
        assert max(classes, key=classes.get) == seen.prediction._replace(exit_pass=number).label
        assert sum(classes.values()) == pytest.approx(1)
    assert seen.pictures[0].tobytes() != seen.pictures[1].tobytes()


def test_costs_are_those_of_predict_and_of_the_baseline(shown, examples):
    _, _, text = shown.answer(shown.see(examples[1]), 1.01)
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    assert [row[0] for row in rows[2:]] == ["after pass 1", "after pass 2 ← answers", "in one pass"]
    first, second, one = shown.gmacs
    assert [float(row[3]) for row in rows[2:]] == pytest.approx(
        [first, first + second, one], abs=5e-5
    )
    ms = [float(row[4]) for row in rows[2:]]
    assert 0 < ms[0] < ms[1]
    assert rows[-1][1] == predict_file(shown.one_pass, examples[1]).label
    assert f"at {(first + second) / one:.0%} of" in text


def test_without_a_baseline_only_the_cost_of_one_pass_is_shown(cfg, trained_run, shown, examples):
    alone = Shown(cfg, str(trained_run), None)
    assert alone.gmacs == shown.gmacs
    _, _, text = alone.answer(alone.see(examples[0]), 0)
    assert "not trained: it has a cost and no answer" in text
    assert "| in one pass |  |  |" in text
    assert alone.answer(None, 0.5) == (None, None, "")


def test_examples_are_of_the_set_it_was_trained_on_or_of_a_folder(shown, photographs, tmp_path):
    assert len(shown.examples(str(photographs / "pear"), tmp_path)) == 8
    sizes = {Image.open(path).size for path in shown.examples(None, tmp_path)}
    assert sizes == {(112, 112)}


def test_the_models_of_a_first_clone(cfg, tmp_path):
    """The page needs no file: models and one-pass models are in the zoo, and one has examples."""
    shipped = {name.removeprefix(zoo.PREFIX) for pair in SHIPPED.items() for name in pair if name}
    assert shipped <= set(zoo.names())
    needle = Shown(cfg, *next(iter(SHIPPED.items())))
    paths = needle.examples(None, tmp_path)
    answers = [predict_file(needle.trained, path).at(1.01).label for path in paths]
    right = [needle.record.classes[i % len(needle.record.classes)] for i in range(len(paths))]
    assert sum(a == b for a, b in zip(answers, right, strict=True)) >= len(paths) - 1


def test_what_cannot_be_shown_is_refused_with_the_fix(cfg, trained_run, trained_vit, tmp_path):
    with pytest.raises(ConfigError, match="has one pass.*baseline="):
        Shown(cfg, str(trained_vit), None)
    with pytest.raises(ConfigError, match="several passes; pass it as ckpt_path="):
        Shown(cfg, str(trained_run), str(trained_run))
    other = Pretrained.from_checkpoint(trained_vit)
    other.record = other.record.model_copy(update={"classes": other.record.classes[::-1]})
    other.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="knows other classes than .* trained on the same data"):
        Shown(cfg, str(trained_run), str(tmp_path))


def test_a_taken_port_names_a_free_one():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port={port}: .*another one is port=\d+") as error:
            check_port(port)
    check_port(int(str(error.value).rpartition("=")[2]))


@pytest.fixture
def served(trained_run, trained_vit, tmp_path):
    """The command, serving on a free port; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "lfvit", "demo", f"ckpt_path={trained_run}"]
    command += [f"baseline={trained_vit}", f"port={port}", "accelerator=cpu", "precision=fp32"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdout is not None
        assert any("the page is at" in line for line in process.stdout)  # waits for it
        yield f"http://127.0.0.1:{port}/"
        process.terminate()
        assert process.wait(30) == 143
    assert list(tmp_path.iterdir()) == []  # the command writes nothing


@pytest.mark.skipif(find_spec("gradio") is None, reason="gradio is not installed")
def test_the_page_takes_a_photograph_and_a_threshold(browser, served, shown, examples):
    """Upload, slider, answer; nothing is asked of another machine."""
    browser.open(served)
    browser.wait("document.querySelectorAll('input[type=file]').length")
    browser.upload("input[type=file]", examples[2])
    browser.wait("document.body.innerText.includes('← answers')")
    move = """
        slider = document.querySelector('input[type=range]');
        slider.value = %s;
        for (const name of ['input', 'change', 'pointerup'])
          slider.dispatchEvent(new Event(name, {bubbles: true}));
    """
    prediction = predict_file(shown.trained, examples[2])
    for threshold in (0, 1.01, 0):
        browser.run(move % threshold)
        expected = prediction.at(threshold)
        said = f"after pass {expected.exit_pass + 1} ← answers\\t{expected.label}"
        browser.wait(f"document.querySelector('table').innerText.includes('{said}')")
        answer = "document.querySelector('[data-testid=label-output-value]').innerText.trim()"
        browser.wait(f"{answer} == '{expected.label}'")
    browser.wait("document.querySelectorAll('img').length >= 8")  # examples among them
    asked = [e for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    urls = {event["params"]["request"]["url"] for event in asked}
    assert len(urls) > 5
    assert {url for url in urls if not url.startswith((served, "data:", "blob:"))} == set()
    assert not [e for e in browser.events if e["method"] == "Runtime.exceptionThrown"]
    browser.call("Page.navigate", url="about:blank")  # which would go on asking the command
