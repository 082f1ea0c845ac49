"""benchmark.py: rows and facts. What the times are is not a test's business."""

import csv
import json
from itertools import product

import pytest
import torch

import lfvit
from conftest import TINY
from lfvit.commands.benchmark import benchmark, early_exit_case
from lfvit.commands.evaluate import evaluate
from lfvit.errors import ConfigError
from lfvit.models.passes import confidence_of
from lfvit.tracking.loggers import training_summary

FEW = tuple(f"~models.{name}" for name in ("cf_vit", "evit", "tome", "frequency"))
SMALL = (
    *("backbone=vit_micro", "image_size=112", "num_classes=10", "batch_sizes=[1,4]"),
    *("exit_fractions=[0,0.5,1]", "warmup=0", "repeats=2", "accelerator=cpu"),
)
FAST = (*FEW, *SMALL)


def test_rows(composed, tmp_path):
    more = "models.both={name:lf_vit,reducer:{name:tome,r:5,passes:second}}"
    rows = benchmark(composed("benchmark", *SMALL, more, f"run_dir={tmp_path}"))
    with (tmp_path / "benchmark.csv").open() as file:
        lines = list(csv.DictReader(file))
    names = ["vit", "lf_vit", "cf_vit", "evit", "tome", "frequency", "both"]
    assert list(dict.fromkeys(row["model"] for row in rows)) == names
    assert len(lines) == len(rows) == 4 * 2 + 3 * (2 + 3)  # a batch of one exits or does not
    assert json.loads((tmp_path / "benchmark.json").read_text())["rows"] == rows
    for row, line in zip(rows, lines, strict=True):
        ratio = row["measured_speedup"] / row["ideal_speedup"]
        assert row["share_of_ideal"] == pytest.approx(ratio)
        assert row["images_per_second"] > 0
        assert line["machine"]
    batch = [row for row in rows if row["batch_size"] == 4]
    assert [r["exit_fraction"] for r in batch if r["model"] == "lf_vit"] == [0.0, 0.5, 1.0]
    gmacs = {(row["model"], row["exit_fraction"]): row["gmacs"] for row in batch}
    ends = gmacs["lf_vit", 0.0] + gmacs["lf_vit", 1.0]
    assert gmacs["lf_vit", 0.5] == pytest.approx(ends / 2)
    assert all(gmacs[name, None] < gmacs["vit", None] for name in ("evit", "tome", "frequency"))
    assert gmacs["both", 0.0] < gmacs["lf_vit", 0.0]
    assert gmacs["both", 1.0] == gmacs["lf_vit", 1.0]


def test_a_trained_model_exits_as_it_does_on_its_images(composed, trained_run, tmp_path):
    checkpoint = trained_run / "checkpoints" / "last.ckpt"
    settings = ["batch_sizes=[16]", "warmup=0", "repeats=1", "accelerator=cpu"]
    given = [f"ckpt_path={checkpoint}", "threshold=0.2", f"run_dir={tmp_path / 'speed'}"]
    rows = benchmark(composed("benchmark", *FEW, *settings, *given))
    both, trained, first = (row for row in rows if row["model"] == "trained")
    assert trained["exits"] == "measured at eta=0.2"
    assert (both["exit_fraction"], first["exit_fraction"]) == (0, 1)
    given = [*given[:2], "data.num_workers=0", "risk=null", f"run_dir={tmp_path / 'evaluation'}"]
    found = evaluate(composed("evaluate", *given))
    assert trained["exit_fraction"] == pytest.approx(found.configured.exit_fraction)
    assert trained["gmacs"] == pytest.approx(found.configured.gmacs)
    same_size = [row["gmacs"] for row in rows if row["exit_fraction"] == 1.0]
    assert same_size[0] == first["gmacs"] == pytest.approx(found.passes[0].gmacs)
    assert all(0 <= row["top1"] <= 100 for row in (both, trained, first))
    assert "| top-1 |" in (tmp_path / "speed" / "benchmark.md").read_text()


def test_models_as_exported(composed, trained_run, tmp_path, quick_export):
    """The same rows in onnxruntime, of the same images; each runtime in its own precisions."""
    checkpoint = trained_run / "checkpoints" / "last.ckpt"
    settings = ["batch_sizes=[6]", "warmup=0", "repeats=1", "accelerator=cpu", "top1_images=16"]
    settings += ["runtime=[torch,onnx]", "precision=[fp32,int8]", f"ckpt_path={checkpoint}"]
    settings.append("~models.lf_vit")
    rows = benchmark(composed("benchmark", *FEW, *settings, f"run_dir={tmp_path}"))
    tables = {}
    for row in rows:
        tables.setdefault((row["runtime"], row["precision"]), []).append(row)
    assert list(tables) == [("torch", "fp32"), ("onnx", "fp32"), ("onnx", "int8")]
    columns = ("model", "exits", "exit_fraction", "gmacs", "batch_size", "settings")
    for name in columns:
        torchs, exact = tables["torch", "fp32"], tables["onnx", "fp32"]
        assert [row[name] for row in torchs] == [row[name] for row in exact]
    for row, other in zip(torchs, exact, strict=True):
        assert row.get("top1") == other.get("top1")
    assert len(tables["onnx", "int8"]) == len(exact)
    text = (tmp_path / "benchmark.md").read_text()
    assert "## Inference, fp32, onnxruntime" in text
    assert "## Inference, int8, onnxruntime" in text


def test_the_cost_of_a_cascade_counts_every_exit(monkeypatch):
    torch.manual_seed(0)
    model = lfvit.create_model("dvt", backbone=TINY, image_size=64, num_classes=5).eval()
    images, seen, run_pass = torch.randn(8, 3, 64, 64), [], model.run_pass
    eta = confidence_of(model(images).logits[1]).median().item()

    def counted(index, images, before=None):
        seen.append((index, len(images)))
        return run_pass(index, images, before)

    monkeypatch.setattr(model, "run_pass", counted)
    _, row = early_exit_case(model, images, eta, [1e9, 2e9, 4e9], {})
    spent = seen[:-3]  # the last three are of all passes on every image
    assert 0 < spent[-1][1] < 8
    assert row["gmacs"] == pytest.approx(sum(2**index * count for index, count in spent) / 8)
    assert training_summary({"val/exit_fraction": 0.5}, model)["gmacs"] is None


def test_what_cannot_be_timed_is_refused(composed, tmp_path):
    for model in ("5", "{reducer:tome}"):
        with pytest.raises(ConfigError, match="models.mine=.* names no method; pass for example"):
            benchmark(composed("benchmark", *SMALL, f"models.mine={model}", f"run_dir={tmp_path}"))
    with pytest.raises(ConfigError, match="models names none; leave it out"):
        benchmark(composed("benchmark", "models=null", f"run_dir={tmp_path}"))
    wrong = composed("benchmark", *FAST, "runtime=onnx", "precision=bf16", f"run_dir={tmp_path}")
    with pytest.raises(ConfigError, match=r"runtime=onnx has none of precision.*fp32 or int8"):
        benchmark(wrong)


def test_inference_and_training_in_several_settings(composed, tmp_path, monkeypatch):
    """Every model is compiled, for inference each pass by itself; the compiler is not tested."""
    compiled, stepped = [], []
    monkeypatch.setattr(torch, "compile", lambda f, **_: compiled.append(f) or f)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compiled.append(self))
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: stepped.append(self))
    overrides = ["training=true", "precision=[fp32,bf16]", "compile=[false,true]"]
    overrides += ["exit_fractions=0", "batch_sizes=2", f"run_dir={tmp_path}"]
    rows = benchmark(composed("benchmark", *FAST, *overrides))
    keys = ("task", "precision", "compiled", "model")
    options = (("inference", "training"), ("fp32", "bf16"), (False, True), ("vit", "lf_vit"))
    assert [tuple(row[key] for key in keys) for row in rows] == list(product(*options))
    assert len(compiled) == 2 * 3 + 2 * 2
    assert len(stepped) == 8 * 2  # rows of training, repetitions
    for training, inference in zip(rows[8:], rows[:8], strict=True):
        assert training["exit_fraction"] is None
        for column in ("gmacs", "ideal_speedup", "compared_with", "settings"):
            assert training[column] == inference[column]
    text = (tmp_path / "benchmark.md").read_text()
    assert text.count("\n## Inference, ") == text.count("\n## Training, ") == 4


def test_a_batch_too_large_ends_the_list_and_keeps_the_rows(composed, tmp_path, monkeypatch):
    from lfvit.commands import benchmark as command

    original = command.time_interleaved

    def small_gpu(cases, **options):
        if len(next(iter(cases.values())).args[0]) > 2:
            raise torch.cuda.OutOfMemoryError
        return original(cases, **options)

    monkeypatch.setattr(command, "time_interleaved", small_gpu)
    rows = benchmark(composed("benchmark", *FAST, "batch_sizes=[1,2,4]", f"run_dir={tmp_path}"))
    assert {row["batch_size"] for row in rows} == {1, 2}
