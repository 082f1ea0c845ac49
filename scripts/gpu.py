"""What a GPU shows in a few minutes, the most telling first: `make gpu`.

    python scripts/gpu.py [--minutes 9] [--data FOLDER [--timm NAME] [--weights FILE]]
        [--out FOLDER] [--stages tests speed] [-- jobs=1 'scale.seeds=[0]']

Each stage has a share of the minutes, and what the stages before it have left:

    tests      every method on the GPU against the CPU: pytest -m gpu, but what compiles
    speed      throughput against the ratio of multiply-accumulates, and images per second of
               training beside a plain loop with timm's model; nothing is compiled
    profile    where the time of both passes and of a training step goes
    finetune   reproduce.py scale=finetune: a pretrained ViT, LF-ViT and its rivals, two at a time
    compiled   the tests and the throughput of what torch.compile makes
    scratch    DeiT-S from random weights for the time that is left

What trains needs --data, a folder of images in classes; what follows -- goes to reproduce.py.
Without a GPU all of it runs at a small size: a rehearsal, whose figures mean nothing.

OUT/STAGE has logs and results as they come, OUT/summary.md the table that is printed at the end,
OUT/weights what was trained: in half precision, in parts of 15 MiB (`cat` joins them).
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from torch.profiler import ProfilerActivity, profile

import lfvit
from lfvit.measure.throughput import time_interleaved
from lfvit.models.passes import forward_passes
from lfvit.training.losses import pass_losses
from lfvit.utils.markdown import print_table, to_markdown

ROOT = Path(__file__).resolve().parents[1]
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
PART = 15 * 2**20  # bytes
MODELS = ["vit", "lf_vit", "cf_vit", "evit", "tome", "frequency"]
BENCHMARK = ["benchmark.py", "precision=bf16", "exit_fractions=[0.0,0.78]", "overwrite=true"]
DEVICE_DATA = ["data.cache=device", "augment.auto_augment=null", "augment.color_jitter=0"]
if CUDA:
    BATCH, TRAIN_BATCH = 1024, 128
    BENCHMARK += ["accelerator=gpu"]
    TRAINING = ["compile=false"]  # nothing is compiled beside a training
else:
    BATCH, TRAIN_BATCH = 8, 8
    BENCHMARK += ["accelerator=cpu", "backbone=vit_micro", "image_size=112", "repeats=2"]
    TRAINING = ["compile=false", "trainer=cpu", "data.batch_size=4", "trainer.max_epochs=1"]
    TRAINING += ["trainer.limit_train_batches=2", "trainer.limit_val_batches=2"]


class Stage:
    """The folder, the clock and the findings of a stage."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.end = folder, time.monotonic() + seconds
        self.found: list[dict[str, str]] = []  # rows of the summary
        folder.mkdir(parents=True, exist_ok=True)

    def note(self, what: str, value: object) -> None:
        """Add a finding, printed at once."""
        print(f"{what}: {value}", flush=True)
        self.found.append({"stage": self.folder.name, "what": what, "found": str(value)})

    def run(self, name: str, *arguments: str, share: float = 1.0) -> bool:
        """Run a command in a share of the stage's time, output in NAME.log; whether it succeeded.

        Out of time, it is asked to stop as by Ctrl-C: trainings save, and pytest sums up.
        """
        path, left = self.folder / f"{name}.log", share * (self.end - time.monotonic())
        if left < 5:
            self.note(name, "no time left")
            return False
        print(f"{' '.join(arguments)} > {path}", flush=True)
        paths = f"{ROOT / 'src'}:{os.environ.get('PYTHONPATH', '')}"
        environment = os.environ | {"PYTHONPATH": paths, "GPU_TESTS": DEVICE.type}
        with path.open("w") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        grace = min(10.0, left / 4)  # seconds to stop in
        try:
            status: Any = process.wait(left - grace)
        except subprocess.TimeoutExpired:
            status = "out of time"
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(grace)
        finally:
            with suppress(ProcessLookupError):  # and nothing that it started goes on
                os.killpg(process.pid, signal.SIGKILL)
        if status:
            self.note(name, status if isinstance(status, str) else f"ended with {status}")
            print("".join(path.read_text().splitlines(True)[-15:]), flush=True)
        return not status


def tests(stage: Stage, args: Namespace) -> None:
    """pytest -m gpu, but what compiles."""
    run_tests(stage, "not compil")


def run_tests(stage: Stage, chosen: str, share: float = 1.0) -> None:
    """Some tests marked gpu; one that takes a minute says where it is."""
    options = ["-vv", "-m", "gpu", "-k", chosen, "-o", "faulthandler_timeout=60", "--durations=10"]
    options += ["-n", "4" if CUDA else "1", "tests/test_gpu.py"]
    path = stage.folder / "pytest.log"
    stage.run("pytest", "-m", "pytest", *options, share=share)
    log = path.read_text() if path.exists() else ""
    for outcome in ("PASSED", "FAILED"):
        stage.note(outcome.lower(), log.count(f"] {outcome}"))


def speed(stage: Stage, args: Namespace) -> None:
    """Throughput, one image, a training step, and training beside timm's loop."""
    run_benchmark(stage, "inference", MODELS, BATCH)
    run_benchmark(stage, "training_step", MODELS[:3], TRAIN_BATCH, "training=true")
    if args.data is None:
        return
    for method in ("vit", "lf_vit"):
        run = stage.folder / method
        training = ["train.py", "experiment=finetune", f"method={method}", *finetuning(args)]
        training += [f"data.batch_size={TRAIN_BATCH}", "trainer.max_epochs=3"]
        training += ["trainer.limit_train_batches=20", "trainer.limit_val_batches=1"]
        training += ["schedule.second_start=0", "logger=none", "overwrite=true"]
        training += [f"hydra.run.dir={run}", *TRAINING]
        if stage.run(method, *training, f"data.root={args.data}"):
            metrics = json.loads((run / "metrics.json").read_text())
            stage.note(f"training, {method}, images/s", f"{metrics['train/images_per_second']:.0f}")
    stage.note("timm's model in a plain loop, images/s", f"{plain_loop(args.timm):.0f}")


def run_benchmark(
    stage: Stage, name: str, models: Sequence[str], batch_size: int, *options: str
) -> None:
    """benchmark.py on some models."""
    run, task = stage.folder / name, "training" if "training=true" in options else "inference"
    options += (f"batch_sizes=[{batch_size}]", f"hydra.run.dir={run}")
    options += tuple(f"~models.{model}" for model in MODELS if model not in models)
    if not stage.run(name, *BENCHMARK, *options):
        return
    print((run / "benchmark.md").read_text().split("\n\n", 3)[-1], flush=True)
    for row in json.loads((run / "benchmark.json").read_text())["rows"]:
        exits = "" if row["exit_fraction"] is None else f", {row['exit_fraction']:.0%} exit"
        if row["model"] != models[0] and row["task"] == task:
            stage.note(
                f"{name}, {row['model']}{exits}",
                f"{row['measured_speedup']:.2f} times {models[0]}, "
                f"{row['share_of_ideal']:.0%} of the ideal",
            )


def plain_loop(name: str) -> float:
    """Images per second of training timm's model in bfloat16 autocast, without this project."""
    side, steps = (224, 20) if CUDA else (112, 2)
    model = timm.create_model(name, img_size=side, num_classes=10).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    images = torch.randn(TRAIN_BATCH, 3, side, side, device=DEVICE)
    targets = torch.arange(TRAIN_BATCH, device=DEVICE) % 10
    for number in range(-3, steps):
        if number in (-3, 0):  # after a warm-up
            synchronize()
            started = time.perf_counter()
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(images), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    synchronize()
    return steps * TRAIN_BATCH / (time.perf_counter() - started)


def synchronize() -> None:
    if CUDA:
        torch.cuda.synchronize()


def profiles(stage: Stage, args: Namespace) -> None:
    """torch.profiler's tables of both passes and of a training step; the selection's share."""
    backbone, batch = ("deit_small", 256) if CUDA else ("deit_tiny", 4)
    model = lfvit.create_model("lf_vit", backbone=f"{backbone}_patch16_224", image_size=224)
    model = model.to(DEVICE, torch.bfloat16).eval()
    images = torch.randn(batch, 3, 224, 224, device=DEVICE, dtype=torch.bfloat16)
    targets = torch.arange(batch, device=DEVICE)

    def both_passes() -> Any:
        with torch.no_grad():
            return forward_passes(model, images)

    def training_step() -> Any:
        torch.stack(pass_losses(forward_passes(model, images).logits, targets)).sum().backward()

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if CUDA else [])]
    for run in (both_passes, training_step):
        run()
        with profile(activities=activities) as profiler:
            run()
            synchronize()
        by = f"self_{DEVICE.type}_time_total"
        table = profiler.key_averages().table(sort_by=by, row_limit=25)
        (stage.folder / f"{run.__name__}.txt").write_text(table)
    with torch.no_grad():
        first = model.first_pass(images)
    cases = {"both passes": both_passes, "selection": lambda: model.select(first)}
    for name, times in time_interleaved(cases, warmup=2, repeats=5, device=DEVICE).items():
        stage.note(f"{name}, {batch} images", f"{1e3 * median(times):.2f} ms")


def finetuning(args: Namespace) -> list[str]:
    """Overrides of a training from the weights of a ViT, images on the device."""
    weights = ["pretrained=false", f"init_from={args.weights}"] if args.weights else []
    return [*DEVICE_DATA, f"backbone.timm={args.timm}", *weights]


def finetune(stage: Stage, args: Namespace) -> None:
    """`reproduce.py scale=finetune`: every method from pretrained weights, side by side."""
    runs = stage.folder / "reproduce" / "runs"
    options = [f"overrides=[{','.join([*finetuning(args), *TRAINING])}]", f"data_root={args.data}"]
    options += ["jobs=2", *([] if CUDA else ["scale.probe_images=4"]), *args.reproduce]
    stage.run("reproduce", "reproduce.py", "scale=finetune", f"output_dir={runs.parent}", *options)
    for path in sorted(runs.glob("*/*/metrics.json")):
        metrics, name = json.loads(path.read_text()), "/".join(path.parts[-3:-1])
        top1 = (f"{key} {value:.2f}" for key, value in metrics.items() if key.endswith("top1"))
        stage.note(f"{name}, {metrics['train_seconds']:.0f} s", ", ".join(top1))
    for name in ("vit", "lf_vit", "lf_vit_taught"):
        pack(runs / name / "seed0", stage, name)


def compiled(stage: Stage, args: Namespace) -> None:
    """Tests and throughput of what torch.compile makes."""
    option = f"compile={str(CUDA).lower()}"
    run_benchmark(stage, "inference", MODELS[:2], BATCH, option)
    run_tests(stage, "compil", share=0.6)  # the first to compile in a process takes minutes
    run_benchmark(stage, "training_step", MODELS[:2], TRAIN_BATCH, option, "training=true")
    graphs = "compile_mode=reduce-overhead"
    run_benchmark(stage, "one_image", MODELS[:2], 1, option, graphs)
    run_benchmark(stage, "other_models", ["vit", *MODELS[2:]], BATCH, option)


def scratch(stage: Stage, args: Namespace) -> None:
    """DeiT-S from random weights for the time that is left."""
    run, left = stage.folder / "run", max(int(stage.end - time.monotonic()) - 15, 1)
    options = [f"data.root={args.data}", "method=vit", f"hydra.run.dir={run}", "overwrite=true"]
    options += TRAINING
    options += [] if CUDA else ["backbone=vit_micro", "image_size=112", "data.num_workers=0"]
    options += [f"trainer.max_time='00:00:{left // 60:02d}:{left % 60:02d}'"]
    if stage.run("train", "train.py", "experiment=imagenette_gpu", *options):
        metrics = json.loads((run / "metrics.json").read_text())
        for name in metrics.keys() & {"train/loss", "val/top1", "train/images_per_second"}:
            stage.note(name, f"{metrics[name]:.2f}")
    pack(run, stage, "scratch")


def pack(run: Path, stage: Stage, name: str) -> None:
    """A run's half-precision weights and their record, in parts."""
    checkpoint, folder = run / "checkpoints" / "last.ckpt", stage.folder.parent / "weights"
    if not checkpoint.exists():
        return
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    kept = {key: value for key, value in content.items() if key.startswith("lfvit")}
    kept["state_dict"] = {key: value.half() for key, value in content["state_dict"].items()}
    folder.mkdir(exist_ok=True)
    whole = folder / f"{name}.pth"
    torch.save(kept, whole)
    data = whole.read_bytes()
    whole.unlink()
    for number, first in enumerate(range(0, len(data), PART)):
        (folder / f"{name}.pth.{number:02d}").write_bytes(data[first : first + PART])


STAGES: dict[str, tuple[float, Callable[[Stage, Namespace], None]]] = {
    "tests": (0.16, tests),
    "speed": (0.24, speed),
    "profile": (0.04, profiles),
    "finetune": (0.24, finetune),
    "compiled": (0.28, compiled),
    "scratch": (0.04, scratch),
}
"""Name -> share of the minutes, and what it does."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="of all stages together")
    parser.add_argument("--out", type=os.path.abspath, default=ROOT / "outputs" / "gpu")
    parser.add_argument(
        "--data", type=os.path.abspath, help="folder of images in classes, for the trainings"
    )
    parser.add_argument("--timm", default="vit_small_patch14_dinov2", help="backbone to fine-tune")
    parser.add_argument(
        "--weights", type=os.path.abspath, help="its weights; without, it starts from timm's"
    )
    parser.add_argument("--stages", nargs="*", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("reproduce", nargs="*", default=[], help="settings of it, after --")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # ends the running command too
    out, end = Path(args.out), time.monotonic() + 60 * args.minutes
    rows: list[dict[str, str]] = []
    device = torch.cuda.get_device_name() if CUDA else "no GPU: a rehearsal at small size"
    title = f"{device}, torch {torch.__version__}, {args.minutes:g} minutes"
    for number, name in enumerate(args.stages):
        share, run = STAGES[name]
        share /= sum(STAGES[later][0] for later in args.stages[number:])
        started = time.monotonic()
        stage = Stage(out / name, share * (end - started))
        print(f"\n## {name}, at most {stage.end - started:.0f} s\n", flush=True)
        try:
            if args.data is None and run in (finetune, scratch):
                stage.note("nothing is trained", "--data names no images")
            else:
                run(stage, args)
        except Exception as error:  # the later stages are worth having all the same
            traceback.print_exc()
            stage.note("failed", repr(error))
        stage.note("seconds", f"{time.monotonic() - started:.0f}")
        rows += stage.found
        (out / "summary.md").write_text(f"# {title}\n\n{to_markdown(rows)}\n")
    print()
    print_table(rows, title=title)
    print(f"written to {out}")


if __name__ == "__main__":
    main()
