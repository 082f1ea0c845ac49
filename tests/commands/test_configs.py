"""Every shipped option composes, builds and opens with what it is; each distinct path trains."""

from functools import reduce

import pytest
import torch
from omegaconf import OmegaConf

from conftest import NEEDLE_FAST, ROOT
from lfvit.commands.evaluate import evaluate
from lfvit.commands.train import build_callbacks, check, train
from lfvit.errors import ConfigError
from lfvit.runs.configs import CONF
from lfvit.runs.models import build_model

FAST = (
    "trainer.fast_dev_run=true",
    "callbacks.progress=null",
    "trainer.accelerator=cpu",
    "data.num_workers=0",
)


def options(group):
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


def give_a_start(cfg, folder, num_classes):
    """Weights from a file, where training starts from weights: nothing is downloaded in tests."""
    if cfg.pretrained or cfg.schedule.distill_weight or cfg.schedule.layer_decay < 1:
        torch.save(build_model(cfg, num_classes).state_dict(), folder / "start.pth")
        cfg.pretrained, cfg.init_from = False, str(folder / "start.pth")


@pytest.mark.parametrize("path", sorted((ROOT / "conf").rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_file_opens_with_what_it_is(path):
    lines = [line for line in path.read_text().splitlines() if line != "# @package _global_"]
    assert lines[0].startswith("# ")
    if path.parent.name == "experiment":
        text = "\n".join(lines)
        assert f"# python train.py experiment={path.stem}" in text
        assert "xpected time" in text or "Measured" in text


def leaves(value, path=()):
    """(path, value) of everything that a file of conf/ states itself."""
    if not isinstance(value, dict):
        yield path, value
    else:
        for key in value.keys() - {"defaults"}:
            yield from leaves(value[key], (*path, key))


OF_TRAINING = {p.name for p in (ROOT / "conf").glob("*/")} - {"hydra", "scale", "artifact"}


@pytest.mark.parametrize("group", sorted(OF_TRAINING))
def test_what_a_chosen_option_says_is_so(composed, group):
    """No default of another group takes its place, as one of trainer did with a schedule's."""
    for option in options(group):
        file = ROOT / "conf" / group / f"{option}.yaml"
        everywhere = "# @package _global_" in file.read_text()
        cfg = OmegaConf.to_container(composed("train", f"{group}={option}"))
        for path, value in leaves(OmegaConf.to_container(OmegaConf.load(file))):
            found = reduce(dict.__getitem__, path, cfg if everywhere else cfg[group])
            assert found == value, f"{group}={option} says {'.'.join(path)}={value}, not {found}"


@pytest.mark.parametrize(
    ("group", "option"),
    [
        (group, option)
        for group in ("experiment", "backbone", "augment", "schedule", "callbacks")
        for option in options(group)
    ],
)
def test_every_option_builds(composed, tmp_path, group, option):
    """Model, losses, optimizer, schedule and callbacks; what sets them apart trains elsewhere."""
    more = {"experiment": ["pretrained=false"], "backbone": ["image_size=224"]}.get(group, [])
    if "lv_vit" in option and group in ("augment", "schedule"):
        more = ["backbone=lv_vit_micro"]
    cfg = composed("train", f"{group}={option}", *more, f"run_dir={tmp_path}")
    torch.save({}, tmp_path / "start.pth")
    cfg.init_from = str(tmp_path / "start.pth")
    if "root" in cfg.data:
        cfg.data.root = "photographs"
    with torch.device("meta"):
        check(cfg)
    build_callbacks(cfg)


@pytest.mark.parametrize(
    ("experiment", "backbone"),
    [
        ("needle", "vit_micro"),
        ("lf_vit_deit_small", "vit_micro"),
        ("cf_vit_lv_vit_small", "lv_vit_micro"),
        ("frequency_deit_small", "vit_micro backbone.depth=12"),
        ("finetune", "vit_micro"),
    ],
)
def test_experiments_train(composed, photographs, tmp_path, experiment, backbone):
    """One of each kind: generated images, two passes, token labels, a reducer with its teacher."""
    small = (*f"backbone={backbone}".split(), "image_size=112", "data.batch_size=2", "trainer=cpu")
    data = () if experiment == "needle" else (f"data.root={photographs}",)
    cfg = composed("train", f"experiment={experiment}", *small, *data, *FAST, f"run_dir={tmp_path}")
    give_a_start(cfg, tmp_path, num_classes=3)
    metrics = train(cfg)
    assert metrics["steps"] == 1
    assert 0 <= metrics["val/top1"] <= 100


@pytest.mark.parametrize(
    "overrides",
    [
        ["callbacks=null", "logger=null"],
        ["callbacks.ema=null", "callbacks.nonfinite=null", "callbacks.last=null"],
        ["callbacks.checkpoint.save_weights_only=true", "callbacks.ema.update_every_n_steps=2"],
        ["logger.csv=null", "trainer.limit_train_batches=2", "trainer.max_steps=2"],
        ["debug=overfit", "trainer.max_steps=2"],
        ["trainer.profiler=simple", "trainer.limit_train_batches=2", "trainer.max_epochs=1"],
    ],
    ids=" ".join,
)
def test_overrides_as_typed(composed, tmp_path, overrides):
    kept = [
        o for o in NEEDLE_FAST if not o.startswith("callbacks") or overrides[0] != "callbacks=null"
    ]
    metrics = train(composed("train", *kept, *overrides, f"run_dir={tmp_path}"))
    assert metrics["steps"] == (2 if "trainer" in str(overrides) else 8)
    averaged = "callbacks=null" not in overrides and "callbacks.ema=null" not in overrides
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert last.exists() == (averaged or "debug=overfit" in overrides)
    if last.exists() and "debug=overfit" not in overrides:
        assert ("current_model_state" in torch.load(last, weights_only=True)) == averaged


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=4294967296"], "seed=4294967296 is not valid"),
        (["trainer.limit_train_batches=0"], "trainer.limit_train_batches=0 leaves nothing"),
        (["trainer.limit_val_batches=0"], "limit_val_batches=0 .* callbacks.checkpoint=null"),
        (["callbacks.checkpoint.monitor=val/acc"], "checkpoint.monitor='val/acc' is unknown; "),
        (
            ["backbone.timm=deit_small_patch16_224.x", "method=vit"],
            "Invalid pretrained tag .*fb_in",
        ),
        (["init_from=a.pth", "ckpt_path=b.pth"], "pass one of them"),
        (["trainer.precision=int3"], "trainer: .*int3"),
        (["trainer.limit_train_batche=2"], r"trainer\.limit_train_batche .*limit_train_batches"),
        (["optimizer.lr=-1"], "optimizer: Invalid learning rate"),
        (["optimizer.momentun=0.9"], "optimizer has no setting 'momentun'"),
        (["lr_scheduler.decay=0.9"], "lr_scheduler has no setting 'decay'; did you mean"),
        (["callbacks.last.every=2"], "callbacks.last has no setting 'every'; "),
        (["augment=lv_vit"], r"augment.mix_token=1.0 needs a backbone with an auxiliary head"),
        (["schedule=finetune"], "pass pretrained=true or init_from=FILE"),
        (["experiment=finetune"], "layer_decay=0.75 .* random; pass pretrained=true or init_from"),
        (["schedule.frozen=[pos_embed]"], r"frozen=\['pos_embed'\] .* schedule.frozen=\[\]$"),
    ],
)
def test_wrong_settings_are_refused_before_data_is_read(composed, tmp_path, overrides, message):
    data = ("data=imagefolder", "data.root=/no/such/folder", f"run_dir={tmp_path}")
    with pytest.raises(Exception, match=message):
        train(composed("train", *data, *overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.val_check_interval=5"], "val_check_interval=5 is longer .* has 4 batches"),
        (["trainer.limit_train_batches=0.1"], "limit_train_batches=0.1 leaves none of the 4"),
        (["trainer.strategy=nosuch"], "trainer: .*strategy='nosuch'"),
        (["trainer.strategy=fsdp"], "trainer: .*requires a GPU"),
        (["run_dir=/dev/null/run"], "run_dir=/dev/null/run cannot be made: "),
    ],
)
def test_what_only_the_data_or_the_machine_can_tell(composed, tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        train(composed("train", *NEEDLE_FAST, f"run_dir={tmp_path}", *overrides))


@pytest.mark.parametrize("group", sorted(p.name for p in CONF.iterdir() if p.is_dir()))
def test_no_group_takes_an_option_that_does_not_exist(composed, group):
    command = "reproduce" if group in ("scale", "artifact") else "train"
    with pytest.raises(ConfigError, match=f"{group}/nosuch"):
        composed(command, f"{group}=nosuch")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+augment=none", "augment.label_smoothing has no effect"),
        ("seed=3", "seed=3 has no effect"),
        ("augment.mixup=0.3", "mixup"),
        ("method=null", None),
        ("augment.crop_pct=0.3", "trained and validated with 0.875"),
    ],
)
def test_what_has_no_effect_on_an_evaluation_is_refused(
    composed, trained_run, tmp_path, override, message
):
    weights = f"ckpt_path={trained_run / 'checkpoints' / 'last.ckpt'}"
    settings = (weights, "data.num_workers=0", "trainer.accelerator=cpu", f"run_dir={tmp_path}")
    if message is None:
        assert evaluate(composed("evaluate", *settings, override)).images == 16
    else:
        with pytest.raises(Exception, match=message):
            evaluate(composed("evaluate", *settings, override))
