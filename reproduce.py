import hydra
from omegaconf import DictConfig

from lfvit.cli import entry_point


@entry_point
@hydra.main(version_base="1.3", config_path="conf", config_name="reproduce")
def main(cfg: DictConfig) -> None:
    from lfvit.commands.reproduce import reproduce

    reproduce(cfg)


if __name__ == "__main__":
    main()
