"""A small ViT out of a trained one, as a start for training: fewer blocks and narrower MLPs.

python scripts/prune.py CKPT OUT.safetensors --images DIR --depth 8 --mlp-ratio 1

Blocks go one at a time, each time the one without which the model's answers to the images change
least (Kullback-Leibler divergence). Of an MLP's hidden units those stay whose outputs vary most in
what the MLP adds, and its second layer is fitted anew to what it gave before (least squares).
Use images for training; their labels are not needed.
"""

import argparse
import random
import sys
from pathlib import Path

import torch
from safetensors.torch import save
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn import functional as F

from lfvit.data.augment import eval_transform, normalize
from lfvit.data.images import images_of, read_image
from lfvit.errors import LFViTError
from lfvit.runs.models import load_trained
from lfvit.utils.atomic_io import write_atomic


def keep_blocks(vit: nn.Module, images: Tensor, depth: int) -> list[int]:
    """Leave `depth` blocks in a ViT, which is changed in place.

    Args:
        vit: a one-pass model.
        images: (N, 3, S, S), normalised.
        depth: number of blocks to keep.

    Returns:
        Which blocks of the original those are.
    """
    blocks, kept = list(vit.blocks), list(range(len(vit.blocks)))
    wanted = predict(vit, images).log_softmax(1)

    def divergence(indices: list[int]) -> float:
        vit.blocks = nn.Sequential(*(blocks[i] for i in indices))
        found = predict(vit, images).log_softmax(1)
        return float(F.kl_div(found, wanted, reduction="batchmean", log_target=True))

    while len(kept) > depth:
        kept = min(([i for i in kept if i != dropped] for dropped in kept), key=divergence)
        print(f"blocks {kept}: divergence {divergence(kept):.3f}", flush=True)
    vit.blocks = nn.Sequential(*(blocks[i] for i in kept))
    return kept


def narrow_mlp(vit: nn.Module, images: Tensor, index: int, width: int) -> float:
    """Leave `width` hidden units in the MLP of block `index` of a ViT, which is changed in place.

    Args:
        vit: a one-pass model.
        images: (N, 3, S, S), normalised.
        index: of the block.
        width: number of hidden units to keep.

    Returns:
        Share of the variance of the MLP's output that is lost.
    """
    mlp = vit.blocks[index].mlp
    outputs: list[Tensor] = []
    hook = mlp.act.register_forward_hook(lambda _, __, units: outputs.append(units.flatten(0, 1)))
    predict(vit, images)
    hook.remove()
    units = torch.cat(outputs)
    mean, covariance = units.mean(0), units.T.cov()
    weight = mlp.fc2.weight.detach()
    kept = (covariance.diagonal() * weight.square().sum(0)).topk(width).indices.sort().values
    fit = torch.linalg.lstsq(covariance[kept][:, kept], covariance[kept] @ weight.T, driver="gelsd")
    fc1 = nn.Linear(mlp.fc1.in_features, width, dtype=weight.dtype)
    fc2 = nn.Linear(width, mlp.fc2.out_features, dtype=weight.dtype)
    with torch.no_grad():
        fc1.weight.copy_(mlp.fc1.weight[kept])
        fc1.bias.copy_(mlp.fc1.bias[kept])
        fc2.weight.copy_(fit.solution.T)
        fc2.bias.copy_(mlp.fc2.bias + weight @ mean - fc2.weight @ mean[kept])
        mlp.fc1, mlp.fc2 = fc1, fc2
        difference = weight.clone()
        difference[:, kept] -= fc2.weight
        lost, whole = (((w @ covariance) * w).sum() for w in (difference, weight))
    return float(lost / whole)


@torch.no_grad()
def predict(vit: nn.Module, images: Tensor) -> Tensor:
    """Logits (N, classes)."""
    return torch.cat([vit(batch) for batch in images.split(100)])


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("prune.py", description=__doc__.partition("\n")[0])
    parser.add_argument("ckpt", help="of a one-pass ViT, as train.py method=vit writes it")
    parser.add_argument("out", type=Path, help="a new .safetensors file, for init_from=")
    parser.add_argument("--images", required=True, help="folder of training images")
    parser.add_argument("--count", type=int, default=500, help="how many of them (default: 500)")
    parser.add_argument("--depth", type=int, required=True, help="blocks to keep")
    parser.add_argument("--mlp-ratio", type=float, required=True, help="hidden units / embed_dim")
    args = parser.parse_args(arguments)
    if args.out.suffix != ".safetensors" or args.out.exists():
        parser.error(f"{args.out}: pass the name of a new .safetensors file")
    vit, record = load_trained(args.ckpt)
    if record.method["name"] != "vit" or not all(type(b.mlp) is Mlp for b in vit.blocks):
        parser.error(f"{args.ckpt}: pass the checkpoint of a plain one-pass ViT (method=vit)")
    dim, deepest = vit.embed_dim, len(vit.blocks)
    width, widest = int(dim * args.mlp_ratio), vit.blocks[0].mlp.fc1.out_features
    if not 1 <= args.depth <= deepest:
        parser.error(f"--depth {args.depth}: the model has {deepest} blocks; pass 1 to {deepest}")
    if not 1 <= width <= widest:
        parser.error(
            f"--mlp-ratio {args.mlp_ratio:g}: {width} of the model's {widest} hidden units; pass "
            f"at most {widest / dim:g}"
        )
    if args.count < 1:
        parser.error(f"--count {args.count}: pass 1 or more")
    paths = images_of(args.images, "--images")
    paths = random.Random(0).sample(paths, min(args.count, len(paths)))
    transform = eval_transform(record.preprocessing, record.image_size)
    pixels = torch.stack([torch.as_tensor(transform(read_image(path))) for path in paths])
    images = normalize(pixels, record.preprocessing)
    print(f"{len(images)} images", flush=True)
    keep_blocks(vit, images, args.depth)
    for index in range(args.depth):
        lost = narrow_mlp(vit, images, index, width)
        print(f"block {index}: {lost:.1%} of the variance of its MLP is lost", flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(args.out, save({k: v.contiguous() for k, v in vit.state_dict().items()}))
    scale = getattr(vit.blocks[0].ls1, "gamma", None)  # LayerScale
    sizes = {
        "embed_dim": dim,
        "depth": args.depth,
        "num_heads": vit.blocks[0].attn.num_heads,
        "patch_size": vit.patch_embed.patch_size[0],
        "mlp_ratio": args.mlp_ratio,
        "init_values": "null" if scale is None else 1e-5,
    }
    settings = " ".join(f"backbone.{key}={value}" for key, value in sizes.items())
    print(f"to train it: init_from={args.out} backbone=vit_small_slim {settings}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except LFViTError as error:
        sys.exit(f"error: {error}")
