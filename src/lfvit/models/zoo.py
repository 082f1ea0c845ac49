"""The trained models of the repository: ``zoo:NAME`` stands for a file of weights in zoo/."""

from pathlib import Path

from lfvit.errors import CheckpointError
from lfvit.utils.paths import ZOO as FOLDER

PREFIX = "zoo:"
LAST = "last.ckpt"
DEFAULT = "default"
"""``zoo:default`` is the model named in the file zoo/default."""


def names() -> list[str]:
    """Models in the zoo, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def default() -> str | None:
    """The model that zoo/default names, if there is one."""
    file = FOLDER / DEFAULT
    return file.read_text("utf-8").strip() if file.is_file() else None


def locate(source: str | Path) -> Path:
    """The file of ``zoo:NAME``; of a run directory its last checkpoint; any other path unchanged.

    Raises:
        CheckpointError: no model of that name; the message lists the names.
    """
    text = str(source)
    if not text.startswith(PREFIX):
        folder = Path(text)
        files = (folder / "checkpoints" / LAST, folder / LAST)
        return next((file for file in files if file.is_file()), folder)
    name: str | None = text.removeprefix(PREFIX)
    name = default() if name == DEFAULT else name
    if name in names():
        return FOLDER / f"{name}.safetensors"
    valid = ", ".join(PREFIX + known for known in names())
    hint = f"valid: {valid}" if valid else f"{FOLDER} is empty; pass the path of a checkpoint"
    raise CheckpointError(f"{text}: no such model in the zoo; {hint}")
