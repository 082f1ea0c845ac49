"""Where a run's numbers come from: command, commit, uncommitted changes, versions and machine."""

import os
import platform
import re
import shlex
import shutil
import subprocess
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lfvit.data.images import printable
from lfvit.utils.distributed import usable_cores
from lfvit.utils.paths import CHECKOUT, program, typed

PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "timm",
    "onnxruntime",
    "hydra-core",
    "omegaconf",
    "torchmetrics",
    "fvcore",
    "wandb",
    "numpy",
    "pillow",
)


def environment() -> dict[str, Any]:
    """Command, commit, versions and machine."""
    import torch

    command, arguments = typed()
    versions = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):  # of an extra
            versions[name] = version(name)
    return {
        "command": printable(" ".join([program(command), shlex.join(arguments)]).strip()),
        "commit": commit(),
        "python": platform.python_version(),
        "packages": versions,
        "machine": machine(),
        "threads": torch.get_num_threads(),
    }


@cache
def commit() -> str | None:
    """The checked-out commit, with "+" where files differ from it; None outside a checkout.

    Read once: what is checked out during a long run is not what runs.
    """
    head = _git("rev-parse", "--short=12", "HEAD").decode().strip()
    return f"{head}{'+' if _git('status', '--porcelain') else ''}" if head else None


def machine() -> str:
    """Processor, cores and GPU in words."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(
        r"model name\s*: (.*)", cpuinfo.read_text("utf-8") if cpuinfo.exists() else ""
    )
    processor = model[1] if model else platform.processor() or platform.machine()
    words = f"{processor}, {usable_cores()} cores, {platform.system()}"
    if torch.cuda.is_available():
        words = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, {words}"
    return words


def uncommitted_changes() -> bytes:
    """What differs from the commit, new files included, as a patch that git apply takes."""
    patch = _git("diff", "--binary", "HEAD")
    for name in _git("ls-files", "--others", "--exclude-standard", "-z").split(b"\0"):
        path = CHECKOUT / os.fsdecode(name)
        if name and path.is_file() and path.stat().st_size < 1_000_000:
            patch += _git("diff", "--binary", "--no-index", "/dev/null", os.fsdecode(name))
    return patch


def _git(*arguments: str) -> bytes:
    """What git prints, nothing outside a checkout; `diff --no-index` exits with 1."""
    if shutil.which("git") is None:
        return b""
    command = ["git", "-C", str(CHECKOUT), *arguments]
    done = subprocess.run(command, capture_output=True, check=False)
    return done.stdout if done.returncode == 0 or "--no-index" in arguments else b""
