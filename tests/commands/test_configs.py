"""Every shipped option runs one step of training, evaluation included."""

import pytest
import torch

from conftest import NEEDLE_FAST, ROOT
from lfvit.commands.train import check, train
from lfvit.errors import ConfigError, TrainingError
from lfvit.models import METHODS
from lfvit.models.reduction import REDUCERS
from lfvit.runs.setup import build_model

FAST = ("debug=fast", "callbacks.progress=null", "trainer.accelerator=cpu", "data.num_workers=0")


def options(group):
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


def give_a_start(cfg, folder, num_classes):
    """Weights from a file, where training starts from weights: nothing is downloaded in tests."""
    if cfg.pretrained or cfg.schedule.distill_weight:
        torch.save(build_model(cfg, num_classes).state_dict(), folder / "start.pth")
        cfg.pretrained, cfg.init_from = False, str(folder / "start.pth")


@pytest.mark.parametrize("experiment", options("experiment"))
def test_experiments(composed, photographs, tmp_path, experiment):
    cfg = composed(
        "train",
        f"experiment={experiment}",
        *FAST,
        "data.batch_size=2",
        "trainer=cpu",  # distributed training has a test of its own, in processes of its own
        "compile=false",  # and so has compiling
        f"run_dir={tmp_path}",
        *([] if experiment == "needle" else [f"data.root={photographs}"]),
    )
    give_a_start(cfg, tmp_path, num_classes=3)
    metrics = train(cfg)
    assert metrics["steps"] == 1
    assert 0 <= metrics["val/top1"] <= 100


@pytest.mark.parametrize("reducer", options("reducer"))
def test_an_experiment_leaves_a_chosen_reducer_as_it_is(composed, reducer):
    if reducer != "as_trained":
        cfg = composed("train", "experiment=frequency_deit_small", f"reducer={reducer}")
        assert cfg.reducer == composed("train", f"reducer={reducer}").reducer


@pytest.mark.parametrize("experiment", options("experiment"))
def test_experiments_open_with_their_command(experiment):
    text = (ROOT / "conf" / "experiment" / f"{experiment}.yaml").read_text()
    assert f"# python train.py experiment={experiment}" in text
    assert "xpected time" in text or "Measured" in text


@pytest.mark.parametrize(
    ("group", "option"),
    [
        (group, option)
        for group in (
            "method",
            "backbone",
            "reducer",
            "augment",
            "schedule",
            "optimizer",
            "lr_scheduler",
            "callbacks",
            "logger",
            "trainer",
        )
        for option in options(group)
        if option not in ("as_trained", "gpu", "ddp")  # no GPU is needed for the tests
    ],
)
def test_options_of_every_group(composed, tmp_path, group, option):
    overrides = [
        o for o in NEEDLE_FAST if not o.startswith(("backbone", "callbacks", "lr_scheduler"))
    ]
    if group == "callbacks" and option == "none":
        fast = [o for o in FAST if not o.startswith("callbacks")]
    else:
        fast = list(FAST)
    offline = ["logger.wandb.offline=true"] if option in ("wandb", "many") else []
    large = ["image_size=96"] if group == "backbone" else []
    if "lv_vit" in option and group != "backbone":
        large = ["backbone=lv_vit_micro"]
    if group == "reducer":
        large = ["method=vit"]
        if "deit" in option:  # searched for a ViT of 12 blocks
            large += ["backbone=deit_tiny", "image_size=96"]
    cfg = composed(
        "train", f"{group}={option}", *overrides, *fast, *offline, *large, f"run_dir={tmp_path}"
    )
    give_a_start(cfg, tmp_path, num_classes=6)
    assert train(cfg)["steps"] == 1


@pytest.mark.parametrize("backbone", ["vit_micro", "lv_vit_micro"])
@pytest.mark.parametrize("reducer", ["none", *REDUCERS])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_with_every_reducer_on_every_backbone(
    composed, tmp_path, method, reducer, backbone
):
    small = [o for o in NEEDLE_FAST if o.startswith(("data", "backbone"))]
    settings = [f"method={method}", f"reducer={reducer}", f"backbone={backbone}", *small, *FAST]
    cfg = composed("train", *settings, "logger=none", f"run_dir={tmp_path}")
    drops = reducer != "none" and REDUCERS[reducer].drops
    if drops and (method != "vit" or backbone != "vit_micro"):
        with pytest.raises(ConfigError, match="drops"):
            train(cfg)
    else:
        assert train(cfg)["steps"] == 1


def test_overfitting_works_with_a_published_recipe(composed):
    cfg = composed("train", "experiment=lf_vit_deit_small", "debug=overfit", "trainer.devices=1")
    check(cfg)
    assert (cfg.trainer.max_epochs, cfg.schedule.selection_start) == (100, 0.5)


@pytest.mark.parametrize("debug", ["overfit", "profiler"])
def test_debug_options(composed, tmp_path, debug):
    cfg = composed(
        "train",
        f"debug={debug}",
        *NEEDLE_FAST[:4],
        "callbacks.progress=null",
        "trainer.accelerator=cpu",
        "trainer.max_steps=3",
        f"run_dir={tmp_path}",
    )
    assert train(cfg)["steps"] == 3
    if debug == "profiler":
        assert "run_training_batch" in next(tmp_path.glob("*profile*")).read_text()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.region_size=9"], "region_size=9 does not fit the 7 x 7 grid"),
        (["method.alpha=0"], "alpha=0"),
        (["image_size=230"], "image_size=230 does not divide"),
        (["method.selector=gnca"], "selector='gnca' is unknown; valid"),
        (["schedule.loss=mse"], "schedule.loss='mse'"),
        (["seed=-1"], "seed=-1"),
        (["threshold=high"], "threshold='high'"),
        (["init_from=a.pth", "ckpt_path=b.pth"], "pass one of them"),
        (["trainer.precision=int3"], "trainer: .*int3"),
        (["augment=lv_vit"], r"augment.mix_token=1.0 needs a backbone with an auxiliary head"),
        (["schedule.aux_weight=0.5"], r"schedule.aux_weight=0.5 needs a backbone with an aux"),
        (["data.label_maps=/maps"], r"data.label_maps=/maps needs a backbone with an aux"),
        (["backbone=lv_vit_micro", "schedule.aux_weight=-1"], r"schedule.aux_weight=-1"),
        (["+method.alhpa=1"], "no setting 'alhpa'; valid"),
        (["reducer=evit", "reducer.keep_rate=0"], "reducer.keep_rate=0 is out of range"),
        (["reducer=evit", "reducer.blocks=[6]"], r"reducer.blocks=\[6\] .* from 1 to 5, such as"),
        (["reducer=evit", "reducer.passes=third"], "reducer.passes='third'"),
        (["reducer=evit", "+reducer.r=3"], "reducer=evit has no setting 'r'; valid: keep_rate"),
        (["reducer.name=evti"], "reducer.name='evti' is unknown; valid"),
        (["reducer=dynamic_vit"], "works with method=vit"),
        (["schedule=finetune"], "pass pretrained=true or init_from=FILE"),
    ],
)
def test_wrong_settings_are_refused_before_data_is_read(composed, tmp_path, overrides, message):
    cfg = composed("train", "data=imagefolder", "data.root=/no/such/folder", *overrides)
    cfg.run_dir = str(tmp_path)
    with pytest.raises(ConfigError, match=message):
        train(cfg)


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(composed, tmp_path):
    settings = [*NEEDLE_FAST, "lr_scheduler.warmup_epochs=0", "trainer.max_epochs=4"]
    train(composed("train", *settings, "trainer.max_epochs=1", f"run_dir={tmp_path}"))
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    before = checkpoint.read_bytes()
    cfg = composed(
        "train", *settings, "optimizer.lr=1e30", f"init_from={checkpoint}", f"run_dir={tmp_path}"
    )
    with pytest.raises(TrainingError, match="the loss is nan"):
        train(cfg)
    assert checkpoint.read_bytes() == before


def test_a_run_directory_explains_its_run(trained_run):
    names = {path.name for path in trained_run.iterdir()}
    assert {"config.yaml", "environment.json", "metrics.json", "metrics.csv"} <= names
    assert {p.name for p in (trained_run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
