"""A plain ViT and the token reducers once more, slowly: one image, loops, float64, from the papers.

Nothing here is shared with the package; it is what the fast path is compared with. Weights have
timm's names. Blocks are counted from 1, as in the papers.
"""

import math

import torch
from torch import Tensor

from reference import Nothing, centres, embed, gelu, layer_norm, linear, run_blocks


class EViT(Nothing):
    def __init__(self, keep_rate, blocks, fuse_token=True):
        self.keep_rate, self.blocks, self.fuse_token = keep_rate, blocks, fuse_token

    def between(self, block, tokens, logits, keys):
        if block not in self.blocks:
            return tokens
        p = self.prefix
        seen = logits.softmax(-1)[:, 0, p:].mean(0)
        n = len(seen)
        left = math.ceil(round(self.keep_rate * n, 9))
        if left == n:
            return tokens
        ranked = sorted(range(n), key=lambda i: -seen[i].item())
        fused = torch.zeros_like(tokens[0])
        for i in ranked[left:]:
            fused = fused + seen[i] * tokens[p + i]
        kept = sorted(ranked[:left])
        if not self.fuse_token:
            self.patches = [self.patches[i] for i in kept]
            return torch.cat([tokens[:p], tokens[p:][kept]])
        gone = [patch for i in ranked[left:] for patch in self.patches[i]]
        self.patches = [self.patches[i] for i in kept] + [gone]
        return torch.cat([tokens[:p], tokens[p:][kept], fused[None]])


def evit_keep_rate(epoch, start, epochs, keep_rate):
    """In training, after `epoch` epochs (EViT's released code): 1, a cosine, then keep_rate."""
    if epoch < start:
        return 1.0
    if epoch >= start + epochs:
        return keep_rate
    return keep_rate + (1 - keep_rate) * 0.5 * (1 + math.cos(math.pi * (epoch - start) / epochs))


def tome_schedule(depth, r, slope):
    """Pairs merged in each block (ToMe's released code): a line with mean r, rounded down."""
    first = int(r * (1 - slope))
    last = 2 * r - first
    return [int(first + (last - first) * block / (depth - 1)) for block in range(depth)]


class ToMe(Nothing):
    def __init__(self, r):
        self.r = r  # one number per block

    def weights(self, logits):
        sizes = [1] * self.prefix + [len(patches) for patches in self.patches]
        return (logits + torch.tensor(sizes, dtype=torch.float64).log()).softmax(-1)

    def between(self, block, tokens, logits, keys):
        """A are the even positions of the sequence, B the odd ones; the prefix is protected."""
        N, p = len(tokens), self.prefix
        r = min(self.r[block - 1], (N - p) // 2)
        if r == 0:
            return tokens
        metric = [row / row.norm() for row in keys.mean(0)]
        sizes = [1] * p + [len(patches) for patches in self.patches]
        A = [i for i in range(p, N) if i % 2 == 0]
        B = [j for j in range(p, N) if j % 2 == 1]
        similarity, partner = {}, {}
        for i in A:
            partner[i] = max(B, key=lambda j: (metric[i] @ metric[j]).item())
            similarity[i] = (metric[i] @ metric[partner[i]]).item()
        ranked = sorted(A, key=lambda i: -similarity[i])
        # the official code sorts what stays only to have the class token first
        staying = sorted(ranked[r:]) if p else ranked[r:]
        groups = [[i] for i in staying]
        groups += [[j] + [i for i in ranked[:r] if partner[i] == j] for j in B]
        self.patches = [[patch for i in group for patch in self.patches[i - p]] for group in groups]
        merged = [self.merge(block, group, tokens, sizes) for group in groups]
        return torch.cat([tokens[:p], torch.stack(merged)])

    def merge(self, block, group, tokens, sizes):
        """One token of a group, the one of B first."""
        return sum(sizes[i] * tokens[i] for i in group) / sum(sizes[i] for i in group)


class Frequency(Nothing):
    """High-frequency tokens, then one DC token per window that has lost any."""

    def __init__(self, removed, blocks, windows, position_term=True, scores=None):
        self.removed = dict(zip(blocks, removed, strict=True))
        self.windows = dict(zip(blocks, windows, strict=True))
        self.position_term = position_term
        self.scores = scores  # of every patch, instead of the attention's

    def start(self, n):
        super().start(n)
        self.high = list(range(n))  # which patch each high-frequency token is
        self.dc = []  # which patches each DC token stands for

    def attention(self, block, logits):
        A = logits.softmax(-1)
        if not self.dc:
            return A
        w1, w2 = self.w["blocks.reducer.w1"], self.w["blocks.reducer.w2"]
        depth = sum(name.endswith(".norm1.weight") for name in self.w)
        row = block - 1 - (depth - len(w1))  # the last row belongs to the last block
        H, n, _ = A.shape
        out = []
        for h in range(H):
            low_pass = torch.full((n, n), 1 / n, dtype=torch.float64)
            high_pass = A[h] - low_pass
            dc = torch.zeros_like(A[h])
            first_dc = self.prefix + len(self.high)
            dc[:, first_dc:] = A[h][:, first_dc:]
            out.append(low_pass + (1 + w1[row, h]) * high_pass + (1 + w2[row, h]) * dc)
        return torch.stack(out)

    def window(self, patch, w):
        """Which of w x w equal parts of the image holds the centre of a patch."""
        row, column = self.places[patch]
        return math.floor(row * w), math.floor(column * w)

    def between(self, block, tokens, logits, keys):
        if block not in self.removed:
            return tokens
        p, n_high, w = self.prefix, len(self.high), self.windows[block]
        left = math.ceil(round((1 - self.removed[block]) * n_high, 9))
        if left == n_high:
            return tokens
        received = logits.softmax(-1).mean(dim=(0, 1))[p : p + n_high]
        if self.scores is not None:
            received = self.scores[self.high]
        ranked = sorted(range(n_high), key=lambda i: -received[i].item())
        groups = {(r, c): [] for r in range(w) for c in range(w)}  # sums over patches
        members = {window: [] for window in groups}  # the patches
        for k, patches in enumerate(self.dc):
            window = self.window(patches[0], w)
            groups[window].append(len(patches) * tokens[p + n_high + k])
            members[window] += patches
        for i in ranked[left:]:
            window = self.window(self.high[i], w)
            token = tokens[p + i]
            if self.position_term:
                token = token + self.positions[self.high[i]]
            groups[window].append(token)
            members[window].append(self.high[i])
        staying = sorted(ranked[:left])
        dc = [sum(groups[g]) / len(members[g]) for g in groups if members[g]]
        self.dc = [members[g] for g in groups if members[g]]
        self.high = [self.high[i] for i in staying]
        self.patches = [[i] for i in self.high] + self.dc
        return torch.cat([tokens[:p], tokens[p:][staying], torch.stack(dc)])


class DynamicViT(Nothing):
    """In inference; with `masks` (one (n,) of 0 and 1 per reducing block) in training."""

    def __init__(self, keep_rate, blocks, masks=None):
        self.keep_rate, self.blocks, self.masks = keep_rate, blocks, masks

    def start(self, n):
        super().start(n)
        self.n = n
        self.mask = torch.ones(n, dtype=torch.float64)

    def keep_scores(self, stage, patches):
        """Log-probability of keeping each token, from its own features and the kept ones' mean."""
        name = f"blocks.reducer.predictors.{stage}"
        x = layer_norm(patches, self.w, f"{name}.local.0", eps=1e-5)
        x = gelu(linear(x, self.w, f"{name}.local.1"))
        half = x.shape[1] // 2
        mean = sum(m * row[half:] for m, row in zip(self.mask, x, strict=True)) / self.mask.sum()
        x = torch.stack([torch.cat([row[:half], mean]) for row in x])
        x = gelu(linear(x, self.w, f"{name}.decide.0"))
        x = gelu(linear(x, self.w, f"{name}.decide.2"))
        x = linear(x, self.w, f"{name}.decide.4")
        return x.log_softmax(-1)[:, 0]

    def before(self, block, tokens):
        if block not in self.blocks:
            return tokens
        stage = self.blocks.index(block)
        scores = self.keep_scores(stage, tokens[self.prefix :])
        if self.masks is not None:
            self.mask = self.mask * self.masks[stage]
            return tokens
        left = max(math.floor(round(self.keep_rate ** (stage + 1) * self.n, 9)), 1)
        ranked = sorted(range(len(scores)), key=lambda i: -scores[i].item())
        kept = sorted(ranked[:left])
        self.mask = torch.ones(left, dtype=torch.float64)
        return torch.cat([tokens[: self.prefix], tokens[self.prefix :][kept]])

    def attention(self, block, logits):
        if self.masks is None or block < self.blocks[0]:
            return logits.softmax(-1)
        N, eps = logits.shape[-1], 1e-6
        visible = torch.cat([torch.ones(self.prefix, dtype=torch.float64), self.mask])
        G = torch.eye(N, dtype=torch.float64)
        G = G + (1 - G) * visible  # G[i, j]: i sees j
        weights = (logits - logits.amax(-1, keepdim=True)).exp() * G
        return (weights + eps / N) / (weights.sum(-1, keepdim=True) + eps)


class KeepRate(Nothing):
    """A fixed number of tokens is left after each reducing block."""

    def __init__(self, keep_rate, blocks):
        self.keep_rate, self.blocks = keep_rate, blocks

    def start(self, n):
        super().start(n)
        self.n = n

    def left(self, block):
        stage = self.blocks.index(block) + 1
        return max(math.floor(round(self.keep_rate**stage * self.n, 9)), 1)


class TopK(KeepRate):
    def between(self, block, tokens, logits, keys):
        if block not in self.blocks:
            return tokens
        p = self.prefix
        seen = logits.softmax(-1)[:, 0, p:].mean(0)
        ranked = sorted(range(len(seen)), key=lambda i: -seen[i].item())
        kept = sorted(ranked[: self.left(block)])
        self.patches = [self.patches[i] for i in kept]
        return torch.cat([tokens[:p], tokens[p:][kept]])


def distances(tokens: Tensor) -> list[list[float]]:
    return [[(a - b).norm().item() for b in tokens] for a in tokens]


class DPCKNN(KeepRate):
    """The densest tokens that are far from denser ones gather the others (TCFormer)."""

    def __init__(self, keep_rate, blocks, neighbors, weighted=True):
        super().__init__(keep_rate, blocks)
        self.neighbors, self.weighted = neighbors, weighted

    def before(self, block, tokens):
        if block not in self.blocks or self.left(block) == len(tokens) - self.prefix:
            return tokens
        x = tokens[self.prefix :]
        n, k = len(x), self.left(block)
        d = [[value / math.sqrt(x.shape[1]) for value in row] for row in distances(x)]
        near = [sorted(row)[: self.neighbors] for row in d]
        density = [math.exp(-sum(value**2 for value in row) / len(row)) for row in near]
        farthest = max(max(row) for row in d)
        score = []
        for i in range(n):
            denser = [d[i][j] for j in range(n) if density[j] > density[i]]
            score.append(density[i] * min(denser, default=farthest))
        centers = sorted(sorted(range(n), key=lambda i: -score[i])[:k])
        clusters = {center: [] for center in centers}
        for i in range(n):
            own = i if i in clusters else min(centers, key=lambda c: d[i][c])
            clusters[own].append(i)
        merged = []
        for members in clusters.values():
            weights = [1.0] * len(members)
            if self.weighted:
                layer = f"blocks.reducer.scores.{self.blocks.index(block)}"
                weights = [linear(x[i], self.w, layer).exp().item() for i in members]
            pairs = zip(weights, members, strict=True)
            merged.append(sum(weight * x[i] for weight, i in pairs) / sum(weights))
        self.patches = [[p for i in m for p in self.patches[i]] for m in clusters.values()]
        return torch.cat([tokens[: self.prefix], torch.stack(merged)])


class KMedoids(KeepRate):
    """Weights are the attention received in the block before."""

    def __init__(self, keep_rate, blocks, iterations):
        super().__init__(keep_rate, blocks)
        self.iterations, self.received = iterations, None

    def attention(self, block, logits):
        self.received = logits.softmax(-1).sum((0, 1))[self.prefix :].tolist()
        return logits.softmax(-1)

    def before(self, block, tokens):
        if block not in self.blocks:
            return tokens
        x, k = tokens[self.prefix :], self.left(block)
        n, d = len(x), distances(x)
        weight = self.received or [1.0] * n
        medoids = sorted(range(n), key=lambda i: -weight[i])[:k]

        def clusters():
            members = [[] for _ in medoids]
            for i in range(n):
                nearest = min(range(k), key=lambda c: d[i][medoids[c]])
                members[medoids.index(i) if i in medoids else nearest].append(i)
            return members

        for _ in range(self.iterations):
            medoids = [
                min(members, key=lambda j: sum(weight[i] * d[i][j] for i in members))
                for members in clusters()
            ]
        self.patches = [[p for i in m for p in self.patches[i]] for m in clusters()]
        return torch.cat([tokens[: self.prefix], x[medoids]])


class Soft(KeepRate):
    """New tokens that are mixtures of all old ones."""

    def before(self, block, tokens):
        if block not in self.blocks or self.left(block) == len(tokens) - self.prefix:
            return tokens
        name = f"blocks.reducer.mixers.{self.blocks.index(block)}"
        mixed = self.mix(name, tokens[self.prefix :], self.left(block))
        return torch.cat([tokens[: self.prefix], torch.stack(mixed)])


class PatchMerger(Soft):
    def mix(self, name, x, k):
        x = layer_norm(x, self.w, f"{name}.norm", eps=1e-5)
        shares = [(x @ query).softmax(0) for query in self.w[f"{name}.queries"][:k]]
        return [sum(s * token for s, token in zip(share, x, strict=True)) for share in shares]


class Sinkhorn(Soft):
    def __init__(self, keep_rate, blocks, temperature, iterations):
        super().__init__(keep_rate, blocks)
        self.temperature, self.iterations = temperature, iterations

    def mix(self, name, x, k):
        x = x / x.norm(dim=1, keepdim=True)
        centers = self.w[f"{name}.centers"][:k]
        centers = centers / centers.norm(dim=1, keepdim=True)
        plan = (centers @ x.T / self.temperature).exp()  # (k, n)
        for _ in range(self.iterations):
            for row in range(k):
                plan[row] /= plan[row].sum()
            for column in range(len(x)):
                plan[:, column] /= plan[:, column].sum()
        return [sum(s * token for s, token in zip(row, x, strict=True)) for row in plan]


class SiT(Soft):
    def mix(self, name, x, k):
        hidden = layer_norm(x, self.w, f"{name}.hidden.0", eps=1e-5)
        hidden = gelu(linear(hidden, self.w, f"{name}.hidden.1"))
        logits = linear(hidden, self.w, f"{name}.mix") * self.w[f"{name}.scale"].item()  # (n, k)
        shares = [logits[:, new].softmax(0) for new in range(k)]
        return [sum(s * token for s, token in zip(share, x, strict=True)) for share in shares]


class ATS(KeepRate):
    """Samples at the midpoints of the distribution of significance, each token once."""

    def between(self, block, tokens, logits, keys):
        if block not in self.blocks:
            return tokens
        p, A = self.prefix, logits.softmax(-1)
        n, samples = len(tokens) - p, self.left(block)
        significance = [
            sum((A[h, 0, p + j] * self.values[h, p + j].norm()).item() for h in range(len(A)))
            for j in range(n)
        ]
        cumulated = [sum(significance[: j + 1]) / sum(significance) for j in range(n)]
        points = [(2 * i + 1) / (2 * samples) for i in range(samples)]
        kept = sorted({min(range(n), key=lambda j: abs(cumulated[j] - u)) for u in points})
        self.patches = [self.patches[j] for j in kept]
        return torch.cat([tokens[:p], tokens[p:][kept]])


class EvoViT(Nothing):
    """All tokens are kept, and the representative is made anew before every block."""

    def __init__(self, keep_rate, blocks, tradeoff=0.5):
        self.keep_rate, self.stages, self.tradeoff = keep_rate, blocks, tradeoff

    def start(self, n):
        super().start(n)
        self.n, self.seen, self.fast = n, None, []

    def between(self, block, tokens, logits, keys):
        row = logits.softmax(-1)[:, 0, self.prefix :].mean(0).tolist()
        if self.seen is None:
            self.seen = row
        else:
            slow = self.slow if self.fast else range(self.n)
            for i, value in zip(slow, row, strict=False):
                self.seen[i] += self.tradeoff * (value - self.seen[i])
        return tokens

    def update(self, tokens):
        """All tokens after a block that ran on slow tokens and the representative."""
        if not self.fast:
            return tokens
        every, p = [None] * self.n, self.prefix
        for place, i in enumerate(self.slow):
            every[i] = tokens[p + place]
        for i in self.fast:
            every[i] = self.before_update[i] + tokens[-1] - self.representative
        return torch.cat([tokens[:p], torch.stack(every)])

    def before(self, block, tokens):
        tokens = self.update(tokens)
        left = max(math.floor(round(self.keep_rate * self.n, 9)), 1)
        if block in self.stages and left < self.n:
            ranked = sorted(range(self.n), key=lambda i: -self.seen[i])
            self.slow, self.fast = sorted(ranked[:left]), sorted(ranked[left:])
            self.patches = [[i] for i in self.slow] + [self.fast]
        if not self.fast:
            return tokens
        x = self.before_update = tokens[self.prefix :]
        total = sum(self.seen[i] for i in self.fast)
        self.representative = sum(self.seen[i] / total * x[i] for i in self.fast)
        return torch.cat([tokens[: self.prefix], x[self.slow], self.representative[None]])

    def finish(self, tokens):
        self.patches = [[i] for i in range(self.n)]
        return self.update(tokens)


class AViT(Nothing):
    """No token leaves; those that have halted are hidden."""

    def __init__(self, gate_scale, gate_center):
        self.gate_scale, self.gate_center, self.total = gate_scale, gate_center, None

    def weights(self, logits):
        hidden = torch.tensor([total >= 0.99 for total in self.total])
        return (logits - 1000.0 * hidden).softmax(-1)

    def count(self, tokens, last):
        for i, token in enumerate(tokens):
            if self.total[i] >= 0.99:
                continue
            self.ponder[i] += 1
            gate = self.gate_scale * token[0].item() - self.gate_center
            score = 1.0 if last else 1 / (1 + math.exp(-gate))
            if self.total[i] + score > 0.99:
                self.output[i] = self.output[i] + (1 - self.total[i]) * token
                self.ponder[i] += 1 - self.total[i]
            else:
                self.output[i] = self.output[i] + score * token
            self.total[i] += score

    def before(self, block, tokens):
        if block == 1:
            self.total, self.ponder = [0.0] * len(tokens), [0.0] * len(tokens)
            self.output = [torch.zeros_like(token) for token in tokens]
        else:
            self.count(tokens, last=False)
        return tokens

    def finish(self, tokens):
        self.count(tokens, last=True)
        return torch.stack(self.output)


class ToFu(ToMe):
    """ToMe's pairs; the first blocks keep the token of B, the others merge by MLERP."""

    def __init__(self, r, prune_blocks):
        super().__init__(r)
        self.prune_blocks = prune_blocks

    def weights(self, logits):
        return logits.softmax(-1)

    def merge(self, block, group, tokens, sizes):
        if block <= self.prune_blocks:
            return tokens[group[0]]
        mean = sum(tokens[i] for i in group) / len(group)
        return mean / mean.norm() * max(tokens[i].norm() for i in group)


def forward(
    image: Tensor,
    weights: dict[str, Tensor],
    *,
    heads: int,
    reducer: Nothing | None = None,
    pool: str = "token",
    positions_of_prefix: bool = True,
) -> dict[str, Tensor]:
    """One image (3, H, W) through timm's ViT: the logits and the tokens after the final norm."""
    w = {name: value.double() for name, value in weights.items()}
    reducer = Nothing() if reducer is None else reducer
    P = w["patch_embed.proj.weight"].shape[-1]
    patches = embed(image.double(), w, P)
    prefix = [w[name][0] for name in ("cls_token", "dist_token", "reg_token") if name in w]
    p, positions = sum(len(part) for part in prefix), w["pos_embed"][0]
    reducer.positions = positions[-len(patches) :]
    reducer.places = centres(image.shape[1] // P, image.shape[2] // P)
    tokens = torch.cat([*prefix, patches])
    if not positions_of_prefix:
        positions = torch.cat([torch.zeros_like(tokens[:p]), positions])
    tokens, _ = run_blocks(tokens + positions, w, heads, reducer, p)
    if "norm.weight" in w:
        tokens = layer_norm(tokens, w, "norm")
    pooled = tokens[0] if pool == "token" else reducer.average(tokens)
    if "fc_norm.weight" in w:
        pooled = layer_norm(pooled, w, "fc_norm")
    logits = linear(pooled, w, "head")
    if "head_dist.weight" in w:
        logits = (logits + linear(tokens[1], w, "head_dist")) / 2
    return {"logits": logits, "tokens": tokens}


def dynamic_vit_loss(
    kept: list[Tensor],
    keep_rate: float,
    tokens: Tensor,
    teacher: Tensor,
    ratio_weight: float,
    token_weight: float,
) -> float:
    """Section 3.3: the share of tokens kept after each stage, and the distance to a teacher.

    Args:
        kept: per stage, (B, n) of 0 and 1: the tokens kept so far.
        tokens, teacher: (B, n, D).
    """
    B, n, D = tokens.shape
    ratio, squared, count = 0.0, 0.0, 0
    for b in range(B):
        for stage, mask in enumerate(kept, start=1):
            share = sum(mask[b].tolist()) / n
            ratio += (share - keep_rate**stage) ** 2 / (B * len(kept))
        for i in range(n):
            if kept[-1][b, i] == 1:
                squared += sum((tokens[b, i] - teacher[b, i]).square().tolist())
                count += D
    return ratio_weight * ratio + token_weight * (squared / count if count else 0.0)


def dynamic_vit_training_loss(
    logits: Tensor, labels: Tensor, taught: Tensor, distill_weight: float, *reducer_terms
) -> float:
    """All of DynamicViT's released loss: cross-entropy, KL(teacher || model), `dynamic_vit_loss`.

    Args:
        logits, labels, taught: (B, C) of the model, of the images (probabilities), of the teacher.
        reducer_terms: arguments of `dynamic_vit_loss`.
    """
    loss = dynamic_vit_loss(*reducer_terms)
    for b in range(len(logits)):
        ours, theirs = logits[b].log_softmax(0), taught[b].log_softmax(0)
        for c in range(logits.shape[1]):
            loss -= (labels[b, c] * ours[c]).item() / len(logits)
            divergence = theirs[c].exp() * (theirs[c] - ours[c])
            loss += distill_weight * divergence.item() / len(logits)
    return loss
