"""timm's self-attention in parts, so that a method can use or change what is inside.

`project_qkv`, then `attend`, then `project_out` is timm's own attention, fused where timm fuses it.
The full N x N matrix is computed by `attention_weights` alone.

Shapes: B images, N tokens, D width, H heads, d head width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def project_qkv(attn: Any, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values: (B, N, D) -> three of (B, H, N, d)."""
    B, N, _ = tokens.shape
    qkv = attn.qkv(tokens).reshape(B, N, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    return attn.q_norm(q), attn.k_norm(k), v


def attend(attn: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T * scale + bias) v: (B, H, N, d).

    Args:
        bias: (B, 1, 1, N), added to the logits of every query; None adds nothing.
    """
    dropout = attn.attn_drop.p if attn.training else 0.0
    if attn.fused_attn:
        bias = None if bias is None else bias.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, bias, dropout_p=dropout, scale=attn.scale)
    return F.dropout(attention_weights(attn, q, k, bias), dropout) @ v


def attention_weights(attn: Any, q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T * scale + bias): (B, H, N, N), rows sum to one."""
    logits = q * attn.scale @ k.transpose(-2, -1)
    return (logits if bias is None else logits + bias.to(logits.dtype)).softmax(dim=-1)


def project_out(attn: Any, x: Tensor) -> Tensor:
    """Heads concatenated and projected: (B, H, N, d) -> (B, N, D)."""
    B, H, N, d = x.shape
    return attn.proj_drop(attn.proj(attn.norm(x.transpose(1, 2).reshape(B, N, H * d))))


def class_attention(attn: Any, q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention of the first token to every other one, mean over heads, in float32.

    One query against all keys. The softmax runs over all keys; the class token's attention to
    itself is dropped afterwards without rescaling (LF-ViT section 3.2, CF-ViT section 4.1).

    Returns:
        (B, N-1)
    """
    with torch.autocast(q.device.type, enabled=False):  # it would round to half precision again
        logits = (q[:, :, :1].float() * attn.scale) @ k.float().transpose(-2, -1)  # (B, H, 1, N)
        if bias is not None:
            logits = logits + bias
    return logits.softmax(dim=-1)[:, :, 0, 1:].mean(dim=1)
