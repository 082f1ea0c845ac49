r"""Everything that a GPU should show, in one call of a few minutes: `make gpu`.

    python scripts/gpu.py [--minutes 9] [--data FOLDER --timm NAME --weights FILE] [--out FOLDER] \
        [--stages tests speed] [-- jobs=4 'scale.seeds=[0]']

Six stages, each within its share of the time; what one has found is written before the next begins,
so that an interruption loses little.

    tests      tests marked gpu: every method against the CPU
    speed      benchmark.py in bfloat16, as it is and compiled: throughput against the ratio of MACs
    training   images per second of fine-tuning beside timm's model in a plain loop
    profile    where the time of both passes and of a training step goes
    finetune   reproduce.py scale=finetune: a pretrained ViT to LF-ViT and its rivals
    scratch    DeiT-S from random weights for the time that is left

Stages that train need --data, a folder of images in classes; what follows -- goes to reproduce.py.
Without a GPU all stages run at a small size: a rehearsal, whose figures mean nothing. Writes
OUT/summary.md, OUT/STAGE/ and, of two fine-tuned models, weights in half precision in parts of
15 MiB (`cat` joins them).
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import lfvit
from lfvit.models.passes import forward_passes
from lfvit.training.losses import pass_losses

ROOT = Path(__file__).resolve().parents[1]
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
ACCELERATOR = "gpu" if CUDA else "cpu"
PART = 15 * 2**20  # bytes
SHARES = {
    "tests": 0.15,
    "speed": 0.3,
    "training": 0.15,
    "profile": 0.05,
    "finetune": 0.3,
    "scratch": 0.05,
}
"""Of the minutes; a stage may also use what those before it have left."""
BACKBONE, SIDE, BATCH = ("deit_small", 224, 1024) if CUDA else ("vit_micro", 112, 8)
TRAIN_BATCH = 128 if CUDA else 8
DEVICE_DATA = ["data.cache=device", "augment.auto_augment=null", "augment.color_jitter=0"]
SMALL = ["compile=false", "trainer=cpu", "data.batch_size=4"]
SMALL += ["trainer.limit_train_batches=2", "trainer.limit_val_batches=2", "trainer.max_epochs=1"]
"""Overrides of a rehearsal."""


class Session:
    """The clock, the folder and the summary of one call."""

    def __init__(self, out: Path, minutes: float, stages: Sequence[str]) -> None:
        self.out, self.end = out, time.monotonic() + 60 * minutes
        self.stage, self.stage_end, shares = "", self.end, sum(SHARES[name] for name in stages)
        self.seconds = {name: 60 * minutes * SHARES[name] / shares for name in stages}
        self.summary: list[str] = []
        out.mkdir(parents=True, exist_ok=True)

    def begin(self, stage: str) -> Path:
        """The stage's folder; its time ends where that of the later stages begins."""
        names = list(self.seconds)
        later = sum(self.seconds[name] for name in names[names.index(stage) + 1 :])
        self.stage, self.stage_end = stage, self.end - later
        self.note(f"## {stage}")
        folder = self.out / stage
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def left(self) -> float:
        """Seconds of the stage."""
        return self.stage_end - time.monotonic()

    def note(self, text: str) -> None:
        """Add to summary.md at once."""
        print(text, flush=True)
        self.summary.append(text)
        (self.out / "summary.md").write_text("\n\n".join(self.summary) + "\n")

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a command of the project with its output in STAGE/NAME.log."""
        path = f"{ROOT / 'src'}:{os.environ.get('PYTHONPATH', '')}"
        with (self.out / self.stage / f"{name}.log").open("w") as log:
            return subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": path},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def command(self, name: str, *arguments: str, reserve: float = 5.0) -> bool:
        """Run a command of the project; whether it succeeded in the stage's time."""
        if self.left < 10 + reserve:
            self.note(f"{name}: no time left")
            return False
        started, process = time.monotonic(), self.start(name, *arguments)
        try:
            status: Any = process.wait(self.left - reserve)
        except subprocess.TimeoutExpired:
            status = "out of time"
            end(process)
        seconds = time.monotonic() - started
        self.note(f"`{' '.join(arguments)}`: status {status}, {seconds:.0f} s")
        if status != 0:
            log = (self.out / self.stage / f"{name}.log").read_text()
            self.note("```\n" + "".join(log.splitlines(True)[-15:]) + "```")
        return bool(status == 0)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask it to stop, which saves what it has; then end it."""
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def tests(session: Session) -> None:
    """pytest -m gpu; without a GPU the same tests on the CPU, as far as time allows."""
    folder = session.begin("tests")
    os.environ["GPU_TESTS"] = DEVICE.type
    session.command("pytest", "-m", "pytest", "-m", "gpu", "tests/test_gpu.py", "--durations=10")
    last = (folder / "pytest.log").read_text().splitlines()[-1:]
    session.note(f"pytest: {''.join(last)}")


def speed(session: Session) -> None:
    """Throughput at a large batch and latency of one image, inference and training."""
    folder = session.begin("speed")
    models = ["vit", "lf_vit", "cf_vit", "evit", "tome", "frequency"]
    common = [f"backbone={BACKBONE}", f"image_size={SIDE}", "precision=bf16"]
    common += [f"accelerator={ACCELERATOR}"]
    common += [] if CUDA else ["threads=1"]
    plans = {  # models, batch size, mode of torch.compile, training
        "not_compiled": (models, BATCH, None, False),
        "two_passes": (["vit", "lf_vit"], BATCH, "default", False),
        "training": (["vit", "lf_vit"], TRAIN_BATCH, "default", True),
        "one_image": (["vit", "lf_vit"], 1, "reduce-overhead", False),
        "cf_vit": (["vit", "cf_vit"], BATCH, "default", False),
        "reducers": (["vit", "evit", "tome", "frequency"], BATCH, "default", False),
    }
    for name, (chosen, batch, mode, learns) in plans.items():
        options = [f"~models.{other}" for other in models if other not in chosen]
        options += [f"batch_sizes=[{batch}]", "exit_fractions=[0.0,0.78]", "overwrite=true"]
        options += [f"compile={str(CUDA and mode is not None).lower()}"]
        options += [] if mode is None else [f"compile_mode={mode}"]
        options += [f"training={str(learns).lower()}", f"repeats={20 if CUDA else 2}"]
        options += [f"hydra.run.dir={folder / name}"]
        if session.command(name, "benchmark.py", *common, *options):
            session.note((folder / name / "benchmark.md").read_text().split("\n\n", 3)[-1])


def training(session: Session, args: argparse.Namespace) -> None:
    """Images per second of experiment=finetune, images on the device, and of timm's loop."""
    folder = session.begin("training")
    if args.data is None:
        session.note("no --data, so nothing is trained")
        return
    base = [
        "train.py",
        "experiment=finetune",
        f"data.root={args.data}",
        "logger=none",
        *DEVICE_DATA,
    ]
    base += [f"backbone.timm={args.timm}", f"data.batch_size={TRAIN_BATCH}", "trainer.max_epochs=3"]
    base += [*initial(args), *([] if CUDA else SMALL), f"compile={str(CUDA).lower()}"]
    base += [
        "trainer.limit_val_batches=2",
        "schedule.second_start=0",
        "data.num_workers=8",
        "logger=none",
    ]
    for method in ("vit", "lf_vit"):
        run = folder / method
        if session.command(method, *base, f"method={method}", f"hydra.run.dir={run}"):
            metrics = json.loads((run / "metrics.json").read_text())
            session.note(f"{method}: {metrics['train/images_per_second']:.0f} images/s in training")
    session.note(f"timm's model in a plain loop: {plain_loop(args.timm):.0f} images/s")


def finetune(session: Session, args: argparse.Namespace) -> None:
    """`reproduce.py scale=finetune`: every method from pretrained weights, side by side."""
    folder = session.begin("finetune")
    if args.data is None:
        session.note("no --data, so nothing is trained")
        return
    overrides = [*initial(args), f"backbone.timm={args.timm}", *([] if CUDA else SMALL)]
    options = [f"overrides=[{','.join(overrides)}]", *([] if CUDA else ["scale.probe_images=4"])]
    options += [f"data_root={args.data}", f"output_dir={folder / 'reproduce'}", *args.reproduce]
    session.command("reproduce", "reproduce.py", "scale=finetune", *options)
    for metrics in sorted(folder.glob("reproduce/runs/*/*/metrics.json")):
        values = json.loads(metrics.read_text())
        names = ("val/first_top1", "val/top1", "val/early_exit_top1", "train_seconds")
        name = "/".join(metrics.parts[-3:-1])
        session.note(f"{name}: { ({n: round(values[n], 2) for n in names if n in values}) }")
    for name in ("vit", "lf_vit_taught"):
        last = folder / "reproduce" / "runs" / name / "seed0" / "checkpoints" / "last.ckpt"
        if last.exists():
            pack(last, session.out / "weights", name)
    with tarfile.open(session.out / "finetune.tar.gz", "w:gz") as archive:
        archive.add(folder, "finetune", filter=lambda f: f if "checkpoints" not in f.name else None)


def initial(args: argparse.Namespace) -> list[str]:
    """Overrides that say which weights training starts from."""
    return ["pretrained=false", f"init_from={args.weights}"] if args.weights else []


def plain_loop(name: str, steps: int = 20) -> float:
    """Images per second of a training loop without this project, images on the device.

    timm's model in bfloat16 autocast with AdamW, compiled where there is a GPU.
    """
    import timm

    side = 224 if CUDA else 112
    model = timm.create_model(name, img_size=side, num_classes=10).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=CUDA)
    run = torch.compile(model) if CUDA else model
    images = torch.randn(TRAIN_BATCH, 3, side, side, device=DEVICE)
    targets = torch.arange(TRAIN_BATCH, device=DEVICE) % 10
    steps = steps if CUDA else 2
    for step in range(-3 if CUDA else -1, steps):
        if step == 0:
            synchronize()
            started = time.perf_counter()
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = nn.functional.cross_entropy(run(images), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    synchronize()
    return steps * TRAIN_BATCH / (time.perf_counter() - started)


def where_time_goes(session: Session) -> None:
    """torch.profiler's table of both passes and of a training step, and the selection's share."""
    folder = session.begin("profile")
    backbone = f"deit_{'small' if CUDA else 'tiny'}_patch16_224"
    batch = 256 if CUDA else 4
    model = lfvit.create_model("lf_vit", backbone=backbone, image_size=224, num_classes=1000)
    model = model.to(DEVICE, torch.bfloat16).eval()
    images = torch.randn(batch, 3, 224, 224, device=DEVICE, dtype=torch.bfloat16)
    targets = torch.arange(batch, device=DEVICE)

    def both_passes() -> None:
        with torch.no_grad():
            forward_passes(model, images)

    def training_step() -> None:
        torch.stack(pass_losses(forward_passes(model, images).logits, targets)).sum().backward()

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if CUDA else [])]
    key = f"self_{DEVICE.type}_time_total"
    for name, run in (("both_passes", both_passes), ("training_step", training_step)):
        run()
        synchronize()
        with profile(activities=activities) as profiler:
            run()
            synchronize()
        table = profiler.key_averages().table(sort_by=key, row_limit=25)
        (folder / f"{name}.txt").write_text(table)
        session.note(f"{name}: profile/{name}.txt")
    with torch.no_grad():
        first = model.first_pass(images)
        whole = seconds(both_passes)
        share = seconds(lambda: model.select(first)) / whole
    session.note(
        f"both passes on {batch} images: {1e3 * whole:.2f} ms; selection {share:.2%} of it"
    )


def scratch(session: Session, args: argparse.Namespace) -> None:
    """DeiT-S from random weights for the time that is left."""
    folder = session.begin("scratch")
    if args.data is None:
        session.note("no --data, so nothing is trained")
        return
    minutes = max((session.left - 30) / 60, 0.0)
    arguments = ["train.py", "experiment=imagenette_gpu", f"data.root={args.data}", "method=vit"]
    arguments += [f"hydra.run.dir={folder / 'run'}", "logger=csv"]
    arguments += [f"trainer.max_time='00:00:{int(minutes):02d}:{int(60 * minutes % 60):02d}'"]
    if not CUDA:
        arguments += ["trainer=cpu", "compile=false", "backbone=vit_micro", "image_size=112"]
        arguments += ["data.batch_size=8", "trainer.limit_train_batches=4", "data.num_workers=0"]
        arguments += ["trainer.limit_val_batches=2", "trainer.max_epochs=2"]
        arguments += ["trainer.check_val_every_n_epoch=1"]
    if session.command("train", *arguments):
        session.note(f"metrics: {(folder / 'run' / 'metrics.json').read_text()}")


def pack(checkpoint: Path, folder: Path, name: str) -> None:
    """Half-precision weights and the record of a checkpoint, in parts that `cat` joins."""
    folder.mkdir(exist_ok=True)
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    state = {key: tensor.half() for key, tensor in content["state_dict"].items()}
    whole = folder / f"{name}.pth"
    kept = {key: content[key] for key in content if key.startswith("lfvit")}
    torch.save({**kept, "state_dict": state}, whole)
    data = whole.read_bytes()
    whole.unlink()
    for number, first in enumerate(range(0, len(data), PART)):
        (folder / f"{name}.pth.{number:02d}").write_bytes(data[first : first + PART])


def synchronize() -> None:
    if CUDA:
        torch.cuda.synchronize()


def seconds(run: Callable[[], object], repeats: int = 10) -> float:
    """Mean time of a call, after a warm-up."""
    run()
    synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    synchronize()
    return (time.perf_counter() - started) / repeats


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="of all stages together")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu"))
    parser.add_argument("--data", type=Path, help="folder of images in classes, for the trainings")
    parser.add_argument("--timm", default="vit_small_patch14_dinov2", help="backbone to fine-tune")
    parser.add_argument("--weights", type=Path, help="its weights; without, it starts from none")
    parser.add_argument("--stages", nargs="*", choices=list(SHARES), default=list(SHARES))
    parser.add_argument("reproduce", nargs="*", default=[], help="settings of it, after --")
    args = parser.parse_args(arguments)
    args.out = args.out.absolute()
    session = Session(args.out, args.minutes, args.stages)
    device = torch.cuda.get_device_name() if CUDA else "no GPU: a rehearsal at small size"
    session.note(f"# {device}, torch {torch.__version__}, {args.minutes:g} minutes")
    stages: dict[str, Callable[[], None]] = {
        "tests": lambda: tests(session),
        "speed": lambda: speed(session),
        "training": lambda: training(session, args),
        "profile": lambda: where_time_goes(session),
        "finetune": lambda: finetune(session, args),
        "scratch": lambda: scratch(session, args),
    }
    for name in args.stages:
        try:
            stages[name]()
        except Exception as error:  # the later stages are worth having all the same
            session.note(f"{name} failed: {error!r}")


if __name__ == "__main__":
    main()
