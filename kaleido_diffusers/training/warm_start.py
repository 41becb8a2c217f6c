"""Warm starts: a Kaleido whose blocks are those of an open image diffusion transformer.

Lumina-Image 2.0 and Z-Image (in diffusers: [`Lumina2Transformer2DModel`], [`ZImageTransformer2DModel`]) have blocks of
our form: RMS norms on both sides of attention and SwiGLU, scales and gates by the timestep, normalised queries and
keys. Their blocks are copied. What is computed from the timestep is fitted, since they project it in every block and
we do once. What reads text stays behind.
"""

import copy
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import diffusers
import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers.models.modeling_utils import ModelMixin

from ..loaders.fitting import channels_first, on_meta
from ..models.transformer_kaleido import KaleidoTimeEmbedding, KaleidoTransformer3DModel


__all__ = ["DONORS", "TensorOrigin", "WarmStart", "load_donor", "warm_start"]

How = Literal["reused", "fitted", "new"]

# Blocks that image tokens pass, in that order; those of `context_refiner` see text alone.
STAGES = ("noise_refiner", "layers")

# Noise levels on which modulation is fitted, and the share of the features' variance that the fit may not resolve.
NUM_SIGMAS, RIDGE = 257, 1e-5


class _Block(NamedTuple):
    """Names inside a donor's block: what ours are called there, and its modulation from the embedded timestep."""

    names: Mapping[str, str]
    modulation: Callable[[nn.Module], nn.Module]


def _named(attention: str, norms: str, gate: str, up: str, down: str) -> dict[str, str]:
    names = {f"attn.{name}": f"{attention}.{name}" for name in "to_q to_k to_v norm_q norm_k to_out.0".split()}
    names |= dict(zip(("norm1", "norm2", "norm3", "norm4"), norms.split()))
    layers = zip(("gate_proj", "up_proj", "down_proj"), (gate, up, down))
    names |= {f"ff.{ours}": f"feed_forward.{theirs}" for ours, theirs in layers}
    return {f"{ours}.weight": f"{theirs}.weight" for ours, theirs in names.items()}


# Classes of diffusers that can be started from.
DONORS: dict[str, _Block] = {
    "Lumina2Transformer2DModel": _Block(
        _named("attn", "norm1.norm norm2 ffn_norm1 ffn_norm2", "linear_1", "linear_3", "linear_2"),
        lambda block: nn.Sequential(nn.SiLU(), block.norm1.linear),
    ),
    "ZImageTransformer2DModel": _Block(
        _named("attention", "attention_norm1 attention_norm2 ffn_norm1 ffn_norm2", "w1", "w3", "w2"),
        lambda block: block.adaLN_modulation,
    ),
}


@dataclass
class TensorOrigin:
    """
    Where the weights of a warm start come from: one row for the same tensor of all blocks.

    Args:
        name (`str`): of our tensor; `N` stands for the number of a block.
        origin (`str`): of the donor's tensor, or what it was fitted to; empty for new ones.
        how (`str`): `"reused"`: the donor's numbers, at most in another order; `"fitted"`: computed from the donor's;
            `"new"`: random.
        note (`str`): what was done, in words.
        parameters (`int`): numbers in all tensors of the row.
    """

    name: str
    origin: str
    how: How
    note: str
    parameters: int


@dataclass
class WarmStart:
    """
    A model that was started from a donor.

    Args:
        transformer ([`KaleidoTransformer3DModel`]): predicts velocities.
        origins (`list[TensorOrigin]`): one row a tensor.
        explained (`float`): share of the variance of the donor's modulation, over noise levels and blocks, that the
            fitted one follows.
        left_behind (`dict[str, int]`): the donor's parts that are not used, with their parameters.
    """

    transformer: KaleidoTransformer3DModel
    origins: list[TensorOrigin]
    explained: float
    left_behind: dict[str, int]

    def share(self, how: How) -> float:
        """Share of our parameters that came in one way: `"reused"`, `"fitted"` or `"new"`.

        Args:
            how (`How`): the way.
        """
        return sum(row.parameters for row in self.origins if row.how == how) / self.transformer.num_parameters()


def load_donor(path: str | os.PathLike, dtype: torch.dtype = torch.float32) -> ModelMixin:
    """
    Loads a donor.

    Args:
        path (`str` or `os.PathLike`): Hub id of a pipeline, or folder of a pipeline or of its transformer.
        dtype (`torch.dtype`, defaults to `torch.float32`): precision, which the warm start takes over.

    Raises:
        `ValueError`: for models of other classes than [`DONORS`].
    """
    folder = Path(path) / "transformer"
    subfolder = "transformer" if folder.is_dir() or not Path(path).exists() else None
    try:
        config = KaleidoTransformer3DModel.load_config(path, subfolder=subfolder)
    except OSError as error:
        raise ValueError(f"{path} holds no model of diffusers ({' '.join(str(error).split())[:200]}).") from error
    name = config.get("_class_name")
    if name not in DONORS:
        raise ValueError(f"{path} holds a {name}; warm starts are made from {' and '.join(DONORS)}.")
    return getattr(diffusers, name).from_pretrained(path, subfolder=subfolder, dtype=dtype).eval()


@torch.no_grad()
def warm_start(
    donor: ModelMixin,
    sample_size: int | None = None,
    patch_size: int | None = None,
    rope_axes_dim: tuple[int, int, int] | None = None,
    layer_pattern: tuple[str, ...] = ("global",),
    camera_encoding: str = "prope",
    seed: int = 0,
) -> WarmStart:
    """
    Makes a Kaleido of a donor's width and depth.

    Channels of a head change their order: what turned with column and row in the donor turns with column and row by
    the same angles in ours, and what turned with the place in the text, which an image does not have, carries cameras
    and time. Without cameras and times, scores of a still image's attention are the donor's. Its values are not: ours
    are encoded as queries and keys are, the donor's are not encoded at all.

    Args:
        donor ([`Lumina2Transformer2DModel`] or [`ZImageTransformer2DModel`]):
            Not changed.
        sample_size (`int`, *optional*):
            Height and width of a view in latent cells (or pixels): the donor's when not given, 64 if it has none.
        patch_size (`int`, *optional*):
            Which of a Z-Image's patch sizes; its first when not given.
        rope_axes_dim (`tuple[int, int, int]`, *optional*):
            Channels of a head that turn with column, row and time. When not given: as many as in the donor for
            columns and rows, and a quarter of what is left, or a little more, for time. Smaller ones leave more to
            cameras, and drop the slowest turns.
        layer_pattern (`tuple[str, ...]`, defaults to `("global",)`):
            As in [`KaleidoTransformer3DModel`].
        camera_encoding (`str`, defaults to `"prope"`):
            As in [`KaleidoTransformer3DModel`].
        seed (`int`, defaults to `0`):
            Decides what is new.

    Raises:
        `ValueError`: for models that are no donors, lack a tensor (adapters hide some), do not normalise queries and
            keys, or have channels that do not divide as asked.
    """
    name = type(donor).__name__
    if name not in DONORS:
        raise ValueError(f"`donor` must be a {' or a '.join(DONORS)}, got a {name}.")
    facts = _facts(donor, patch_size)
    config, order = _head_layout(facts, rope_axes_dim)
    size = sample_size or facts.sample_size
    config |= {"sample_size": size, "layer_pattern": tuple(layer_pattern), "camera_encoding": camera_encoding}
    transformer = on_meta(KaleidoTransformer3DModel, {**facts.config, **config})
    expected, state = transformer.state_dict(), donor.state_dict()

    tensors, sources = _reused(state, facts, DONORS[name].names, order)
    wrong = [ours for ours, value in tensors.items() if value is None or value.shape != expected[ours].shape]
    if wrong:
        listed = ", ".join(f"{sources[ours]} (for {ours})" for ours in wrong)
        raise ValueError(f"The donor's tensors are missing or of another shape: {listed}. Unload adapters first.")
    fitted, explained = _fitted(donor, facts, DONORS[name].modulation, seed)
    tensors |= fitted
    transformer.load_state_dict({ours: tensors[ours] for ours in expected}, strict=True, assign=True)
    sources |= {f"proj_out.{end}": f"{facts.output}.{end}" for end in ("weight", "bias")}
    origins = _origins({ours: tensors[ours] for ours in expected}, sources)
    return WarmStart(transformer.eval(), origins, explained, _left_behind(state, set(sources.values())))


# What donors are


class _Facts(NamedTuple):
    """What differs between the classes of donors, outside of their blocks."""

    config: dict[str, Any]  # ours, without the head's layout
    axes: tuple[int, ...]  # channels of a head that turn with the place in the text, row, column
    theta: float
    sample_size: int
    embed: str  # patch embedding
    output: str  # output layer
    embed_time: Callable[[torch.Tensor], torch.Tensor]  # from the donor's timestep, 1 - sigma
    output_scale: nn.Module  # from the embedded timestep


def _facts(donor: ModelMixin, patch_size: int | None) -> _Facts:
    read = _facts_of_lumina2 if type(donor).__name__ == "Lumina2Transformer2DModel" else _facts_of_z_image
    return read(donor, patch_size)


def _facts_of_lumina2(donor: ModelMixin, patch_size: int | None) -> _Facts:
    config = donor.config
    if patch_size not in (None, config.patch_size):
        raise ValueError(f"`patch_size` must be the donor's {config.patch_size}, got {patch_size}.")
    embedder = copy.deepcopy(donor.time_caption_embed.timestep_embedder).float()
    block = donor.layers[0]
    return _Facts(
        config={
            "patch_size": config.patch_size,
            "in_channels": config.in_channels,
            "out_channels": config.out_channels,
            "num_layers": sum(len(getattr(donor, stage)) for stage in STAGES),
            "num_attention_heads": config.num_attention_heads,
            "num_key_value_heads": config.num_kv_heads or config.num_attention_heads,
            "attention_head_dim": config.hidden_size // config.num_attention_heads,
            "ffn_dim": block.feed_forward.linear_1.out_features,
            "norm_eps": config.norm_eps,
        },
        axes=tuple(config.axes_dim_rope),
        theta=donor.rope_embedder.theta,
        sample_size=config.sample_size,
        embed="x_embedder",
        output="norm_out.linear_2",
        embed_time=lambda timestep: embedder(donor.time_caption_embed.time_proj(timestep)),
        output_scale=nn.Sequential(nn.SiLU(), donor.norm_out.linear_1),
    )


def _facts_of_z_image(donor: ModelMixin, patch_size: int | None) -> _Facts:
    config = donor.config
    sizes = [size for size, frames in zip(config.all_patch_size, config.all_f_patch_size) if frames == 1]
    patch_size = patch_size or next(iter(sizes), None)
    if patch_size not in sizes:
        raise ValueError(
            f"`patch_size` must be one of the donor's {sizes} (for patches of one frame), got {patch_size}."
        )
    if not config.qk_norm:
        raise ValueError("The donor does not normalise queries and keys (`qk_norm=False`), which Kaleido does.")
    embedder, key = copy.deepcopy(donor.t_embedder).float(), f"{patch_size}-1"
    block = donor.layers[0]
    return _Facts(
        config={
            "patch_size": patch_size,
            "in_channels": config.in_channels,
            "num_layers": sum(len(getattr(donor, stage)) for stage in STAGES),
            "num_attention_heads": config.n_heads,
            "num_key_value_heads": config.n_heads,  # whatever `n_kv_heads` says: diffusers does not read it
            "attention_head_dim": config.dim // config.n_heads,
            "ffn_dim": block.feed_forward.w1.out_features,
            "norm_eps": config.norm_eps,
        },
        axes=tuple(config.axes_dims),
        theta=config.rope_theta,
        sample_size=64 // patch_size * patch_size,
        embed=f"all_x_embedder.{key}",
        output=f"all_final_layer.{key}.linear",
        embed_time=lambda timestep: embedder(timestep * config.t_scale),
        output_scale=donor.all_final_layer[key].adaLN_modulation,
    )


# Tensors


def _head_layout(facts: _Facts, rope_axes_dim: tuple[int, int, int] | None) -> tuple[dict[str, Any], torch.Tensor]:
    """Entries of our config, and for each channel of our heads the donor's.

    The donor turns neighbouring channels, for its axes in order; we turn channels `i` and `i + R/2` of the last R. Of
    each axis of n channels the first m / 2 turns are kept: with the base theta^(m/n) they are the donor's.
    """
    text, rows, columns = facts.axes
    if rope_axes_dim is None:
        camera = 4 * max(3 * text // 16, 1)
        rope_axes_dim = (columns, rows, max(text - camera, 0))
    x, y, time = rope_axes_dim
    if x > columns or y > rows or x * rows != y * columns:
        raise ValueError(
            f"`rope_axes_dim` must keep the proportion of the donor's {columns} and {rows} channels of columns and"
            f" rows, and be no larger, got {rope_axes_dim}."
        )
    pairs = torch.arange(sum(facts.axes)).reshape(-1, 2)
    of_text, of_rows, of_columns = pairs.split([text // 2, rows // 2, columns // 2])
    spare = torch.cat([of_text, of_rows[y // 2 :], of_columns[x // 2 :]])
    if 2 * len(spare) - time < 4:
        raise ValueError(
            f"The donor's heads of {2 * len(pairs)} channels leave {2 * len(spare) - time} to cameras, which need 4 at"
            " least: pass a smaller `rope_axes_dim`."
        )
    cameras, times = spare.split([len(spare) - time // 2, time // 2])
    turning = torch.cat([of_columns[: x // 2], of_rows[: y // 2], times])
    order = torch.cat([cameras.flatten(), turning[:, 0], turning[:, 1]])
    return {"rope_axes_dim": (x, y, time), "rope_theta": float(facts.theta ** (x / columns))}, order


def _reused(
    state: Mapping[str, torch.Tensor], facts: _Facts, names: Mapping[str, str], order: torch.Tensor
) -> tuple[dict[str, torch.Tensor | None], dict[str, str]]:
    """Tensors by our names (`None` where the donor lacks them), and the donor's names of them."""
    sources = {f"patch_embed.{end}": f"{facts.embed}.{end}" for end in ("weight", "bias")}
    blocks = _block_names(state)
    for number, block in enumerate(blocks):
        sources |= {f"transformer_blocks.{number}.{ours}": f"{block}.{theirs}" for ours, theirs in names.items()}
    tensors = {}
    for ours, theirs in sources.items():
        value = state.get(theirs)
        if value is not None and re.search(r"\.(to|norm)_[qk]\.", ours):
            value = value.unflatten(0, (-1, len(order)))[:, order].flatten(0, 1)
        elif value is not None and ours == "patch_embed.weight":
            value = channels_first(value, 1, facts.config["patch_size"])
        elif value is not None:
            value = value.clone()
        tensors[ours] = value
    return tensors, sources


def _block_names(state: Mapping[str, torch.Tensor]) -> list[str]:
    found = {match[0] for name in state if (match := re.match(rf"(?:{'|'.join(STAGES)})\.\d+", name))}
    return sorted(found, key=lambda name: (STAGES.index(name.split(".")[0]), int(name.split(".")[1])))


# Fits


def _fitted(
    donor: ModelMixin, facts: _Facts, modulation: Callable[[nn.Module], nn.Module], seed: int
) -> tuple[dict[str, torch.Tensor], float]:
    """What follows from the timestep, and the output layer, which runs from noise to data in donors (and so do their
    timesteps: 1 - sigma); and the share of the modulation's variance that is explained."""
    sigma = torch.linspace(0, 1, NUM_SIGMAS, dtype=torch.float32)
    embedded = facts.embed_time(1 - sigma)
    blocks = [block for stage in STAGES for block in getattr(donor, stage)]
    time_embed = _new_time_embedding(facts, seed)
    tables, explained = _fit_modulation(
        time_embed, sigma, lambda: (_modulation(modulation(block), embedded) for block in blocks)
    )
    tensors = {f"time_embed.{name}": value for name, value in time_embed.state_dict().items()}
    tensors |= {f"transformer_blocks.{index}.scale_shift_table": table for index, table in enumerate(tables)}

    # Donors end in LayerNorm, scale and a matrix. Ours is an RMSNorm: the matrix takes the mean away, and the scale
    # at a middling noise level.
    state = donor.state_dict()
    weight, bias = (state[f"{facts.output}.{end}"] for end in ("weight", "bias"))
    scaled = weight.float() * (1 + _as_float(facts.output_scale)(embedded).mean(0))
    output = scaled - scaled.mean(1, keepdim=True)
    patch_size = facts.config["patch_size"]
    tensors["proj_out.weight"] = channels_first(-output, 0, patch_size).to(weight.dtype)
    tensors["proj_out.bias"] = channels_first(-bias, 0, patch_size).clone()
    tensors["norm_out.weight"] = torch.ones_like(weight[0])
    # Shift and scale of our output are the embedded timestep itself, which is new: the tables take its mean away.
    tensors["scale_shift_table"] = -time_embed(1000 * sigma)[0].mean(0).repeat(2, 1)
    return tensors, explained


def _new_time_embedding(facts: _Facts, seed: int) -> KaleidoTimeEmbedding:
    """A random one that changes slowly with the noise level, so that a fit at some levels holds between them: the
    fastest quarter of the sines and cosines starts at zero weight."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        time_embed = KaleidoTimeEmbedding(facts.config["num_attention_heads"] * facts.config["attention_head_dim"])
    frequencies = time_embed.embedder.linear_1.weight.unflatten(1, (2, -1))  # cosines, sines; fast to slow
    frequencies[:, :, : frequencies.shape[-1] // 4] = 0
    return time_embed


def _as_float(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).float()


def _modulation(project: nn.Module, embedded: torch.Tensor) -> torch.Tensor:
    """A donor's modulation in our form, `[S, 6, C]`: it has no shifts, and its gates pass through tanh."""
    scale_attn, gate_attn, scale_ff, gate_ff = _as_float(project)(embedded).chunk(4, dim=-1)
    none = torch.zeros_like(scale_attn)
    return torch.stack([none, scale_attn, gate_attn.tanh(), none, scale_ff, gate_ff.tanh()], dim=1)


def _fit_modulation(
    time_embed: KaleidoTimeEmbedding, sigma: torch.Tensor, modulations: Callable[[], Iterator[torch.Tensor]]
) -> tuple[list[torch.Tensor], float]:
    """Fits the shared projection of `time_embed`, in place, to the mean of the blocks' modulations `[S, 6, C]`; each
    block's table takes how its own mean over noise levels differs. That is the best of all sums of a shared function
    and a constant. Returns the tables, and the share of variance that is explained."""
    total, means = 0, []
    for modulation in modulations():
        total = total + modulation
        means.append(modulation.mean(0))
    shared, center = total / len(means), torch.stack(means).mean(0)

    features = F.silu(time_embed(1000 * sigma)[0])
    centred = features - features.mean(0)
    # Ridge regression in its dual form: fewer noise levels than channels
    gram = centred @ centred.T
    gram += RIDGE * gram.trace() / len(gram) * torch.eye(len(gram), dtype=torch.float32)
    weight = torch.linalg.solve(gram, (shared - center).flatten(1)).T @ centred
    time_embed.linear.weight.copy_(weight)
    time_embed.linear.bias.copy_(center.flatten() - weight @ features.mean(0))

    tables = [mean - center for mean in means]
    fit, missed, whole = time_embed(1000 * sigma)[1], 0.0, 0.0
    for modulation, table in zip(modulations(), tables):
        missed += (modulation - fit - table).square().sum().item()
        whole += (modulation - center).square().sum().item()
    return tables, 1 - missed / whole if whole else 1.0


# What is told

_NOTES: list[tuple[str, How, str]] = [
    (r"patch_embed\.weight$", "reused", "patches with channels first"),
    (r"\.(to|norm)_[qk]\.", "reused", "channels of a head in our order"),
    (r"time_embed\.embedder\.", "new", "random, the fastest quarter of the frequencies at zero"),
    (r"time_embed\.linear\.", "fitted", "to their modulation, the mean of all blocks"),
    (r"transformer_blocks\..*\.scale_shift_table$", "fitted", "to their modulation, the mean over noise levels"),
    (r"norm_out\.", "new", "ones"),
    (r"scale_shift_table$", "new", "takes the mean of the new time embedding away"),
    (r"proj_out\.weight$", "fitted", "their scale and the mean of a LayerNorm taken in, sign turned"),
    (r"proj_out\.bias$", "reused", "sign turned"),
    (r"", "reused", "as it is"),
]


def _origins(tensors: Mapping[str, torch.Tensor], sources: Mapping[str, str]) -> list[TensorOrigin]:
    rows: dict[str, TensorOrigin] = {}
    for name, value in tensors.items():
        general = re.sub(r"^(transformer_blocks)\.\d+\.", r"\1.N.", name)
        source = re.sub(rf"^(?:{'|'.join(STAGES)})\.\d+\.", "blocks.N.", sources.get(name, ""))
        how, note = next((how, note) for pattern, how, note in _NOTES if re.search(pattern, name))
        row = rows.setdefault(general, TensorOrigin(general, source, how, note, 0))
        row.parameters += value.numel()
    return list(rows.values())


def _left_behind(state: Mapping[str, torch.Tensor], used: Collection[str]) -> dict[str, int]:
    """Parameters by the donor's parts."""
    counts: dict[str, int] = {}
    for name, value in state.items():
        if name not in used:
            part = name.partition(".")[0]
            counts[part] = counts.get(part, 0) + value.numel()
    return counts
