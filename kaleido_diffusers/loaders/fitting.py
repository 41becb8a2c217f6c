"""Weights fitted to [`KaleidoTransformer3DModel`]: config told from shapes, layers split, no tensor left over."""

import inspect
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from diffusers.models.modeling_utils import ModelMixin

from .checkpoints import Checkpoint
from .errors import CheckpointError
from .writing import DTYPE_NAMES


__all__ = [
    "ConvertedWeights",
    "channels_first",
    "config_defaults",
    "convert_weights",
    "infer_config",
    "load_transformer",
    "on_meta",
]

# Layers that hold several of ours, stacked along their outputs (all query heads, then key heads, then value heads).
FUSED = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "up_gate_proj": ("up_proj", "gate_proj"),
}

# What shapes cannot tell. `patch_size` and `in_channels` join where the patch embedding is a matrix.
ASSUMED = tuple("layer_pattern camera_encoding rope_axes_dim rope_theta rope_time_scale sample_size norm_eps".split())


class ConvertedWeights(NamedTuple):
    """Weights `tensors` that fit a transformer of `config` exactly, and the entries of `config` that were assumed."""

    tensors: dict[str, torch.Tensor]
    config: dict[str, Any]
    assumed: list[str]


def infer_config(
    tensors: Mapping[str, torch.Tensor], given: Mapping[str, Any], defaults: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """
    The config that shapes tell: layers, heads, key heads, head width, inner width, channels and patch size.

    Args:
        tensors (`Mapping[str, torch.Tensor]`): weights under our names, fused or not.
        given (`Mapping[str, Any]`): entries of the config that are known.
        defaults (`Mapping[str, Any]`): entries of the config for what shapes do not tell.

    Returns:
        `tuple[dict, list[str]]`: the config, and the entries that neither shapes tell nor `given`.
    """
    block = "transformer_blocks.0"
    fused = f"{block}.attn.to_qkv.weight"
    keys = fused if fused in tensors else f"{block}.attn.to_k.weight"
    needed = {f"{block}.norm1.weight": 1, f"{block}.attn.norm_q.weight": 1, keys: 2, f"{block}.ff.down_proj.weight": 2}
    needed |= {"patch_embed.weight": 2, "proj_out.weight": 2}
    absent = [name for name, axes in needed.items() if name not in tensors or tensors[name].ndim < axes]
    if absent:
        held = sorted({re.sub(r"\b\d+\b", "N", name) for name in tensors})
        raise CheckpointError(
            f"The config cannot be told from the shapes, for want of {', '.join(absent)}. There are {', '.join(held)}."
            " --rename takes rules for other names."
        )
    shapes = {name: _shape(tensors[name]) for name in needed}
    width, head = shapes[f"{block}.norm1.weight"][0], shapes[f"{block}.attn.norm_q.weight"][0]
    key_rows = (shapes[keys][0] - width) // 2 if keys == fused else shapes[keys][0]
    if width % head or key_rows < head or key_rows % head:
        raise CheckpointError(
            f"Heads of {head} channels (`{block}.attn.norm_q.weight`) do not divide the width {width} and the"
            f" {key_rows} channels of keys."
        )
    blocks = {match[1] for name in tensors if (match := re.match(r"transformer_blocks\.(\d+)\.", name))}
    told = {
        "num_layers": len(blocks),
        "num_attention_heads": width // head,
        "num_key_value_heads": key_rows // head,
        "attention_head_dim": head,
        "ffn_dim": shapes[f"{block}.ff.down_proj.weight"][1],
    }
    patches, assumed = _infer_patches(tensors["patch_embed.weight"], width, given)
    told |= patches
    outputs = shapes["proj_out.weight"][0] // told["patch_size"] ** 2
    told["out_channels"] = None if outputs == told["in_channels"] else outputs
    guesses = {
        **defaults,
        "rope_axes_dim": _default_axes(head),
        "sample_size": max(defaults["sample_size"] // told["patch_size"], 1) * told["patch_size"],
    }
    assumed += [name for name in ASSUMED if name not in given]
    return {**{name: guesses[name] for name in ASSUMED}, **told, **given}, assumed


def _default_axes(head: int) -> tuple[int, int, int]:
    """Rotary channels of columns, rows and time: 12, 12 and 8 of 64, and near that share of other even halves."""
    side = 2 * round(3 * head / 32)
    return side, side, head // 2 - 2 * side


def _infer_patches(weight: torch.Tensor, width: int, given: Mapping[str, Any]) -> tuple[dict[str, int], list[str]]:
    """Channels and patch size, and which of them are assumed: a matrix tells their product alone."""
    if weight.ndim > 2:
        return {"in_channels": weight.shape[1], "patch_size": weight.shape[-1]}, []
    inputs = weight.shape[1] if weight.shape[0] == width else weight.shape[0]
    if "patch_size" in given:
        patch = given["patch_size"]
    elif "in_channels" in given:
        patch = max(math.isqrt(inputs // given["in_channels"]), 1)
    else:
        pixels = math.isqrt(inputs // 3)
        patch = pixels if inputs == 3 * pixels**2 else 2 if inputs % 4 == 0 else 1
    known = "patch_size" in given or "in_channels" in given
    return {"in_channels": inputs // patch**2, "patch_size": patch}, [] if known else ["patch_size", "in_channels"]


def convert_weights(
    model_class: type[ModelMixin],
    checkpoint: Checkpoint,
    given: Mapping[str, Any] | None = None,
    channels_last_patches: bool = False,
    keep_quantized: bool = False,
) -> ConvertedWeights:
    """
    Fits weights to our transformer: fused layers are split; patch embeddings that are convolutions or transposed, and
    modulation tables with an axis of one, become ours. Tensors stay memory mapped; those that GGUF has quantised
    become float32.

    Args:
        model_class (`type`): [`KaleidoTransformer3DModel`].
        checkpoint ([`Checkpoint`]): the weights.
        given (`Mapping[str, Any]`, *optional*): entries of the config, which go before those that the checkpoint has.
        channels_last_patches (`bool`, defaults to `False`): whether the output layer, and a patch embedding that is a
            matrix, have a patch as rows, columns, channels, as DiT's, not channels first.
        keep_quantized (`bool`, defaults to `False`): leave the matrices of the blocks as GGUF has them.

    Raises:
        [`CheckpointError`]: names every tensor that is left over, missing or of a wrong shape.
    """
    given = dict(given or {})
    tensors, assumed = {}, []
    for name, tensor in checkpoint.tensors.items():
        kept = keep_quantized and tensor.ndim == 2 and re.search(r"\.(attn|ff)\.", name)
        tensors[name] = _dequantized(tensor) if _is_gguf(tensor) and not kept else tensor
    if checkpoint.config is not None:
        stored = {key: value for key, value in checkpoint.config.items() if not key.startswith("_")}
        config = {**stored, **given}
    else:
        config, assumed = infer_config(tensors, given, config_defaults(model_class))
    model = on_meta(model_class, config)
    expected = model.state_dict()
    wrong = _split_fused(tensors, expected)
    for name in [name for name in tensors if name in expected]:
        fitted = _fitted(name, tensors[name], expected[name].shape)
        if fitted is None or not (fitted.dtype in DTYPE_NAMES or _is_gguf(fitted)):
            form = f"{list(tensors[name].shape)} in {tensors[name].dtype}".replace("torch.", "")
            wrong[name] = f"{name} (is {form}, must be {list(expected[name].shape)} in floating point)"
        elif channels_last_patches and name == "patch_embed.weight" and tensors[name].ndim == 2:
            fitted = channels_first(fitted, 1, model.config.patch_size)
        elif channels_last_patches and name.startswith("proj_out."):
            fitted = channels_first(fitted, 0, model.config.patch_size)
        tensors[name] = fitted
    left_over = [_told(name, checkpoint.origins) for name in tensors if name not in expected and name not in wrong]
    covered = {part for name in wrong for part in _parts_of(name)}
    missing = [name for name in expected if name not in tensors and name not in covered]
    problems = {"not known": left_over, "missing": missing, "of a wrong shape": list(wrong.values())}
    if any(problems.values()):
        listed = "; ".join(f"{what}: {', '.join(names)}" for what, names in problems.items() if names)
        raise CheckpointError(f"{checkpoint.path} does not fit. Tensors {listed}.")
    return ConvertedWeights({name: tensors[name] for name in expected}, config, assumed)


def load_transformer(model_class: type[ModelMixin], converted: ConvertedWeights) -> ModelMixin:
    """
    A transformer whose parameters are the tensors themselves, memory mapped where they were: nothing is allocated.

    Args:
        model_class (`type`): [`KaleidoTransformer3DModel`].
        converted ([`ConvertedWeights`]): its config and weights.
    """
    model = on_meta(model_class, converted.config)
    model.load_state_dict(converted.tensors, strict=True, assign=True)
    return model.eval()


def config_defaults(model_class: type[ModelMixin]) -> dict[str, Any]:
    """Entries of a model's config with their defaults.

    Args:
        model_class (`type`): [`KaleidoTransformer3DModel`].
    """
    parameters = inspect.signature(model_class.__init__).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name != "self"}


def on_meta(model_class: type[ModelMixin], config: Mapping[str, Any]) -> ModelMixin:
    """A model without memory for its weights. [`CheckpointError`] where the config makes none.

    Args:
        model_class (`type`): [`KaleidoTransformer3DModel`].
        config (`Mapping[str, Any]`): its config.
    """
    try:
        with torch.device("meta"):
            return model_class.from_config(config)
    except (TypeError, AttributeError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"The config says what no model can be made of: {error}.") from error


def _is_gguf(tensor: torch.Tensor) -> bool:
    return hasattr(tensor, "quant_shape")


def _dequantized(tensor: torch.Tensor) -> torch.Tensor:
    from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor  # which needs the package gguf

    return dequantize_gguf_tensor(tensor).float()


def _shape(tensor: torch.Tensor) -> torch.Size:
    """Of the values: GGUF's blocks of bytes have another."""
    return torch.Size(getattr(tensor, "quant_shape", tensor.shape))


def _parts_of(name: str) -> list[str]:
    """Our names of the layers in a fused one; none for other names."""
    stem, _, end = name.rpartition(".")
    stem, _, layer = stem.rpartition(".")
    return [f"{stem}.{part}.{end}" for part in FUSED.get(layer, ())]


def _split_fused(tensors: dict[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Replaces fused layers by theirs, in place; returns what is wrong with those that cannot be."""
    wrong = {}
    for name in list(tensors):
        parts = _parts_of(name)
        if not parts or not all(part in expected for part in parts):
            continue
        double = [part for part in parts if part in tensors]
        sizes = [expected[part].shape[0] for part in parts]
        if double:
            wrong[name] = f"{name} (beside {', '.join(double)})"
        elif _shape(tensors[name]) != (sum(sizes), *expected[parts[0]].shape[1:]):
            wrong[name] = (
                f"{name} (is {list(tensors[name].shape)}, must be {[sum(sizes), *expected[parts[0]].shape[1:]]})"
            )
        else:
            tensors.update(zip(parts, tensors.pop(name).split(sizes)))
    return wrong


def _fitted(name: str, weight: torch.Tensor, shape: torch.Size) -> torch.Tensor | None:
    """The tensor in our shape, if it is the same in another form."""
    if _shape(weight) == shape:
        return weight
    if name == "patch_embed.weight":
        if weight.ndim > 2:  # a convolution, over one frame where it has time
            weight = weight.flatten(1)
        return weight if weight.shape == shape else weight.T if weight.shape == shape[::-1] else None
    if name.endswith("scale_shift_table") and weight.numel() == shape.numel():
        return weight.reshape(shape)
    return None


def channels_first(weight: torch.Tensor, axis: int, patch_size: int) -> torch.Tensor:
    """
    Reorders patches of rows, columns, channels to channels, rows, columns.

    Args:
        weight (`torch.Tensor`): with patches along one axis.
        axis (`int`): that axis, counted from the front.
        patch_size (`int`): rows and columns of a patch.
    """
    return weight.unflatten(axis, (patch_size, patch_size, -1)).movedim(axis + 2, axis).flatten(axis, axis + 2)


def _told(name: str, origins: Mapping[str, str]) -> str:
    origin = origins.get(name, name)
    return name if origin == name else f"{origin} (read as {name})"
