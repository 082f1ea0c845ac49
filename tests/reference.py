"""Both methods once more, slowly: image by image, in loops and float64, from the papers' text.

Nothing here is shared with the package; it is what the fast path is compared with.
"""

import math
from fractions import Fraction

import torch
from torch import Tensor


def layer_norm(x: Tensor, w: dict[str, Tensor], name: str, eps: float = 1e-6) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


class Nothing:
    """Reduces nothing; the reducers of `reference_reduction` override what they change."""

    w: dict[str, Tensor]  # all weights
    prefix: int  # tokens in front of the patch tokens
    positions: Tensor  # of the patches, (n, D)
    places: list[tuple[Fraction, Fraction]]  # row and column of their centres, from 0 to 1
    values: Tensor  # of the block's tokens, (H, N, d)

    def start(self, n: int) -> None:
        """Called with the number of patches before block 1."""
        self.patches = [[i] for i in range(n)]  # which patches each patch token stands for

    def before(self, block: int, tokens: Tensor) -> Tensor:
        return tokens

    def weights(self, logits: Tensor) -> Tensor:
        """The attention, (H, N, N), from its logits."""
        return logits.softmax(-1)

    def attention(self, block: int, logits: Tensor) -> Tensor:
        """What mixes the values, (H, N, N), from the attention logits."""
        return self.weights(logits)

    def between(self, block: int, tokens: Tensor, logits: Tensor, keys: Tensor) -> Tensor:
        """Between attention and MLP; `keys` are (H, N, d)."""
        return tokens

    def finish(self, tokens: Tensor) -> Tensor:
        """After the last block."""
        return tokens

    def average(self, tokens: Tensor) -> Tensor:
        """Average pooling over the patches, each as the token that stands for it."""
        patches = torch.tensor([len(p) for p in self.patches], dtype=torch.float64)
        return (patches[:, None] * tokens[self.prefix :]).sum(0) / patches.sum()


def run_blocks(
    tokens: Tensor, w: dict, heads: int, reducer: Nothing, prefix: int = 1, eps: float = 1e-6
) -> tuple[Tensor, list[Tensor]]:
    """All blocks on (N, D); also the class attention (n,) of every block to the n first patches.

    A token's class attention is shared among its patches, where tokens stand for some. Blocks are
    counted from 1.
    """
    n, D = len(tokens) - prefix, tokens.shape[1]
    reducer.w, reducer.prefix = w, prefix
    reducer.start(n)
    rows = []
    for block in range(1, 1 + sum(key.endswith(".norm1.weight") for key in w)):
        name = f"blocks.{block - 1}"
        tokens = reducer.before(block, tokens)
        qkv = linear(layer_norm(tokens, w, f"{name}.norm1", eps), w, f"{name}.attn.qkv")
        q, k, v = qkv.reshape(len(tokens), 3, heads, D // heads).permute(1, 2, 0, 3)
        if f"{name}.attn.q_norm.weight" in w:
            q = layer_norm(q, w, f"{name}.attn.q_norm")
            k = layer_norm(k, w, f"{name}.attn.k_norm")
        logits = torch.stack([q[h] @ k[h].T / math.sqrt(D // heads) for h in range(heads)])
        reducer.values, weights = v, reducer.weights(logits)
        mixing = reducer.attention(block, logits)
        out = torch.cat([mixing[h] @ v[h] for h in range(heads)], dim=1)
        rows.append(torch.zeros(n, dtype=tokens.dtype))
        stand = len(reducer.patches) == len(tokens) - prefix
        for token, members in enumerate(reducer.patches if stand else ()):
            for patch in members:
                rows[-1][patch] = weights[:, 0, prefix + token].mean() / len(members)
        scale = w.get(f"{name}.ls1.gamma", 1.0)
        tokens = tokens + scale * linear(out, w, f"{name}.attn.proj")
        tokens = reducer.between(block, tokens, logits, k)
        hidden = layer_norm(tokens, w, f"{name}.norm2", eps)
        hidden = gelu(linear(hidden, w, f"{name}.mlp.fc1"))
        tokens = tokens + w.get(f"{name}.ls2.gamma", 1.0) * linear(hidden, w, f"{name}.mlp.fc2")
    return reducer.finish(tokens), rows


def centres(rows: int, columns: int) -> list[tuple[Fraction, Fraction]]:
    """Row and column of the cells of a grid, row-major, from 0 to 1."""
    steps = [[Fraction(2 * i + 1, 2 * side) for i in range(side)] for side in (rows, columns)]
    return [(row, column) for row in steps[0] for column in steps[1]]


def half(image: Tensor) -> Tensor:
    """Bilinear, align_corners=True, pixel by pixel: (3, S, S) -> (3, S/2, S/2)."""
    S = image.shape[-1]
    place = torch.linspace(0, S - 1, S // 2, dtype=torch.float64)
    low = place.floor().long().clamp(max=S - 2)
    share = (place - low).to(image)
    rows = image[:, low] * (1 - share)[:, None] + image[:, low + 1] * share[:, None]
    return rows[:, :, low] * (1 - share) + rows[:, :, low + 1] * share


def embed(image: Tensor, w: dict, P: int) -> Tensor:
    """Every patch by hand: (3, H, W) -> (H/P * W/P, D)."""
    kernel, tokens = w["patch_embed.proj.weight"], []
    for r in range(image.shape[1] // P):
        for c in range(image.shape[2] // P):
            patch = image[:, r * P : (r + 1) * P, c * P : (c + 1) * P]
            tokens.append((kernel * patch).sum((1, 2, 3)) + w["patch_embed.proj.bias"])
    return torch.stack(tokens)


def best_window(gca: Tensor, m: int) -> tuple[int, int]:
    """Eq. 9 and 10 of LF-ViT."""
    g = len(gca)
    sums = {
        (r, c): sum(gca[r + i, c + j].item() for i in range(m) for j in range(m))
        for r in range(g - m + 1)
        for c in range(g - m + 1)
    }
    return max(sums, key=lambda corner: sums[corner])


def keep_in_window(gca: Tensor, corner: tuple[int, int], m: int, alpha: float) -> list[int]:
    g = len(gca)
    cells = [(corner[0] + i) * g + corner[1] + j for i in range(m) for j in range(m)]
    ranked = sorted(cells, key=lambda cell: -gca.flatten()[cell].item())
    return sorted(ranked[: math.ceil(round(alpha * m * m, 9))])


def keep_anywhere(scores: Tensor, alpha: float) -> list[int]:
    ranked = sorted(range(scores.numel()), key=lambda cell: -scores.flatten()[cell].item())
    return sorted(ranked[: math.ceil(round(alpha * scores.numel(), 9))])


def two_pass(
    image: Tensor,
    weights: dict[str, Tensor],
    *,
    patch_size: int,
    heads: int,
    region_size: int,
    alpha: float,
    beta: float,
    selector: str = "ngca",
    gca_start: int = 3,
    reuse: str = "mlp",
    background: bool = True,
    reducers: tuple = (None, None),
) -> dict:
    """One image (3, S, S) through both passes; weights under the released names.

    `reducers` of `reference_reduction` work inside the first and the second pass.
    """
    w = {key: value.double() for key, value in weights.items()}
    image = image.double()
    first_positions, second_positions = w["pos_embed_list.0"][0], w["pos_embed_list.1"][0]

    coarse = embed(half(image), w, patch_size) + first_positions[1:]
    g = math.isqrt(len(coarse))
    class_token = w["cls_token"][0] + first_positions[:1]
    in_first, in_second = (Nothing() if r is None else r for r in reducers)
    in_first.positions, in_first.places = first_positions[1:], centres(g, g)
    tokens, rows = run_blocks(torch.cat([class_token, coarse]), w, heads, in_first)
    tokens = layer_norm(tokens, w, "norm")
    # every cell is what the token that stands for it has become
    found = {p: 1 + t for t, members in enumerate(in_first.patches) for p in members}
    tokens = tokens[[0] + [found[cell] for cell in range(g * g)]]
    average = torch.zeros(g * g, dtype=torch.float64)
    for row in rows[gca_start:]:
        average = beta * average + (1 - beta) * row
    gca = average.reshape(g, g)

    corner = best_window(gca, region_size) if selector == "ngca" else None
    if corner is not None:
        cells = keep_in_window(gca, corner, region_size, alpha)
    else:
        scores = {"gca": gca, "negative_gca": -gca, "last_class_attention": rows[-1]}[selector]
        cells = keep_anywhere(scores, alpha)
    hidden = gelu(linear(layer_norm(tokens, w, "reuse_block.0"), w, "reuse_block.1.fc1"))
    reused = linear(hidden, w, "reuse_block.1.fc2")
    if reuse == "none":
        reused = torch.zeros_like(reused)
    all_fine = embed(image, w, patch_size)
    fine_indices, fine = [], []
    for position in range(4 * g * g):
        row, column = divmod(position, 2 * g)
        cell = (row // 2) * g + column // 2
        if cell in cells:
            token = all_fine[position] + second_positions[1 + position]
            fine_indices.append(position)
            fine.append(token + reused[1 + cell])
    rest = []
    for cell in range(g * g):
        if cell not in cells and background:
            here = reuse in ("with_uninformative", "everywhere")
            rest.append(coarse[cell] + (reused[1 + cell] if here else 0))
    class_token = w["cls_token"][0, 0] + second_positions[0]
    if reuse in ("with_class_token", "everywhere"):
        class_token = class_token + reused[0]
    left = [cell for cell in range(g * g) if cell not in cells] if background else []
    in_second.positions = torch.stack(
        [second_positions[1 + p] for p in fine_indices] + [first_positions[1 + c] for c in left]
    )
    fine_places, coarse_places = centres(2 * g, 2 * g), centres(g, g)
    in_second.places = [fine_places[p] for p in fine_indices] + [coarse_places[c] for c in left]
    out, _ = run_blocks(torch.stack([class_token, *fine, *rest]), w, heads, in_second)
    return {
        "first_logits": linear(tokens[0], w, "head"),
        "second_logits": linear(layer_norm(out[0], w, "norm"), w, "head"),
        "gca": gca,
        "region": None if corner is None else list(corner),
        "fine_indices": fine_indices,
    }


def mix_box(grid: int, kept: float, row: int, column: int) -> tuple[int, int, int, int]:
    """Mix-token's box on grid x grid cells: top, bottom, left, right (LV-ViT's released code).

    Its area should be 1 - kept; the sides are rounded down twice, and the box is cut at the edges.
    """
    side = math.floor(grid * math.sqrt(1 - kept)) // 2
    edges = [row - side, row + side, column - side, column + side]
    return tuple(min(max(edge, 0), grid) for edge in edges)


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Of one image or token, both (C,)."""
    log_probabilities = logits - logits.exp().sum().log()
    return -sum(label[c] * log_probabilities[c] for c in range(len(label)))


def smoothed(label: Tensor, smoothing: float) -> Tensor:
    """Smoothing of a dense label (C,) as in LV-ViT's released code: it adds up to 1 + s / C."""
    off = smoothing / len(label)
    return torch.stack([p * (1 - smoothing + off) + off for p in label])


def lv_vit_loss(
    class_logits: list[Tensor],
    token_logits: Tensor,
    labels: Tensor,
    patch_labels: Tensor,
    box: tuple[int, int, int, int],
    weight: float,
    fine_indices: Tensor | None = None,
    cells: Tensor | None = None,
) -> Tensor:
    """The loss of CF-ViT on LV-ViT, patch by patch, as its released code computes it.

    Every patch has the logits of its token, its own or the coarse one that covers it; where tokens
    were mixed, they are put back into their own image, and learn its label.

    Args:
        class_logits: (B, C) of the class token in each pass.
        token_logits: (B, N, C) of the last pass's patch tokens.
        labels: (B, C) of the images, patch_labels: (B, G*G, C), none of them mixed.
        box: top, bottom, left, right of the mixed patches.
        weight: of the patches' loss.
        fine_indices: (B, 4k) patches of the first 4k tokens, cells: (B, g*g - k) coarse cells of
            the others; None where the tokens are all patches, in order.
    """
    last, (B, P, C) = class_logits[-1], patch_labels.shape
    G = math.isqrt(P)
    top, bottom, left, right = box
    share = (bottom - top) * (right - left) / P
    loss = 0.0
    for b in range(B):
        image = (1 - share) * labels[b] + share * labels[B - 1 - b]
        loss = loss + cross_entropy(last[b], image) / B
        for earlier in class_logits[:-1]:
            p1, p2 = earlier[b].softmax(0), last[b].detach().softmax(0)
            loss = loss + sum(p2[c] * (p2[c].log() - p1[c].log()) for c in range(C)) / B
    token_of = [list(range(P)) for _ in range(B)]
    if fine_indices is not None:
        for b in range(B):
            for token, patch in enumerate(fine_indices[b].tolist()):
                token_of[b][patch] = token
            for token, cell in enumerate(cells[b].tolist(), start=fine_indices.shape[1]):
                row, column = divmod(cell, G // 2)
                for patch in (2 * row * G + 2 * column + i for i in (0, 1, G, G + 1)):
                    token_of[b][patch] = token
    for b in range(B):
        for patch in range(P):
            row, column = divmod(patch, G)
            mixed = top <= row < bottom and left <= column < right
            source = B - 1 - b if mixed else b
            logits = token_logits[source, token_of[source][patch]]
            loss = loss + weight * cross_entropy(logits, patch_labels[b, patch]) / (B * P)
    return loss
