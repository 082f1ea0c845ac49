import hydra
from omegaconf import DictConfig

from lfvit.cli import entry_point
from lfvit.commands.benchmark import benchmark


@entry_point
@hydra.main(version_base="1.3", config_path="conf", config_name="benchmark")
def main(cfg: DictConfig) -> None:
    benchmark(cfg)


if __name__ == "__main__":
    main()
