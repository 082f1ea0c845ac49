"""Trained models as folders of the Hugging Face Hub: config.json, model.safetensors, README.md.

    model = lfvit.Pretrained.from_pretrained("USER/REPO")  # or a folder
    model.infer(images).logits

Commands read the same folders: ``ckpt_path=hf:USER/REPO``, and ``zoo:NAME`` for those in zoo/.
"""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, PyTorchModelHubMixin
from safetensors.torch import save
from torch import Tensor, nn

from lfvit.models import zoo
from lfvit.models.checkpoints import RECORD, load_checkpoint
from lfvit.models.passes import EarlyExitOutput, early_exit
from lfvit.runs.models import build_model, load_trained
from lfvit.runs.record import CheckpointRecord
from lfvit.utils.atomic_io import write_atomic
from lfvit.utils.validation import validate

DOWNLOAD = {"revision", "cache_dir", "force_download", "local_files_only", "token"}


class Pretrained(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="lfvit",
    pipeline_tag="image-classification",
    tags=["vision-transformer", "early-exit"],
):
    """A trained model with its record: method, backbone, classes, preprocessing, threshold.

    ``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` are huggingface_hub's; weights are
    stored under the model's own names, so that the file is also a ``ckpt_path``.

    Args:
        **record: the content of config.json, see `lfvit.runs.record.CheckpointRecord`.

    Attributes:
        model: of `lfvit.create_model`, in evaluation mode.
        card: what README.md is made from, see `lfvit.results.zoo`; None: a card of its settings.
    """

    card: dict[str, Any] | None = None

    def __init__(self, **record: Any) -> None:
        super().__init__()
        self.record = validate(CheckpointRecord, record)
        self.model = build_model(self.record, len(self.record.classes)).eval()

    @classmethod
    def from_checkpoint(cls, path: str | Path, threshold: float | None = None) -> "Pretrained":
        """The model of a checkpoint or run directory; ``threshold`` instead of its own."""
        trained = load_trained(path, {"threshold": threshold})
        model = cls(**trained.record.model_dump())
        model.model = trained.model
        return model

    def forward(self, images: Tensor) -> Any:
        """All passes of normalised images (B, 3, S, S)."""
        return self.model(images)

    def infer(self, images: Tensor, threshold: float | None = None) -> EarlyExitOutput:
        """Early exit at a threshold, the record's by default."""
        eta = self.record.threshold if threshold is None else threshold
        return early_exit(self.model, images, eta)

    def _save_pretrained(self, save_directory: Path) -> None:
        record = self.record.model_dump()
        (save_directory / "config.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        weights = {key: value.contiguous() for key, value in self.model.state_dict().items()}
        content = save(weights, {RECORD: json.dumps(record)})  # save_file's is for its owner alone
        write_atomic(save_directory / zoo.WEIGHTS, content)
        if self.card is not None:
            (save_directory / zoo.CARD).write_text(json.dumps(self.card, indent=1) + "\n", "utf-8")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **options: Any
    ) -> "Pretrained":
        """The model of ``USER/REPO`` on the Hub, of ``zoo:NAME``, or of a folder.

        Args:
            pretrained_model_name_or_path: which one.
            **options: of the download, as for any model of the Hub.

        Raises:
            CheckpointError: it cannot be had, or is no model of this project.
        """
        folder = zoo.fetch(
            str(pretrained_model_name_or_path),
            **{key: options.pop(key) for key in DOWNLOAD & options.keys()},
        )
        return super().from_pretrained(folder, **options)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> "Pretrained":
        folder = Path(model_id)
        for name in (*DOWNLOAD, "proxies", "resume_download", "map_location", "strict"):
            options.pop(name, None)
        model = cls(**options)
        load_checkpoint(model.model, folder / zoo.WEIGHTS)
        card = folder / zoo.CARD
        model.card = json.loads(card.read_text("utf-8")) if card.is_file() else None
        return model

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """README.md: data, recipe, accuracy of each pass, operating points, limits."""
        from lfvit.results.zoo import format_card  # needs the extra plots

        card = self.card or {"name": self.record.method["name"]}
        return ModelCard(format_card({**card, "record": self.record.model_dump()}))
