"""benchmark.py: rows and facts. What the times are is not a test's business."""

import csv
import json

import pytest

from lfvit.commands.benchmark import benchmark
from lfvit.errors import ConfigError

FAST = (
    "backbone=vit_micro",
    "image_size=112",
    "num_classes=10",
    "batch_sizes=[1,4]",
    "exit_fractions=[0,0.5,1]",
    "warmup=0",
    "repeats=2",
    "accelerator=cpu",
)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rows(composed, tmp_path, precision):
    rows = benchmark(composed("benchmark", *FAST, f"precision={precision}", f"run_dir={tmp_path}"))
    with (tmp_path / "benchmark.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(rows) == 7  # a batch of one either exits or does not
    assert json.loads((tmp_path / "benchmark.json").read_text())["rows"] == rows
    assert [r["exit_fraction"] for r in rows if r["batch_size"] == 4] == [None, 0.0, 0.5, 1.0]
    for row, line in zip(rows, lines, strict=True):
        assert row["share_of_ideal"] == pytest.approx(
            row["measured_speedup"] / row["ideal_speedup"]
        )
        assert row["images_per_second"] > 0
        assert line["precision"] == precision
        assert line["machine"]
    half = next(row for row in rows if row["exit_fraction"] == 0.5)
    ends = [r["gmacs"] for r in rows if r["exit_fraction"] in (0.0, 1.0) and r["batch_size"] == 4]
    assert half["gmacs"] == pytest.approx(sum(ends) / 2)


def test_reducers_are_timed_beside_the_model_they_shorten(composed, tmp_path):
    overrides = [
        "batch_sizes=[2]",
        "+models.evit={name:vit,reducer:evit}",
        "+models.both={name:lf_vit,reducer:{name:tome,r:5,passes:second}}",
    ]
    cfg = composed("benchmark", *FAST, *overrides)
    cfg.run_dir = str(tmp_path)
    gmacs = {(r["model"], r["exit_fraction"]): r["gmacs"] for r in benchmark(cfg)}
    assert gmacs["evit", None] < gmacs["vit", None]
    assert gmacs["both", 0.0] < gmacs["lf_vit", 0.0]
    assert gmacs["both", 1.0] == gmacs["lf_vit", 1.0]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("precision=fp8", "precision='fp8' is unknown; valid: fp32, bf16"),
        ("exit_fractions=[1.5]", "exit_fractions=1.5"),
        ("batch_sizes=[0]", "batch_sizes=0"),
        ("batch_sizes=8", r"batch_sizes=8 must be a list, such as \[8\]"),
        ("threads=0", "threads=0"),
        ("accelerator=tpu", "accelerator='tpu' is unknown"),
        ("image_size=100", "image_size=100"),
    ],
)
def test_wrong_settings(composed, tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        benchmark(composed("benchmark", *FAST, override, f"run_dir={tmp_path}"))
