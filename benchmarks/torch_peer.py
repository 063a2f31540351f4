"""The base U-Net in PyTorch, the peer that speed is measured against: the same weights give the same numbers.

Written as a PyTorch user would: channels first, `scaled_dot_product_attention`, fused AdamW, `_foreach` EMA, and as
little else as the comparison needs (no paint, no recomputation). `tests/test_torch_peer.py` holds that outputs,
gradients and one optimizer step equal ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import PyTree
from torch import Tensor, nn

from ediffi_jax.models.attention import num_heads
from ediffi_jax.models.blocks import num_groups
from ediffi_jax.models.conditioner import HIGHEST_FREQUENCY, LOWEST_FREQUENCY
from ediffi_jax.models.levels import level_resolutions, per_level

Batch = Mapping[str, Tensor]  # the fields of a Conditioning


def group_norm(channels: int) -> nn.GroupNorm:
    """With our number of groups."""
    return nn.GroupNorm(num_groups(channels), channels, eps=1e-5)


class ResBlock(nn.Module):
    """ADM's residual block; `how` is none, up or down."""

    def __init__(self, inputs: int, features: int, embed: int, how: str = "none") -> None:
        super().__init__()
        self.how = how
        self.norm1, self.norm2 = group_norm(inputs), group_norm(features)
        self.conv1 = nn.Conv2d(inputs, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)
        self.emb = nn.Linear(embed, 2 * features)
        self.shortcut = nn.Conv2d(inputs, features, 1) if inputs != features else nn.Identity()

    def resample(self, x: Tensor) -> Tensor:
        if self.how == "up":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return F.avg_pool2d(x, 2) if self.how == "down" else x

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(self.resample(F.silu(self.norm1(x))))
        scale, shift = self.emb(emb)[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return self.shortcut(self.resample(x)) + h


class Attention(nn.Module):
    """Self-attention, or cross-attention where `context` is its tokens' width."""

    def __init__(self, channels: int, head_channels: int, context: int | None = None) -> None:
        super().__init__()
        self.heads = num_heads(channels, head_channels)
        self.norm = group_norm(channels)
        if context is None:
            self.qkv = nn.Linear(channels, 3 * channels)
        else:
            self.query, self.key_value = nn.Linear(channels, channels), nn.Linear(context, 2 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, tokens: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        b, c, h, w = x.shape
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        if tokens is None:
            parts = self.qkv(pixels).chunk(3, -1)
        else:
            parts = (self.query(pixels), *self.key_value(tokens).chunk(2, -1))
        q, k, v = (t.reshape(b, t.shape[1], self.heads, -1).transpose(1, 2) for t in parts)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None, None])
        return x + self.out(y.transpose(1, 2).reshape(b, h * w, c)).transpose(1, 2).reshape(b, c, h, w)


class Block(nn.Module):
    """Residual block, self-attention, cross-attention."""

    def __init__(
        self, inputs: int, features: int, embed: int, attention: tuple[bool, bool], heads: int, context: int
    ) -> None:
        super().__init__()
        self.res = ResBlock(inputs, features, embed)
        self.self_attention = Attention(features, heads) if attention[0] else None
        self.cross_attention = Attention(features, heads, context) if attention[1] else None

    def forward(self, x: Tensor, emb: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.res(x, emb)
        x = x if self.self_attention is None else self.self_attention(x)
        return x if self.cross_attention is None else self.cross_attention(x, tokens, mask)


class Conditioner(nn.Module):
    """One vector and the context tokens."""

    def __init__(self, channels: int, embed: int, context: int, widths: Mapping[str, int]) -> None:
        super().__init__()
        frequencies = np.geomspace(LOWEST_FREQUENCY, HIGHEST_FREQUENCY, channels // 2, dtype=np.float32)
        self.register_buffer("frequencies", torch.from_numpy(frequencies), persistent=False)
        self.noise = nn.ModuleDict({"dense1": nn.Linear(channels, embed), "dense2": nn.Linear(embed, embed)})
        self.clip_pooled = nn.Linear(widths["clip_pooled"], embed)
        self.clip_image = nn.Linear(widths["clip_image"], embed)
        for name in ("clip_text", "t5", "clip_image_token"):
            setattr(self, name, nn.Linear(widths[name.removesuffix("_token")], context))
            setattr(self, f"{name}_norm", nn.LayerNorm(context, eps=1e-6))
        self.null = nn.Parameter(torch.zeros(context))

    def forward(self, c_noise: Tensor, cond: Batch) -> tuple[Tensor, Tensor, Tensor]:
        phase = c_noise[:, None] * self.frequencies
        noise = self.noise["dense2"](F.silu(self.noise["dense1"](torch.cat([phase.cos(), phase.sin()], -1))))
        emb = F.silu(noise + self.clip_pooled(cond["clip_pooled"]) + self.clip_image(cond["clip_image"]))
        image = self.clip_image_token_norm(self.clip_image_token(cond["clip_image"][:, None]))
        null = self.null.to(image.dtype).expand(len(c_noise), 1, -1)
        text = self.clip_text_norm(self.clip_text(cond["clip_text"])), self.t5_norm(self.t5(cond["t5"]))
        always = torch.ones(len(c_noise), 1, dtype=torch.bool, device=c_noise.device)
        masks = cond["clip_text_mask"], cond["t5_mask"], cond["clip_image_mask"][:, None], always
        return emb, torch.cat([*text, image, null], 1), torch.cat(masks, 1)


class UNet(nn.Module):
    """`ediffi_jax.models.unet.UNet` with the same arguments and names."""

    def __init__(self, widths: Mapping[str, int], *, resolution: int, channels: int, channel_mults: Sequence[int],
                 blocks: int, attention_resolutions: Sequence[int], cross_attention_resolutions: Sequence[int],
                 head_channels: int, context_width: int, **_: Any) -> None:  # fmt: skip
        super().__init__()
        embed, self.levels = 4 * channels, len(channel_mults)
        self.blocks = per_level(blocks, self.levels, "blocks")
        sizes = level_resolutions(resolution, self.levels)
        kinds = [(r in attention_resolutions, r in cross_attention_resolutions) for r in sizes]
        features = [channels * mult for mult in channel_mults]
        common = {"embed": embed, "heads": head_channels, "context": context_width}
        self.conditioner = Conditioner(channels, embed, context_width, widths)
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1)
        self.parts = nn.ModuleDict()
        skips, now = [channels], channels
        for i, wide in enumerate(features):
            for j in range(self.blocks[i]):
                self.parts[f"down{i}_{j}"] = Block(now, wide, attention=kinds[i], **common)
                now = wide
                skips.append(now)
            if i < self.levels - 1:
                self.parts[f"down{i}_half"] = ResBlock(now, now, embed, "down")
                skips.append(now)
        middle = bool(attention_resolutions), bool(cross_attention_resolutions)
        self.parts["middle1"] = Block(now, now, attention=middle, **common)
        self.parts["middle2"] = Block(now, now, attention=(False, False), **common)
        for i, wide in reversed(list(enumerate(features))):
            for j in range(self.blocks[i] + 1):
                self.parts[f"up{i}_{j}"] = Block(now + skips.pop(), wide, attention=kinds[i], **common)
                now = wide
            if i > 0:
                self.parts[f"up{i}_double"] = ResBlock(now, now, embed, "up")
        self.norm_out, self.conv_out = group_norm(now), nn.Conv2d(now, 3, 3, padding=1)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Batch) -> Tensor:
        emb, tokens, mask = self.conditioner(c_noise, cond)
        h = self.conv_in(x)
        skips = [h]
        for i in range(self.levels):
            for j in range(self.blocks[i]):
                h = self.parts[f"down{i}_{j}"](h, emb, tokens, mask)
                skips.append(h)
            if i < self.levels - 1:
                h = self.parts[f"down{i}_half"](h, emb)
                skips.append(h)
        h = self.parts["middle2"](self.parts["middle1"](h, emb, tokens, mask), emb, tokens, mask)
        for i in reversed(range(self.levels)):
            for j in range(self.blocks[i] + 1):
                h = self.parts[f"up{i}_{j}"](torch.cat([h, skips.pop()], 1), emb, tokens, mask)
            if i > 0:
                h = self.parts[f"up{i}_double"](h, emb)
        return self.conv_out(F.silu(self.norm_out(h)))


def load(network: UNet, params: PyTree) -> UNet:
    """Copies our parameters of one expert into the network, by name."""
    ours = flax.traverse_util.flatten_dict(params, sep=".")
    names = {"kernel": "weight", "scale": "weight"}
    state = {}
    for path, leaf in ours.items():
        *parents, last = path.split(".")
        home = ["parts"] * (parents[:1] != [] and parents[0] in network.parts)
        value = np.asarray(leaf, np.float32)
        if last == "kernel":
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
            value = value[:, :, None, None] if parents[-1] == "shortcut" else value
        state[".".join([*home, *parents, names.get(last, last)])] = torch.from_numpy(np.array(value))
    network.load_state_dict(state)
    return network


def keep(cond: Batch, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Zeros where `kept` (clip_text, t5, clip_image; [b]) is False; see `ediffi_jax.conditioning.keep`."""
    owner = {"clip_pooled": "clip_text"}

    def rows(name: str, value: Tensor) -> Tensor:
        stays = kept[owner.get(name, name.removesuffix("_mask"))]
        return torch.where(stays.reshape(-1, *[1] * (value.ndim - 1)), value, torch.zeros_like(value))

    return {name: rows(name, value) for name, value in cond.items()}


def denoise(network: Callable[..., Tensor], x: Tensor, sigma: Tensor, cond: Batch, sigma_data: float) -> Tensor:
    """EDM's D(x; sigma), x [b, 3, h, w], sigma [b]."""
    s = (sigma**2 + sigma_data**2).sqrt()
    skip, out, scale = (v[:, None, None, None] for v in (sigma_data**2 / s**2, sigma * sigma_data / s, 1 / s))
    return skip * x + out * network(scale * x, sigma.log() / 4, cond).float()


def loss(
    network: Callable[..., Tensor], images: Tensor, noise: Tensor, sigma: Tensor, cond: Batch, sigma_data: float
) -> Tensor:
    """EDM's weighted loss, a mean over the batch."""
    error = denoise(network, images + sigma[:, None, None, None] * noise, sigma, cond, sigma_data) - images
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    return (weight * error.square().mean((1, 2, 3))).mean()


class Trainer:
    """AdamW behind a clip, and an EMA: our optimizer in PyTorch. Vectors are not decayed."""

    def __init__(self, network: UNet, optimizer: Mapping[str, Any], ema_decay: float) -> None:
        self.params = list(network.parameters())
        self.average = [p.detach().clone() for p in self.params]
        self.clip, self.ema_decay = optimizer["clip"], ema_decay
        groups = [
            {"params": [p for p in self.params if p.ndim > 1], "weight_decay": optimizer["weight_decay"]},
            {"params": [p for p in self.params if p.ndim <= 1], "weight_decay": 0.0},
        ]
        betas = (optimizer["b1"], optimizer["b2"])
        self.optimizer = torch.optim.AdamW(groups, lr=optimizer["lr"], betas=betas, eps=optimizer["eps"], fused=True)

    def update(self, value: Tensor) -> Tensor:
        """One step from a loss; returns it."""
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(self.params, self.clip if self.clip > 0 else math.inf)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.params, 1.0 - self.ema_decay)
        return value.detach()
