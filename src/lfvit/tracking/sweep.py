"""python -m lfvit.tracking.sweep OVERRIDE [OVERRIDE ...]: what `train.py -m` runs, for W&B agents.

Takes what `train.py -m` takes and writes a sweep configuration for `wandb sweep` whose jobs are the
same, one for every combination:

    python -m lfvit.tracking.sweep method.region_size=4,5,6 seed=0,1 --output sweep.yaml
    wandb sweep sweep.yaml       # prints the id
    wandb agent ID               # on every machine that helps
"""

import argparse
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType

from lfvit.cli import entry_point
from lfvit.errors import ConfigError
from lfvit.runs.directory import PROJECT_ROOT

COMMAND = ("${env}", "${interpreter}", "${program}", "logger=wandb")


def sweep_config(overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration of a W&B grid over the same jobs as Hydra's multirun.

    Overrides with several values (``a=1,2``, ``range(1,4)``) become parameters, others part of the
    command. A ``hydra.sweeper.params`` of the composed config is swept as well, as Hydra does.

    Args:
        overrides: as on the command line of ``train.py -m``.

    Raises:
        ConfigError: nothing to sweep, or values that no grid can list.
    """
    parser = OverridesParser.create()
    fixed = [o for o in overrides if not parser.parse_override(o).is_sweep_override()]
    with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", [*fixed, "logger=wandb"], return_hydra_config=True)
    listed = cfg.hydra.sweeper.get("params") or {}
    said = [f"{key}={value}" for key, value in listed.items()] + list(overrides)
    parsed = {o.get_key_element(): o for o in parser.parse_overrides(said)}
    parsed = {key: o for key, o in parsed.items() if not key.lstrip("+~").startswith("hydra.")}
    swept = {key: _values(o) for key, o in parsed.items() if o.is_sweep_override()}
    if not swept:
        raise ConfigError(
            "nothing to sweep: give a setting several values, such as method.region_size=4,5,6"
        )
    monitor = cfg.callbacks.get("monitor") or {"metric": "val/top1", "mode": "max"}
    command = [o.input_line or "" for key, o in parsed.items() if key not in swept]
    return {
        "program": "train.py",
        "project": cfg.logger.wandb.project,
        "name": cfg.name,
        "method": "grid",
        "metric": {
            "name": monitor["metric"],
            "goal": {"max": "maximize", "min": "minimize"}[monitor["mode"]],
        },
        "parameters": {key: {"values": values} for key, values in swept.items()},
        "command": [*COMMAND, *command, "${args_no_hyphens}"],
    }


def _values(override: Override) -> list[Any]:
    """The values of a sweep: numbers as numbers, everything else as Hydra writes it."""
    if not override.is_discrete_sweep() or override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        raise ConfigError(
            f"{override.input_line}: a grid needs values one by one; write them as "
            f"{override.get_key_element()}=A,B,C"
        )
    return [_as_number(text) for text in override.sweep_string_iterator()]


def _as_number(text: str) -> int | float | str:
    """A number if W&B's agent writes it as Hydra does."""
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        if str(number) == text and number - number == 0:  # not inf, not nan
            return number
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lfvit.tracking.sweep", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("overrides", nargs="+", help="as for train.py -m")
    parser.add_argument("--output", type=Path, default=Path("sweep.yaml"))
    arguments = parser.parse_args()
    content = sweep_config(arguments.overrides)
    arguments.output.write_text(yaml.safe_dump(content, sort_keys=False))
    jobs = prod(len(parameter["values"]) for parameter in content["parameters"].values())
    print(f"{jobs} jobs, written to {arguments.output}; next: wandb sweep {arguments.output}")


if __name__ == "__main__":
    entry_point(main)()
