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
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from lfvit.data.augment import eval_transform, normalize
from lfvit.data.images import images_of, read_image
from lfvit.errors import LFViTError
from lfvit.runs.models import load_trained


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
    fc1, fc2 = nn.Linear(mlp.fc1.in_features, width), nn.Linear(width, mlp.fc2.out_features)
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
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("ckpt", help="of a one-pass ViT, trained by train.py method=vit")
    parser.add_argument("out", type=Path, help="file to write, .safetensors, for init_from=")
    parser.add_argument("--images", required=True, help="folder of training images")
    parser.add_argument("--count", type=int, default=500, help="how many of them (default: 500)")
    parser.add_argument("--depth", type=int, required=True, help="blocks to keep")
    parser.add_argument("--mlp-ratio", type=float, required=True, help="hidden units / embed_dim")
    args = parser.parse_args(arguments)
    vit, record = load_trained(args.ckpt)
    width = int(vit.embed_dim * args.mlp_ratio) if hasattr(vit, "embed_dim") else 0
    if record.method["name"] != "vit" or not hasattr(vit, "blocks"):
        parser.error(f"{args.ckpt} is a {record.method['name']}; pass a one-pass ViT (method=vit)")
    if not 1 <= args.depth <= len(vit.blocks):
        parser.error(f"--depth {args.depth}: the model has {len(vit.blocks)} blocks")
    hidden = min(block.mlp.fc1.out_features for block in vit.blocks)
    if not 1 <= width <= hidden:
        parser.error(f"--mlp-ratio {args.mlp_ratio}: the model has {hidden / vit.embed_dim:g}")
    if args.out.suffix != ".safetensors" or args.out.exists():
        parser.error(f"{args.out}: pass the name of a new .safetensors file")
    paths = images_of(args.images, "--images")
    paths = random.Random(0).sample(paths, min(args.count, len(paths)))
    transform = eval_transform(record.preprocessing, record.image_size)
    pixels = torch.stack([torch.as_tensor(transform(read_image(path))) for path in paths])
    images = normalize(pixels, record.preprocessing)
    keep_blocks(vit, images, args.depth)
    for index in range(args.depth):
        lost = narrow_mlp(vit, images, index, width)
        print(f"block {index}: {lost:.1%} of the variance of its MLP is lost", flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in vit.state_dict().items()}, args.out)
    print(
        f"written to {args.out}; to train it: init_from={args.out} backbone.depth={args.depth} "
        f"backbone.mlp_ratio={args.mlp_ratio:g}"
    )


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except LFViTError as error:
        sys.exit(f"error: {error}")
