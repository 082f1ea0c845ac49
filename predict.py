import hydra
from omegaconf import DictConfig

from lfvit.cli import entry_point
from lfvit.runs.configs import check_settings


@entry_point
@hydra.main(version_base="1.3", config_path="conf", config_name="predict")
def main(cfg: DictConfig) -> None:
    check_settings(cfg, "predict")
    from lfvit.commands.predict import predict

    predict(cfg)


if __name__ == "__main__":
    main()
