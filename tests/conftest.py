"""What the tests share: small models, a folder of awkward photographs, composed configs."""

import ctypes
import gc
import logging
import os
import runpy
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BytesIO
from itertools import product
from pathlib import Path
from unittest import mock

# read when PyTorch is loaded: threads that wait for one another leave the core to other processes
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import pytest
import torch
from filelock import FileLock
from hydra.core.global_hydra import GlobalHydra
from hypothesis import settings
from omegaconf import DictConfig
from PIL import Image

from lfvit.runs.configs import compose_config

os.environ.setdefault("WANDB_MODE", "offline")
gc.disable()  # while tests are imported, see pytest_collection_finish
torch.set_num_threads(1)  # the suite runs in several processes
settings.register_profile("suite", derandomize=True, deadline=None)  # the same in every run
settings.load_profile("suite")

ROOT = Path(__file__).parents[1]
TINY = {"embed_dim": 24, "depth": 5, "num_heads": 2, "patch_size": 8}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """What fails on a GPU is printed at once: the machine may be gone before the summary."""
    if report.failed and "gpu" in report.keywords and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\n{report.nodeid}\n{report.longreprtext}", file=sys.__stderr__, flush=True)


def pytest_collection_finish() -> None:
    """What is imported stays: looking through it for garbage again and again takes seconds."""
    gc.freeze()
    gc.enable()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="module")
def free_memory() -> Iterator[None]:
    """Models are parts of cycles, and glibc keeps what was freed: processes would grow to 3 GB."""
    yield
    gc.collect()
    with suppress(OSError, AttributeError):  # no glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@pytest.fixture(autouse=True)
def forget_compiled() -> Iterator[None]:
    """Graphs compiled by one test would be tried first, one by one, in every later one."""
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations draw nothing, which takes half of their time."""
    monkeypatch.setattr("lfvit.results.plots.plot_evaluation", lambda *_: None)


@pytest.fixture
def tiny() -> dict:
    """A backbone that fits any test: 7 x 7 coarse cells on 112 pixels."""
    return dict(TINY)


@pytest.fixture(scope="session")
def composed() -> Callable[..., DictConfig]:
    """Compose a config as the command line does."""

    def compose(name: str, *overrides: str) -> DictConfig:
        return compose_config(name, overrides)

    return compose


def run_python(
    *arguments: str | Path, cwd: Path | None = None, status: int = 0, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, which has to end with this status."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout[-2000:] + done.stderr[-2000:]
    return done


def run_script(name: str, *arguments: str) -> int:
    """A script in this process, which has imported everything already; its exit status."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    GlobalHydra.instance().clear()
    with mock.patch.object(sys, "argv", [str(ROOT / f"{name}.py"), *arguments]):
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0)
        finally:
            GlobalHydra.instance().clear()
            root.handlers[:], root.level = handlers, level  # Hydra sets its own
    return 0


def photograph(size: tuple[int, int], hue: int, seed: int) -> Image.Image:
    """Smooth noise around a colour: something a transform can work on."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 90, (6, 6, 3)) + np.roll([150, 60, 20], hue)
    return Image.fromarray(small.clip(0, 255).astype(np.uint8)).resize(size, Image.BICUBIC)


def write_photographs(root: Path, per_class: int = 8) -> Path:
    """Three classes of images of mixed size, mode and format."""
    sizes = [(90, 70), (64, 128), (40, 40), (200, 120)]
    for hue, name in enumerate(("apple", "pear", "plum")):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            image = photograph(sizes[i % len(sizes)], hue, 10 * hue + i)
            path = root / name / f"{i:02d}"
            match i % 8:
                case 0:
                    image.save(path.with_suffix(".jpg"))
                case 1:
                    image.convert("L").save(path.with_suffix(".png"))
                case 2:
                    image.convert("CMYK").save(path.with_suffix(".jpeg"))
                case 3:
                    image.convert("P").save(path.with_suffix(".png"))
                case 4:
                    gray = np.asarray(image.convert("L")).astype(np.uint16) * 256
                    Image.fromarray(gray).save(path.with_suffix(".png"))
                case 5:
                    image.convert("RGBA").save(path.with_suffix(".png"))
                case 6:
                    image.save(path.with_suffix(".WEBP"), "WEBP")
                case 7:
                    image.convert("LA").save(path.with_suffix(".png"))
    return root


def write_shards(folder: Path, out: Path, count: int = 2) -> None:
    """Tar shards of a folder of classes, as WebDataset names them: KEY.jpg beside KEY.cls."""
    out.mkdir(exist_ok=True)
    classes = sorted(path.name for path in folder.iterdir())
    paths = sorted(folder.rglob("*.*"))
    for split, number in product(("train", "val"), range(count)):
        with tarfile.open(out / f"{split}-{number:03d}.tar", "w") as tar:
            for i, path in enumerate(paths[number::count]):
                label = str(classes.index(path.parent.name)).encode()
                for suffix, data in (("jpg", path.read_bytes()), ("cls", label)):
                    member = tarfile.TarInfo(f"{i:06d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, BytesIO(data))


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of classes, no split."""
    return write_photographs(tmp_path_factory.mktemp("photographs"))


NEEDLE_FAST = (
    "data.train_images=32",
    "data.val_images=16",
    "data.num_workers=0",
    "data.batch_size=8",
    "trainer.max_epochs=2",
    "lr_scheduler.warmup_epochs=0.5",
    "callbacks.progress=null",
    "backbone.embed_dim=24",
    "backbone.depth=4",
    "backbone.num_heads=2",
    "trainer.accelerator=cpu",
)


@pytest.fixture(scope="session")
def trained_run(
    tmp_path_factory: pytest.TempPathFactory, composed: Callable[..., DictConfig]
) -> Path:
    """The directory of a finished two-epoch run of a tiny LF-ViT on the needle set."""
    from lfvit.commands.train import train

    run_dir = tmp_path_factory.mktemp("run")
    train(composed("train", *NEEDLE_FAST, f"run_dir={run_dir}"))
    return run_dir


@pytest.fixture(scope="session")
def trained_vit(
    tmp_path_factory: pytest.TempPathFactory, composed: Callable[..., DictConfig]
) -> Path:
    """The last checkpoint of a tiny one-pass ViT, trained for an epoch on the needle set."""
    from lfvit.commands.train import train

    run_dir = tmp_path_factory.mktemp("vit")
    settings = ("method=vit", "trainer.max_epochs=1", f"run_dir={run_dir}")
    train(composed("train", *NEEDLE_FAST, *settings))
    return run_dir / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, trained_run: Path) -> Path:
    """What export.py writes of `trained_run`, and beside it the passes it is made of.

    Made by the first of the suite's processes that needs it: the others train the same run.
    """
    from lfvit.models.export import write_passes

    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "passes"

    def write(model: torch.nn.Module, image_size: int, temporary: Path) -> list[Path]:
        written = write_passes(model, image_size, temporary)
        for path in written:
            shutil.copy(path, folder)
        return written

    with FileLock(f"{folder}.lock"), pytest.MonkeyPatch.context() as patch:
        if not folder.exists():
            folder.mkdir()
            patch.setattr("lfvit.commands.export.write_passes", write)
            settings = ("threshold=0.4", f"hydra.run.dir={folder / 'export'}")
            assert run_script("export", str(trained_run), *settings) == 0
    return folder / "export"


@pytest.fixture
def quick_export(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of two passes are all that of `trained_run`: its passes are written once."""
    from lfvit.models.export import write_passes
    from lfvit.models.two_pass import TwoPassViT

    def write(model: torch.nn.Module, image_size: int, folder: Path) -> list[Path]:
        if not isinstance(model, TwoPassViT):
            return write_passes(model, image_size, folder)
        paths = sorted(exported.parent.glob("*_pass_fp32.onnx"))
        return [Path(shutil.copy(path, folder)) for path in paths]

    for command in ("export", "benchmark"):
        monkeypatch.setattr(f"lfvit.commands.{command}.write_passes", write)
