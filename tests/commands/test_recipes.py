"""Each published experiment, line by line: what `train.py experiment=NAME --cfg job` composes."""

import pytest
from omegaconf import OmegaConf

DEIT = {  # LF-ViT and CF-ViT train with DeiT's recipe (Touvron et al. 2021)
    "image_size": 224,
    "data.batch_size": 128,  # on 8 GPUs: 1024
    "optimizer._target_": "torch.optim.AdamW",
    "optimizer.lr": 5e-4,
    "optimizer.weight_decay": 0.05,
    "lr_scheduler.sched": "cosine",
    "lr_scheduler.warmup_epochs": 5,
    "lr_scheduler.warmup_prefix": False,
    "lr_scheduler.warmup_lr": 1e-6,
    "lr_scheduler.min_lr": 1e-5,
    "callbacks.ema.decay": 0.99996,
    "callbacks.ema.warmup": False,
    "trainer.gradient_clip_val": None,
    "trainer.accumulate_grad_batches": 1,
    "trainer.max_epochs": 300,
    "schedule.lr_batch": 512,
    "schedule.layer_decay": 1.0,
    "schedule.second_start": 0,
    "schedule.drop_path_rate": 0.1,
    "schedule.loss": "ce_kl",
    "schedule.distill_weight": 0.0,
    "schedule.backbone_lr": 1.0,
    "schedule.frozen": [],
    "augment.crop_scale": [0.08, 1.0],
    "augment.hflip": 0.5,
    "augment.auto_augment": "rand-m9-mstd0.5-inc1",
    "augment.interpolation": "bicubic",
    "augment.erasing": 0.25,
    "augment.mixup": 0.8,
    "augment.cutmix": 1.0,
    "augment.mix_prob": 1.0,
    "augment.mix_switch": 0.5,
    "augment.label_smoothing": 0.1,
    "augment.repeats": 3,
    "augment.crop_pct": 0.875,
    "pretrained": False,
}
LF_VIT = DEIT | {
    "trainer.max_epochs": 350,
    "schedule.selection_start": 230,
    "method.name": "lf_vit",
    "method.region_size": None,  # 5 on 7 x 7 cells, 8 on 9 x 9
    "method.alpha": 0.88,
    "method.beta": 0.99,
    "method.gca_start": 3,
    "method.selector": "ngca",
    "method.reuse": "mlp",
    "method.background": True,
    "backbone.timm": "deit_small_patch16_224",
}
CF_VIT = LF_VIT | {
    "trainer.max_epochs": 300,
    "schedule.selection_start": 200,
    "method.name": "cf_vit",
    "method.alpha": 0.5,
    "method.selector": "gca",
}
RECIPES = {
    "lf_vit_deit_small": LF_VIT,
    "cf_vit_deit_small": CF_VIT,
    "cf_vit_lv_vit_small": {key: CF_VIT[key] for key in CF_VIT if key != "backbone.timm"}
    | {
        "trainer.max_epochs": 310,
        "lr_scheduler.cooldown_epochs": 10,
        "optimizer.lr": 8e-4,  # 1.6e-3 for 1024 images
        "callbacks.ema.decay": 0.99992,
        "schedule.selection_start": 201,
        "schedule.aux_weight": 1.0,
        "augment.interpolation": "random",
        "augment.color_jitter": 0.4,
        "augment.mixup": 0.0,
        "augment.cutmix": 0.0,
        "augment.mix_token": 1.0,
        "augment.repeats": 1,
        "augment.crop_pct": 0.9,
        "backbone.family": "lv_vit",
        "backbone.embed_dim": 384,
        "backbone.depth": 16,
        "backbone.num_heads": 6,
    },
    "deit_small": DEIT | {"method.name": "vit", "reducer.name": "none"},
    "evit_deit_small": DEIT
    | {
        "reducer.name": "evit",
        "reducer.keep_rate": 0.7,
        "reducer.fuse_token": True,
        "reducer.blocks": None,  # 4, 7, 10
        "reducer.shrink_start": 10,
        "reducer.shrink_epochs": 100,
    },
    "dynamic_vit_deit_small": DEIT
    | {
        "pretrained": True,
        "trainer.max_epochs": 30,
        "optimizer.lr": 1e-3,
        "schedule.lr_batch": 1024,
        "lr_scheduler.warmup_prefix": True,
        "lr_scheduler.warmup_lr": 0.0,
        "lr_scheduler.min_lr": 1e-6,
        "callbacks.ema.decay": 0.9999,
        "schedule.drop_path_rate": 0.0,
        "schedule.distill_weight": 0.5,
        "schedule.backbone_lr": 0.01,
        "schedule.backbone_start": 5,
        "schedule.frozen": ["cls_token", "pos_embed"],
        "augment.repeats": 1,
        "reducer.name": "dynamic_vit",
        "reducer.keep_rate": 0.7,
        "reducer.ratio_weight": 2.0,
        "reducer.token_weight": 0.5,
    },
    "frequency_deit_small": DEIT
    | {
        "pretrained": True,
        "trainer.max_epochs": 30,
        "optimizer.lr": 1e-4,
        "optimizer.weight_decay": 2e-5,
        "schedule.lr_batch": 1024,
        "lr_scheduler.warmup_epochs": 0,
        "callbacks.ema.decay": 0.9998,
        "schedule.drop_path_rate": 0.0,
        "schedule.distill_weight": 1.0,
        "reducer.name": "frequency",
        "reducer.removed": 0.3,
        "reducer.windows": [2, 2, 1],
    },
}


@pytest.mark.parametrize("experiment", RECIPES)
def test_an_experiment_is_the_published_recipe(composed, experiment):
    cfg = composed("train", f"experiment={experiment}", "data.root=IMAGENET")
    found = {key: OmegaConf.select(cfg, key) for key in RECIPES[experiment]}
    found = {k: OmegaConf.to_object(v) if OmegaConf.is_config(v) else v for k, v in found.items()}
    assert found == RECIPES[experiment]
