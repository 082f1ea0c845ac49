"""Folders of trained models: ``zoo:NAME`` in zoo/, ``hf:USER/REPO`` on the Hugging Face Hub."""

from pathlib import Path
from typing import Any

from lfvit.errors import CheckpointError
from lfvit.utils.paths import ZOO as FOLDER

PREFIX, HUB = "zoo:", "hf:"
WEIGHTS, CARD = "model.safetensors", "card.json"
LAST = "last.ckpt"
DEFAULT = "default"
"""``zoo:default`` is the model named in the file zoo/default."""


def names() -> list[str]:
    """Models in the zoo, sorted."""
    return sorted(path.parent.name for path in FOLDER.glob(f"*/{WEIGHTS}"))


def default() -> str | None:
    """The model that zoo/default names, if there is one."""
    file = FOLDER / DEFAULT
    return file.read_text("utf-8").strip() if file.is_file() else None


def locate(source: str | Path) -> Path:
    """The file of ``zoo:NAME`` or ``hf:USER/REPO``; of a run directory its last checkpoint, of a
    folder of the Hub its weights; any other path unchanged.

    Raises:
        CheckpointError: no model of that name; the message lists the names.
    """
    text = str(source)
    if text.startswith(HUB):
        return fetch(text) / WEIGHTS
    if not text.startswith(PREFIX):
        folder = Path(text)
        files = (folder / "checkpoints" / LAST, folder / LAST, folder / WEIGHTS)
        return next((file for file in files if file.is_file()), folder)
    name: str | None = text.removeprefix(PREFIX)
    name = default() if name == DEFAULT else name
    if name in names():
        return FOLDER / name / WEIGHTS
    valid = ", ".join(PREFIX + known for known in names())
    hint = f"valid: {valid}" if valid else f"{FOLDER} is empty; pass the path of a checkpoint"
    raise CheckpointError(f"{text}: no such model in the zoo; {hint}")


def fetch(repo: str, **options: Any) -> Path:
    """The folder of ``zoo:NAME`` or of a repository of the Hub, downloaded if it is not cached; a
    folder as it is.

    Args:
        repo: USER/REPO or hf:USER/REPO, zoo:NAME, or the path of a folder.
        **options: of `huggingface_hub.snapshot_download`, such as ``revision``.

    Raises:
        CheckpointError: it cannot be had.
    """
    if repo.startswith(PREFIX):
        return locate(repo).parent
    repo = repo.removeprefix(HUB)
    options = {key: value for key, value in options.items() if value is not None}
    folder = Path(repo)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            files = ["*.json", WEIGHTS, "README.md"]
            folder = Path(snapshot_download(repo, allow_patterns=files, **options))
        except Exception as error:  # of the library that downloads, of names, of the network
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise CheckpointError(
                f"{HUB}{repo}: cannot be had from the Hub ({reason}); check the name, or download "
                "it elsewhere (hf download) and pass its folder as ckpt_path"
            ) from error
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{HUB}{repo}: has no {WEIGHTS}, so it is no model of lfvit")
    return folder
