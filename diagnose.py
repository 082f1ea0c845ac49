import hydra
from omegaconf import DictConfig

from lfvit.cli import entry_point
from lfvit.runs.configs import check_settings


@entry_point
@hydra.main(version_base="1.3", config_path="conf", config_name="diagnose")
def main(cfg: DictConfig) -> None:
    check_settings(cfg, "diagnose")
    from lfvit.commands.diagnose import diagnose

    diagnose(cfg)


if __name__ == "__main__":
    main()
