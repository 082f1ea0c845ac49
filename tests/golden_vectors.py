"""Outputs of the papers' released implementations on small random models, and their inputs."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def load(name: str) -> dict:
    return json.loads((Path(__file__).parent / "golden" / f"{name}.json").read_text())


def weights(shapes: list, seed: int) -> dict[str, Tensor]:
    """The random weights of a golden file, under the released names."""
    rs = np.random.RandomState(seed)
    found = {}
    for name, shape in shapes:
        if name.endswith("num_batches_tracked"):
            found[name] = torch.tensor(0)
            continue
        value = np.float32(rs.standard_normal(shape)) * np.float32(0.15)
        if len(shape) == 1 and name.endswith("weight"):  # of a norm
            value = value + np.float32(1)
        if name.endswith("running_var"):
            value = np.abs(value) + np.float32(1)
        found[name] = torch.from_numpy(np.asarray(value, dtype=np.float32))
    return found


def images(batch: int, side: int, seed: int) -> Tensor:
    """Noise whose strength differs from cell to cell, so that there is somewhere to look."""
    rs = np.random.RandomState(seed)
    noise = np.float32(rs.standard_normal((batch, 3, side, side)))
    strength = rs.uniform(0.1, 2.5, (batch, 1, side // 32, side // 32))
    strength = np.float32(np.kron(strength, np.ones((1, 1, 32, 32))))
    return torch.from_numpy(np.float32(noise * strength))


def released_shapes(*, D: int, depth: int, classes: int, grid: int, patch: int = 16) -> list:
    """Names and shapes of a released LF-ViT file of this size."""
    shapes = [
        ("cls_token", (1, 1, D)),
        ("pos_embed_list.0", (1, 1 + grid**2, D)),
        ("pos_embed_list.1", (1, 1 + 4 * grid**2, D)),
        ("patch_embed.proj.weight", (D, 3, patch, patch)),
        ("patch_embed.proj.bias", (D,)),
    ]
    for block in range(depth):
        for layer, rows, columns in (
            ("attn.qkv", 3 * D, D),
            ("attn.proj", D, D),
            ("mlp.fc1", 4 * D, D),
            ("mlp.fc2", D, 4 * D),
        ):
            shapes.append((f"blocks.{block}.{layer}.weight", (rows, columns)))
            shapes.append((f"blocks.{block}.{layer}.bias", (rows,)))
        for norm in ("norm1", "norm2"):
            shapes += [(f"blocks.{block}.{norm}.{kind}", (D,)) for kind in ("weight", "bias")]
    for norm in ("norm", "reuse_block.0"):
        shapes += [(f"{norm}.{kind}", (D,)) for kind in ("weight", "bias")]
    for layer, rows, columns in (
        ("reuse_block.1.fc1", 4 * D, D),
        ("reuse_block.1.fc2", D, 4 * D),
        ("head", classes, D),
    ):
        shapes += [(f"{layer}.weight", (rows, columns)), (f"{layer}.bias", (rows,))]
    return shapes
