"""Settings of a command, checked before PyTorch is imported."""

from omegaconf import DictConfig

from lfvit.data.settings import check_data
from lfvit.measure.settings import (
    BenchmarkSettings,
    DiagnosisSettings,
    EvaluationSettings,
    PredictionSettings,
)
from lfvit.models.settings import check_model
from lfvit.training.settings import check_training
from lfvit.utils.validation import Settings, plain, validate

COMMANDS: dict[str, type[Settings]] = {
    "evaluate": EvaluationSettings,
    "diagnose": DiagnosisSettings,
    "benchmark": BenchmarkSettings,
    "predict": PredictionSettings,
}


def check_settings(cfg: DictConfig, command: str = "train") -> None:
    """Refuse settings that cannot work.

    Args:
        cfg: a composed config.
        command: the script it is for.

    Raises:
        ConfigError: names the setting, its value and what would be valid.
    """
    if command == "train":
        check_training(cfg)
        check_data(plain(cfg.data))
        method, backbone = plain(cfg.method), plain(cfg.backbone)
        check_model(
            method.pop("name"),
            backbone=backbone.get("timm", backbone),
            reducer=plain(cfg.reducer),
            options=method,
            image_size=cfg.image_size,
        )
    else:
        schema = COMMANDS[command]
        validate(schema, {key: plain(cfg[key]) for key in schema.model_fields if key in cfg})
