"""Overrides that need no plus sign."""

import pytest

from lfvit.runs.configs import compose_config, open_groups, quote_path


@pytest.mark.parametrize(
    "override",
    [
        "trainer.max_steps=5",
        "callbacks.checkpoint.save_top_k=2",
        "logger.csv.prefix=a",
        "optimizer.amsgrad=true",
        "lr_scheduler.cycle_limit=2",
    ],
)
def test_arguments_of_classes_need_no_plus(override):
    cfg = compose_config("train", [override])
    key, _, value = override.partition("=")
    group, *rest = key.split(".")
    node = cfg[group]
    for name in rest:
        node = node[name]
    assert str(node).lower() == value


@pytest.mark.parametrize("group", ["method", "backbone", "reducer", "data"])
def test_groups_of_a_checkpoint_are_open(group):
    override = f"{group}.something=1"
    assert open_groups([override], "evaluate") == [f"++{override}"]
    assert open_groups([override], "train") == [override]


def test_paths_are_quoted(tmp_path):
    strange = tmp_path / "a=1, (b)"
    strange.mkdir()
    assert quote_path(f"data.root={strange}") == f"data.root='{strange}'"
    assert quote_path("data.root=x=1") == "data.root=x=1"  # no such file
