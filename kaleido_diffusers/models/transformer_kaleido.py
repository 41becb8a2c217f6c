# Copyright 2026 The Kaleido for diffusers team.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""The Kaleido transformer (arXiv 2510.04236): one decoder-only stack over the tokens of posed or timed views.

Memory views (references, and views generated before) are clean and causal by group; target views are noisy, attend to
the memory and to their own group. Shapes: B batch, V views, M targets, L tokens a view, C channels, D head dimension.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.hooks._helpers import (
    AttentionProcessorMetadata,
    AttentionProcessorRegistry,
    TransformerBlockMetadata,
    TransformerBlockRegistry,
)
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from diffusers.models.attention import AttentionMixin, AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput

from ..geometry.cameras import invert_intrinsics, invert_rigid
from ..loaders.adapters import KaleidoAdapterMixin, scales_adapters
from ..loaders.single_file import KaleidoSingleFileMixin
from .config_checks import check_config
from .reference_cache import KaleidoReferenceCache, LayerMemory
from .step_caches import KaleidoCacheMixin


__all__ = ["KALEIDO_PRESETS", "KaleidoTransformer3DModel", "KaleidoTransformerOutput"]

LAYER_KINDS = ("global", "view")
CAMERA_ENCODINGS = ("prope", "gta")

# Architecture by name; the names promise 12M, 100M, 350M, 1.3B and 3.1B parameters (3.1B: the paper's largest).
# `tiny` sees 64-pixel views, the others the latents of 512-pixel views (16 channels, 8 times smaller).
_LATENTS = dict(patch_size=2, in_channels=16, sample_size=64)
KALEIDO_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": dict(num_layers=8, num_attention_heads=6, num_key_value_heads=2, ffn_dim=832),
    "small": dict(num_layers=16, num_attention_heads=12, num_key_value_heads=4, ffn_dim=1920, **_LATENTS),
    "base": dict(num_layers=28, num_attention_heads=16, num_key_value_heads=4, ffn_dim=3072, **_LATENTS),
    "large": dict(num_layers=28, num_attention_heads=32, num_key_value_heads=8, ffn_dim=5632, **_LATENTS),
    "xl": dict(num_layers=44, num_attention_heads=40, num_key_value_heads=8, ffn_dim=6912, **_LATENTS),
}


@dataclass
class KaleidoTransformerOutput(BaseOutput):
    """
    The output of [`KaleidoTransformer3DModel`].

    Args:
        sample (`torch.Tensor` of shape `[B, M, out_channels, H, W]`):
            The prediction for each target view: a velocity or a clean view, as the scheduler has it.
    """

    sample: torch.Tensor


class ViewGroups(NamedTuple):
    """Sizes of the memory groups and of the target groups of one call, in the order of its views."""

    memory: tuple[int, ...]
    targets: tuple[int, ...]


class ViewPositions(NamedTuple):
    """Where tokens are: one camera for each view, one rotation for each token.

    Channels of a head: first the camera half in groups of 4, then the grid half, whose channels `i` and `i + R/2` are
    a pair that turns by the angle `i` of (columns, rows, time).
    """

    projection: torch.Tensor | None  # [B, V, 4, 4] P = lift(K) @ camera_from_world
    inverse: torch.Tensor | None  # [B, V, 4, 4] P^-1
    cos: torch.Tensor  # [B or 1, V or 1, L, R/2]
    sin: torch.Tensor

    def encode_query(self, x: torch.Tensor) -> torch.Tensor:
        """`q <- P^T q`, grid turned. `x` is `[B, V, L, ..., D]`."""
        return self._apply(x, self.projection, self.sin)

    def encode_key(self, x: torch.Tensor) -> torch.Tensor:
        """`k <- P^-1 k`, grid turned; values alike."""
        return self._apply(x, None if self.inverse is None else self.inverse.mT, self.sin)

    def decode_output(self, x: torch.Tensor) -> torch.Tensor:
        """`o <- P o`, grid turned back."""
        return self._apply(x, None if self.projection is None else self.projection.mT, -self.sin)

    def _apply(self, x: torch.Tensor, matrix: torch.Tensor | None, sin: torch.Tensor) -> torch.Tensor:
        dtype = torch.promote_types(x.dtype, self.cos.dtype)
        camera, grid = x.split([x.shape[-1] - 2 * sin.shape[-1], 2 * sin.shape[-1]], dim=-1)
        if matrix is not None:
            rows = camera.to(dtype).reshape(*x.shape[:2], -1, 4)
            camera = (rows @ matrix.to(dtype)).reshape(camera.shape)
        heads = (1,) * (x.ndim - 4)
        cos, sin = (table.reshape(*table.shape[:3], *heads, -1) for table in (self.cos, sin))
        first, second = grid.chunk(2, dim=-1)
        turned = (camera.to(dtype), first * cos - second * sin, first * sin + second * cos)
        return torch.cat(turned, dim=-1).to(x.dtype)


class KaleidoAttnProcessor:
    """Grouped-query attention under the group rule, as attention calls over slices: no dense mask.

    Query heads that share a key head are laid beside each other as further queries, so every backend of
    `dispatch_attention_fn` sees plain multi-head attention and none needs to know grouped heads.
    """

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: "KaleidoAttention",
        hidden_states: torch.Tensor,  # [B, V, L, C]
        positions: ViewPositions,
        groups: ViewGroups,
        memory: LayerMemory | None = None,
    ) -> torch.Tensor:
        query, key, value = attn.project(hidden_states)  # [B, V, L, heads, D]
        num_kv_heads = key.shape[3]
        query, key = attn.norm_q(query), attn.norm_k(key)
        query = query.unflatten(3, (num_kv_heads, -1)).transpose(3, 4)  # [B, V, L, heads a key head, key heads, D]
        query = positions.encode_query(query)
        key, value = positions.encode_key(key), positions.encode_key(value)

        if attn.kind == "view":
            query, key, value = (x.flatten(0, 1).unsqueeze(1) for x in (query, key, value))
            hidden = self._attend(query, key, value).squeeze(1).unflatten(0, hidden_states.shape[:2])
        else:
            if memory is not None:
                key, value = memory.extend(key, value)
            hidden = self._attend_groups(query, key, value, groups)

        hidden = positions.decode_output(hidden.transpose(3, 4)).flatten(3)
        return attn.to_out[1](attn.to_out[0](hidden))

    def _attend_groups(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, groups: ViewGroups
    ) -> torch.Tensor:
        """`query` has the views of this call, `key` and `value` those of the cache before them."""
        num_cached = key.shape[1] - query.shape[1]
        num_memory = num_cached + sum(groups.memory)
        outputs = []
        for size, end in zip(groups.memory, accumulate(groups.memory)):
            seen = slice(num_cached + end)
            outputs.append(self._attend(query[:, end - size : end], key[:, seen], value[:, seen]))
        if len(groups.targets) == 1:
            outputs.append(self._attend(query[:, sum(groups.memory) :], key, value))
        else:
            memory, start = slice(num_memory), num_memory
            for size, run in groupby(groups.targets):
                count = len(list(run))
                own = slice(start, start := start + count * size)
                keys, values = (_beside(x[:, memory], x[:, own], count) for x in (key, value))
                queries = query[:, own.start - num_cached : own.stop - num_cached].unflatten(1, (count, size))
                hidden = self._attend(queries.flatten(0, 1), keys, values)
                outputs.append(hidden.unflatten(0, (-1, count)).flatten(1, 2))
        return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Full attention of views `[B, V, L, queries a head, heads, D]` to views `[B, V', L, heads, D]`."""
        hidden = dispatch_attention_fn(
            query.flatten(1, 3),
            key.flatten(1, 2),
            value.flatten(1, 2),
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        return hidden.unflatten(1, query.shape[1:4]).to(query.dtype)


# Guiders that skip attention ask what it is then taken to return: what it was given.
AttentionProcessorRegistry.register(
    KaleidoAttnProcessor,
    AttentionProcessorMetadata(skip_processor_output_fn=lambda attn, hidden_states, *args, **kwargs: hidden_states),
)


class KaleidoAttention(nn.Module, AttentionModuleMixin):
    """Self-attention with grouped key heads, RMS-normalised queries and keys, and no biases."""

    _default_processor_cls = KaleidoAttnProcessor
    _available_processors = [KaleidoAttnProcessor]
    is_cross_attention = False  # asked by step caches and by guiders that skip attention

    def __init__(
        self,
        dim: int,
        heads: int,
        kv_heads: int,
        dim_head: int,
        kind: str,
        eps: float,
        processor=None,
    ):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, dim_head
        self.kind, self.use_bias = kind, False
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_k = nn.Linear(dim, kv_heads * dim_head, bias=False)
        self.to_v = nn.Linear(dim, kv_heads * dim_head, bias=False)
        self.norm_q = nn.RMSNorm(dim_head, eps=eps)
        self.norm_k = nn.RMSNorm(dim_head, eps=eps)
        self.to_out = nn.ModuleList([nn.Linear(heads * dim_head, dim, bias=False), nn.Dropout(0.0)])
        self.set_processor(processor if processor is not None else self._default_processor_cls())

    def project(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values `[..., heads, D]` of `hidden_states` `[..., C]`."""
        if self.fused_projections:
            sizes = [self.heads * self.head_dim] + 2 * [self.kv_heads * self.head_dim]
            projected = self.to_qkv(hidden_states).split(sizes, dim=-1)
        else:
            projected = (self.to_q(hidden_states), self.to_k(hidden_states), self.to_v(hidden_states))
        return tuple(x.unflatten(-1, (-1, self.head_dim)) for x in projected)

    def forward(
        self,
        hidden_states: torch.Tensor,
        positions: ViewPositions,
        groups: ViewGroups,
        memory: LayerMemory | None = None,
        **kwargs,
    ) -> torch.Tensor:
        return self.processor(self, hidden_states, positions, groups, memory, **kwargs)


class KaleidoFeedForward(nn.Module):
    """SwiGLU, without biases."""

    def __init__(self, dim: int, inner_dim: int):
        super().__init__()
        self.gate_proj = nn.Linear(dim, inner_dim, bias=False)
        self.up_proj = nn.Linear(dim, inner_dim, bias=False)
        self.down_proj = nn.Linear(inner_dim, dim, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_proj(hidden_states), self.up_proj(hidden_states)
        if up.dtype != torch.float16:
            return self.down_proj(F.silu(gate) * up)
        # Products of trained weights outgrow float16; what a token is divided by, the norm behind takes away again.
        product = F.silu(gate.float()) * up.float()
        largest = product.detach().abs().amax(-1, keepdim=True)
        return self.down_proj((product * (64.0 / largest).clamp(max=1.0)).to(up.dtype))


class KaleidoAdaRMSNorm(nn.Module):
    """RMSNorm, scaled for each view: `offset + norm(x) * weight * scale`.

    Statistics are taken in at least float32 (as `torch.nn.functional.rms_norm` does). Weight and scale meet on the
    view, before the tokens: tokens pay for one multiplication.
    """

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        normed = F.rms_norm(x, self.weight.shape, eps=self.eps)
        return torch.addcmul(offset, normed, self.weight.to(scale.dtype) * scale)


class KaleidoTransformerBlock(nn.Module):
    """Attention and SwiGLU, each between two norms (sandwich), modulated by the timestep of its view."""

    def __init__(
        self,
        dim: int,
        num_attention_heads: int,
        num_key_value_heads: int,
        attention_head_dim: int,
        ffn_dim: int,
        kind: str,
        norm_eps: float,
    ):
        super().__init__()
        self.norm1 = KaleidoAdaRMSNorm(dim, norm_eps)
        self.attn = KaleidoAttention(dim, num_attention_heads, num_key_value_heads, attention_head_dim, kind, norm_eps)
        self.norm2 = KaleidoAdaRMSNorm(dim, norm_eps)
        self.norm3 = KaleidoAdaRMSNorm(dim, norm_eps)
        self.ff = KaleidoFeedForward(dim, ffn_dim)
        self.norm4 = KaleidoAdaRMSNorm(dim, norm_eps)
        self.scale_shift_table = nn.Parameter(torch.zeros(6, dim))

    def forward(
        self,
        hidden_states: torch.Tensor,  # [B, V, L, C]
        modulation: torch.Tensor,  # [B, V, 6, C]
        positions: ViewPositions,
        groups: ViewGroups,
        memory: LayerMemory | None = None,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> torch.Tensor:
        modulation = (modulation + self.scale_shift_table).to(hidden_states.dtype).unsqueeze(3)
        shift_attn, scale_attn, gate_attn, shift_ff, scale_ff, gate_ff = modulation.unbind(2)
        update = self.norm1(hidden_states, 1 + scale_attn, shift_attn)
        update = self.attn(update, positions, groups, memory, **(attention_kwargs or {}))
        hidden_states = self.norm2(update, gate_attn, hidden_states)
        update = self.ff(self.norm3(hidden_states, 1 + scale_ff, shift_ff))
        return self.norm4(update, gate_ff, hidden_states)


# FirstBlockCache, MagCache and their like ask what a block returns.
TransformerBlockRegistry.register(
    KaleidoTransformerBlock,
    TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None),
)


class KaleidoTimeEmbedding(nn.Module):
    """Timesteps `[B, V]` to an embedding `[B, V, C]` and to the modulation `[B, V, 6, C]` that all layers share
    (adaLN-single, PixArt-alpha, arXiv 2310.00426)."""

    def __init__(self, dim: int):
        super().__init__()
        self.time_proj = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.embedder = TimestepEmbedding(256, dim)
        self.linear = nn.Linear(dim, 6 * dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        frequencies = self.time_proj(timestep.flatten()).unflatten(0, timestep.shape)
        embedding = self.embedder(frequencies.to(self.linear.weight.dtype))
        return embedding, self.linear(F.silu(embedding)).unflatten(-1, (6, -1))


class KaleidoRotaryEmbedding(nn.Module):
    """Angles by which the grid half of a head turns: with column and row, stretched to the grid of training, and time.
    A module, though without parameters: so context parallelism can split the tokens of its output."""

    def __init__(self, axes_dim: tuple[int, int, int], theta: float, time_scale: float, extent: int):
        super().__init__()
        self.axes_dim, self.theta, self.time_scale, self.extent = axes_dim, theta, time_scale, extent

    def forward(self, rows: int, columns: int, seconds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines `[B, V, L, R/2]` at `seconds` `[B, V]`."""
        options = dict(device=seconds.device, dtype=seconds.dtype)
        y, x = ((torch.arange(count, **options) + 0.5) / count * self.extent for count in (rows, columns))
        y, x = torch.meshgrid(y, x, indexing="ij")
        turns = [self.theta ** -(torch.arange(0, dim, 2, **options) / max(dim, 1)) for dim in self.axes_dim]
        grid = torch.cat([x.reshape(-1, 1) * turns[0], y.reshape(-1, 1) * turns[1]], dim=-1)
        turn = (seconds * self.time_scale)[:, :, None, None] * turns[2]
        angles = torch.cat(
            [grid.expand(*seconds.shape, -1, -1), turn.expand(-1, -1, grid.shape[0], -1)], dim=-1
        )  # `len` is fixed in torch.export
        return angles.cos(), angles.sin()


class KaleidoTransformer3DModel(
    KaleidoAdapterMixin, ModelMixin, AttentionMixin, ConfigMixin, KaleidoSingleFileMixin, KaleidoCacheMixin
):
    """
    Kaleido: a decoder-only rectified flow transformer over views.

    The width is `num_attention_heads * attention_head_dim`.

    Args:
        patch_size (`int`, defaults to `8`):
            Pixels (or latent cells) along each side of a token.
        in_channels (`int`, defaults to `3`):
            Channels of a view: 3 for pixels, else the latent channels of the autoencoder.
        out_channels (`int`, *optional*):
            Channels of the prediction; `in_channels` when not given.
        num_layers (`int`, defaults to `8`):
            Transformer blocks.
        num_attention_heads (`int`, defaults to `6`):
            Query heads.
        num_key_value_heads (`int`, defaults to `2`):
            Key and value heads; divides `num_attention_heads`.
        attention_head_dim (`int`, defaults to `64`):
            Channels of a head: those that `rope_axes_dim` does not take carry the camera, in groups of 4.
        ffn_dim (`int`, defaults to `832`):
            Inner width of the SwiGLU.
        layer_pattern (`tuple[str, ...]`, defaults to `("global",)`):
            Layer kinds, repeated over the depth: `"global"` attends to the memory and the own group, `"view"` within
            each view.
        camera_encoding (`str`, defaults to `"prope"`):
            `"prope"` encodes pose and intrinsics (relative projective transform), `"gta"` the pose alone.
        rope_axes_dim (`tuple[int, int, int]`, defaults to `(12, 12, 8)`):
            Channels of a head that turn with token column, token row and time.
        rope_theta (`float`, defaults to `100.0`):
            Base of the rotary frequencies.
        rope_time_scale (`float`, defaults to `24.0`):
            Rotary positions in one second.
        sample_size (`int`, defaults to `64`):
            Height and width of a view in training. Grid positions are stretched to it at any other size.
        norm_eps (`float`, defaults to `1e-6`):
            Epsilon of every RMSNorm.
        max_focal_length (`float`, *optional*):
            The longest lens that the model knows, as a part of the shorter side of a view. The pipeline shows scenes
            with longer ones as nearer views through this one, see [`as_shown`]; without it lenses stay as they are.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["KaleidoTransformerBlock"]
    _repeated_blocks = ["KaleidoTransformerBlock"]
    _keep_in_fp32_modules = ["time_embed", "scale_shift_table"]
    _skip_layerwise_casting_patterns = ["patch_embed", "time_embed", "norm", "proj_out"]
    _skip_keys = ["cache"]
    # Every rank takes its share of the tokens of every view: attention does not mind their order
    _cp_plan = {
        "patch_embed": {0: ContextParallelInput(split_dim=2, expected_dims=4, split_output=True)},
        "rope": {index: ContextParallelInput(split_dim=2, expected_dims=4, split_output=True) for index in (0, 1)},
        "proj_out": ContextParallelOutput(gather_dim=2, expected_dims=4),
    }

    @register_to_config
    def __init__(
        self,
        patch_size: int = 8,
        in_channels: int = 3,
        out_channels: int | None = None,
        num_layers: int = 8,
        num_attention_heads: int = 6,
        num_key_value_heads: int = 2,
        attention_head_dim: int = 64,
        ffn_dim: int = 832,
        layer_pattern: tuple[str, ...] = ("global",),
        camera_encoding: str = "prope",
        rope_axes_dim: tuple[int, int, int] = (12, 12, 8),
        rope_theta: float = 100.0,
        rope_time_scale: float = 24.0,
        sample_size: int = 64,
        norm_eps: float = 1e-6,
        max_focal_length: float | None = None,
    ):
        super().__init__()
        check_config(self.config, LAYER_KINDS, CAMERA_ENCODINGS)
        dim = num_attention_heads * attention_head_dim
        self.out_channels = out_channels or in_channels

        # 1. Tokens, with channels before rows and columns inside a patch, as in a flattened convolution
        self.patch_embed = nn.Linear(in_channels * patch_size**2, dim)

        # 2. Positions and timesteps
        self.rope = KaleidoRotaryEmbedding(rope_axes_dim, rope_theta, rope_time_scale, sample_size // patch_size)
        self.time_embed = KaleidoTimeEmbedding(dim)

        # 3. Blocks
        self.transformer_blocks = nn.ModuleList(
            KaleidoTransformerBlock(
                dim=dim,
                num_attention_heads=num_attention_heads,
                num_key_value_heads=num_key_value_heads,
                attention_head_dim=attention_head_dim,
                ffn_dim=ffn_dim,
                kind=layer_pattern[index % len(layer_pattern)],
                norm_eps=norm_eps,
            )
            for index in range(num_layers)
        )

        # 4. Output
        self.norm_out = KaleidoAdaRMSNorm(dim, norm_eps)
        self.scale_shift_table = nn.Parameter(torch.zeros(2, dim))
        self.proj_out = nn.Linear(dim, self.out_channels * patch_size**2)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

        self.gradient_checkpointing = False

    @classmethod
    def from_preset(cls, name: str, **overrides) -> "KaleidoTransformer3DModel":
        """A model with random weights and the architecture of a preset: `tiny`, `small`, `base`, `large` or `xl`.
        `overrides` replace entries of its config.

        Args:
            name (`str`): of the preset.
            overrides (`Any`): entries of the config.
        """
        if name not in KALEIDO_PRESETS:
            raise ValueError(f"`name` must be one of {', '.join(KALEIDO_PRESETS)}, got {name!r}.")
        return cls(**{**KALEIDO_PRESETS[name], **overrides})

    @scales_adapters
    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        poses: torch.Tensor | None = None,
        intrinsics: torch.Tensor | None = None,
        times: torch.Tensor | None = None,
        view_groups: Sequence[int] | torch.Tensor | None = None,
        num_targets: int | None = None,
        cache: KaleidoReferenceCache | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> KaleidoTransformerOutput | tuple[torch.Tensor]:
        """
        Predicts the target views.

        Args:
            hidden_states (`torch.Tensor` of shape `[B, V, in_channels, H, W]`):
                Views, memory first: clean memory, noisy targets. With a `cache`: the targets only, or, with
                `num_targets=0`, further memory.
            timestep (`torch.Tensor` of shape `[B, V]`):
                0 for clean views, 1000 sigma for targets.
            poses (`torch.Tensor` of shape `[B, V, 4, 4]`, *optional*):
                `world_from_camera` in a normalised scene (see [`scene_frame`]), OpenCV axes. Not given: no cameras,
                as in video.
            intrinsics (`torch.Tensor` of shape `[B, V, 3, 3]`, *optional*):
                Normalised by width and height. Needed beside `poses` by `camera_encoding="prope"`; `"gta"` does not
                read them.
            times (`torch.Tensor` of shape `[B, V]`, *optional*):
                Seconds. Not given: a still world.
            view_groups (`Sequence[int]` of length V, *optional*):
                Non-decreasing group numbers: memory groups, then target groups. A memory view attends to its own and
                to earlier memory groups; a target to the whole memory and to its own group. Default: one group of
                each.
            num_targets (`int`, *optional*):
                M: the last M views are predicted. Required without a `cache`; with one, all V (default) or 0, which
                encodes the views into the cache.
            cache ([`KaleidoReferenceCache`], *optional*):
                Encoded memory that the views attend to, made with the same LoRA. Grown in place by `num_targets=0`.
            attention_kwargs (`dict`, *optional*):
                `scale` multiplies LoRA layers; anything else reaches the attention processor.
            return_dict (`bool`, defaults to `True`):
                Whether to return a [`KaleidoTransformerOutput`] instead of a tuple.

        Returns:
            [`KaleidoTransformerOutput`] or `tuple`: `sample` of shape `[B, M, out_channels, H, W]`.
        """
        num_targets = self._check_inputs(hidden_states, timestep, poses, intrinsics, times, num_targets, cache)
        groups = _view_groups(view_groups, hidden_states.shape[1], num_targets)
        if cache is not None:
            cache.keep_to(self.adapter_state())
        patch_size, (height, width) = self.config.patch_size, hidden_states.shape[-2:]

        # A copy and not a view, as the blocks return it: else torch.compile compiles the first block for itself
        hidden_states = self.patch_embed(_patchify(hidden_states, patch_size)).clone()  # [B, V, L, C]
        embedding, modulation = self.time_embed(timestep)
        positions = self._positions(poses, intrinsics, times, height // patch_size, width // patch_size, timestep)

        for index, block in enumerate(self.transformer_blocks):
            kind = block.attn.kind
            memory = None if cache is None or kind == "view" else cache.at(index, hidden_states.shape[1])
            inputs = (hidden_states, modulation, positions[kind], groups, memory, attention_kwargs)
            if torch.is_grad_enabled() and self.gradient_checkpointing and cache is None:
                hidden_states = self._gradient_checkpointing_func(block, *inputs)
            else:
                hidden_states = block(*inputs)

        if cache is not None and groups.memory:
            tokens = (height // patch_size) * (width // patch_size)  # of all ranks
            cache.commit(sum(groups.memory), len(hidden_states), tokens, poses is not None, times is not None)
        if not num_targets:  # encoded, and nothing to predict: kernels of 8 bits take no empty matrices
            sample = hidden_states.new_empty(len(hidden_states), 0, self.out_channels, height, width)
            return KaleidoTransformerOutput(sample=sample) if return_dict else (sample,)
        hidden_states = hidden_states[:, hidden_states.shape[1] - num_targets :]
        embedding = embedding[:, embedding.shape[1] - num_targets :]
        shift, scale = (embedding.unsqueeze(2) + self.scale_shift_table).to(hidden_states.dtype).unsqueeze(3).unbind(2)
        hidden_states = self.proj_out(self.norm_out(hidden_states, 1 + scale, shift))
        sample = _unpatchify(hidden_states, patch_size, height, width)
        return KaleidoTransformerOutput(sample=sample) if return_dict else (sample,)

    def encode_views(
        self,
        hidden_states: torch.Tensor,
        poses: torch.Tensor | None = None,
        intrinsics: torch.Tensor | None = None,
        times: torch.Tensor | None = None,
        view_groups: Sequence[int] | torch.Tensor | None = None,
        cache: KaleidoReferenceCache | None = None,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> KaleidoReferenceCache:
        """
        Encodes clean views into a cache: `forward` with `num_targets=0` and timestep 0.

        Args: as for [`~KaleidoTransformer3DModel.forward`].

        Returns:
            [`KaleidoReferenceCache`]: `cache`, grown in place, or a new one.
        """
        cache = KaleidoReferenceCache() if cache is None else cache
        timestep = torch.zeros(hidden_states.shape[:2], device=hidden_states.device, dtype=torch.float32)
        self(
            hidden_states,
            timestep,
            poses=poses,
            intrinsics=intrinsics,
            times=times,
            view_groups=view_groups,
            num_targets=0,
            cache=cache,
            attention_kwargs=attention_kwargs,
        )
        return cache

    def _positions(self, poses, intrinsics, times, rows: int, columns: int, like: torch.Tensor):
        """Positions for each layer kind. Inside one view camera and time cancel, so `"view"` layers leave them out."""
        dtype = torch.promote_types(torch.float32, like.dtype if poses is None else poses.dtype)
        projection = inverse = None
        if poses is not None:
            projection, inverse = _projection(poses.to(dtype), intrinsics, self.config.camera_encoding)
        zero = torch.zeros(1, 1, device=like.device, dtype=dtype)
        still, moving = (self.rope(rows, columns, x) for x in (zero, zero if times is None else times.to(dtype)))
        return {"global": ViewPositions(projection, inverse, *moving), "view": ViewPositions(None, None, *still)}

    def _check_inputs(self, hidden_states, timestep, poses, intrinsics, times, num_targets, cache) -> int:
        """Checks the arguments of `forward`; returns the number of targets."""
        config = self.config
        if hidden_states.ndim != 5 or hidden_states.shape[2] != config.in_channels:
            raise ValueError(
                f"`hidden_states` must have shape [B, V, {config.in_channels}, H, W], got {list(hidden_states.shape)}."
            )
        batch, views, _, height, width = hidden_states.shape
        if height % config.patch_size or width % config.patch_size:
            raise ValueError(
                f"Height and width of `hidden_states` must be multiples of the patch size {config.patch_size}, got"
                f" {height} x {width}."
            )
        if poses is not None and intrinsics is None and config.camera_encoding == "prope":
            raise ValueError("`intrinsics` are needed beside `poses` by `camera_encoding='prope'`.")
        if poses is None and intrinsics is not None:
            raise ValueError("`intrinsics` were given without `poses`.")
        for name, value, event in (
            ("timestep", timestep, ()),
            ("poses", poses, (4, 4)),
            ("intrinsics", intrinsics, (3, 3)),
            ("times", times, ()),
        ):
            if value is not None and value.shape != (batch, views, *event):
                raise ValueError(f"`{name}` must have shape {[batch, views, *event]}, got {list(value.shape)}.")
        if cache is None:
            if num_targets is None:
                raise ValueError("`num_targets` is required without a `cache`.")
            if not 0 < num_targets <= views:
                raise ValueError(f"`num_targets` must lie between 1 and the {views} views, got {num_targets}.")
            return num_targets
        tokens = (height // config.patch_size) * (width // config.patch_size)
        if cache.num_views and (cache.batch_size, cache.tokens_per_view) != (batch, tokens):
            raise ValueError(
                f"`cache` was made for {cache.batch_size} rows of views with {cache.tokens_per_view} tokens, but"
                f" `hidden_states` has {batch} rows of views with {tokens} tokens."
            )
        for name, given, had in (("poses", poses, cache.has_poses), ("times", times, cache.has_times)):
            if cache.num_views and (given is not None) != had:
                there = "with" if had else "without"
                raise ValueError(f"`cache` holds views {there} `{name}`; those that attend to it must be given alike.")
        if num_targets not in (None, 0, views):
            raise ValueError(f"With a `cache`, `num_targets` must be 0 or all {views} views, got {num_targets}.")
        return views if num_targets is None else num_targets


def _view_groups(view_groups, num_views: int, num_targets: int) -> ViewGroups:
    """Group sizes from group numbers `[V]`."""
    num_memory = num_views - num_targets
    if view_groups is None:
        return ViewGroups(*((count,) if count else () for count in (num_memory, num_targets)))
    numbers = view_groups.tolist() if torch.is_tensor(view_groups) else list(view_groups)
    if len(numbers) != num_views or any(a > b for a, b in zip(numbers, numbers[1:])):
        raise ValueError(f"`view_groups` must be {num_views} non-decreasing numbers, got {numbers}.")
    if 0 < num_memory < num_views and numbers[num_memory - 1] == numbers[num_memory]:
        raise ValueError(f"`view_groups` must not put memory and targets into one group, got {numbers}.")
    memory, targets = (
        tuple(len(list(run)) for _, run in groupby(part)) for part in (numbers[:num_memory], numbers[num_memory:])
    )
    return ViewGroups(memory, targets)


def _beside(memory: torch.Tensor, x: torch.Tensor, count: int) -> torch.Tensor:
    """The memory `[B, N, ...]` before each of `count` equal groups of `x` `[B, count * size, ...]`, groups in the
    batch: `[B * count, N + size, ...]`."""
    memory = memory.unsqueeze(1).expand(-1, count, *memory.shape[1:])
    return torch.cat([memory, x.unflatten(1, (count, -1))], dim=2).flatten(0, 1)


def _projection(
    poses: torch.Tensor, intrinsics: torch.Tensor | None, camera_encoding: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """`P = lift(K) @ camera_from_world` and its inverse, `[B, V, 4, 4]`.

    `lift` puts the normalised intrinsics, their principal point measured from the image centre, into a 4x4 identity
    (PRoPE, github.com/liruilong940607/prope). GTA (github.com/autonomousvision/gta) is the same without intrinsics.
    """
    camera_from_world = invert_rigid(poses)
    if camera_encoding == "gta":
        return camera_from_world, poses
    lifted = torch.eye(4, device=poses.device, dtype=poses.dtype).repeat(*poses.shape[:2], 1, 1)
    lifted[..., :3, :3] = intrinsics.to(poses.dtype)
    lifted[..., :2, 2] -= 0.5
    unlifted = lifted.clone()
    unlifted[..., :3, :3] = invert_intrinsics(lifted[..., :3, :3])
    return lifted @ camera_from_world, poses @ unlifted


def _patchify(x: torch.Tensor, patch_size: int) -> torch.Tensor:
    """`[B, V, C, H, W]` to `[B, V, L, C * patch_size^2]`."""
    x = x.unflatten(-1, (-1, patch_size)).unflatten(-3, (-1, patch_size))  # [B, V, C, rows, p, columns, p]
    return x.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(2, 3)


def _unpatchify(x: torch.Tensor, patch_size: int, height: int, width: int) -> torch.Tensor:
    """The inverse of `_patchify`."""
    x = x.unflatten(-1, (-1, patch_size, patch_size)).unflatten(2, (height // patch_size, width // patch_size))
    return x.permute(0, 1, 4, 2, 5, 3, 6).flatten(5).flatten(3, 4)
