"""The models by name in timm: built, trained and validated as timm's own scripts do."""

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import AverageMeter, ModelEmaV3, accuracy

import conftest
import lfvit
from conftest import run_python
from lfvit.errors import ConfigError
from lfvit.models.timm_model import TimmTwoPassViT
from lfvit.models.timm_names import NAMES
from lfvit.training.losses import pass_losses

TINY = {"num_classes": 5, "img_size": 64, "gca_start": 2}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return timm.create_model("lf_vit_tiny_patch16_224", threshold=0.3, region_size=1, **TINY)


def batches(count=3, size=4):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        images = torch.randn(size, 3, 64, 64, generator=generator)
        yield images, torch.randint(5, (size,), generator=generator)


def test_importing_the_package_registers_the_names():
    """Also before timm is imported; and the first call of a new model may be a compiled one."""
    program = (
        "import lfvit, timm, torch\n"
        "print(len(timm.list_models('[lc]f_vit_*')))\n"
        f"model = lfvit.create_model('lf_vit', backbone={conftest.TINY}, image_size=112).eval()\n"
        "compiled = torch.compile(model, backend='eager', fullgraph=True)\n"
        "print(len(compiled(torch.zeros(1, 3, 112, 112)).logits))\n"
    )
    assert run_python("-W", "ignore", "-c", program).stdout.split() == ["12", "2"]


def test_names_and_their_configurations():
    assert set(timm.list_models(["lf_vit*", "cf_vit*"])) == set(NAMES)
    model = timm.create_model("lf_vit_small_patch16_224", region_size=4, threshold=0.7)
    assert (model.region_size, model.threshold, model.selector) == (4, 0.7, "ngca")
    config = resolve_data_config({}, model=model)
    assert (config["input_size"], config["crop_pct"]) == ((3, 224, 224), 0.9)
    model = timm.create_model("cf_vit_tiny_patch16_288")
    assert (model.image_size, model.selector, model.alpha) == (288, "gca", 0.5)
    with pytest.raises(ConfigError, match="method.region_size=9 does not fit"):
        timm.create_model("lf_vit_small_patch16_224", region_size=9)
    with pytest.raises(ConfigError, match="images are square, of RGB"):
        timm.create_model("lf_vit_small_patch16_224", in_chans=1)


def test_what_timm_s_scripts_pass():
    """drop_rate is 0 where it is not given; what would have no effect is refused."""
    passed = {"drop_rate": 0.0, "features_only": False, "global_pool": "token"}
    assert timm.create_model("lf_vit_tiny_patch16_224", **passed, **TINY).num_classes == 5
    for name, value in {"drop_rate": 0.1, "features_only": True, "threshold": -1}.items():
        with pytest.raises(ConfigError, match=f"{name}={value} is .*valid: "):
            timm.create_model("lf_vit_tiny_patch16_224", **{name: value}, **TINY)


def test_evaluation_stops_early(model):
    images, _ = next(batches())
    model.eval()
    expected = model.infer(images, 0.3)
    torch.testing.assert_close(model(images), expected.logits)
    model.threshold = 0
    torch.testing.assert_close(model(images), model.first_pass(images).logits)
    model.reset_classifier(7)
    assert model.get_classifier().out_features == model.num_classes == 7
    assert model(images).shape == (4, 7)


def test_a_loss_of_the_logits_trains_both_passes(model):
    """The gradient is that of CE(last) + KL(last || first), whatever computes the first part."""
    images, targets = next(batches())
    model.train()
    F.cross_entropy(model(images), targets).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    both = super(TimmTwoPassViT, model).forward(images)
    sum(pass_losses(both.logits, targets)).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)
    assert found["first_pos_embed"].abs().sum() > 0


def test_a_training_and_validation_loop_of_timm(model):
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, layer_decay=0.7)
    ema, loss_fn = ModelEmaV3(model, decay=0.5), LabelSmoothingCrossEntropy(0.1)
    before = model.first_pos_embed.detach().clone()
    model.train()
    for images, targets in batches():
        optimizer.zero_grad()
        loss_fn(model(images), targets).backward()
        optimizer.step()
        ema.update(model)
    assert not torch.equal(before, model.first_pos_embed)
    top1, losses = AverageMeter(), AverageMeter()
    ema.eval()
    with torch.no_grad():
        for images, targets in batches():
            output = ema.module(images)
            losses.update(F.cross_entropy(output, targets).item(), len(images))
            top1.update(accuracy(output, targets, topk=(1,))[0].item(), len(images))
    assert top1.count == losses.count == 12
    assert 0 <= top1.avg <= 100


def test_weights_carry_over(model):
    sizes = {"image_size": 64, "num_classes": 5, "gca_start": 2, "region_size": 1}
    same = lfvit.create_model("lf_vit", backbone="deit_tiny_patch16_224", **sizes)
    lfvit.load_checkpoint(same, model.state_dict())
    images, _ = next(batches())
    torch.testing.assert_close(same.eval().infer(images, 0.3).logits, model.eval()(images))
