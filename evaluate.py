import hydra
from omegaconf import DictConfig

from lfvit.cli import entry_point
from lfvit.runs.configs import check_settings


@entry_point
@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    check_settings(cfg, "evaluate")
    from lfvit.commands.evaluate import evaluate

    evaluate(cfg)


if __name__ == "__main__":
    main()
