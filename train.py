import hydra
from omegaconf import DictConfig

from lfvit.cli import entry_point
from lfvit.runs.configs import check_settings


@entry_point
@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    check_settings(cfg)
    from lfvit.commands.jobs import run  # PyTorch takes seconds: mistakes are answered before

    return run(cfg).metrics.get("val/top1")  # what a sweeper that searches maximizes


if __name__ == "__main__":
    main()
