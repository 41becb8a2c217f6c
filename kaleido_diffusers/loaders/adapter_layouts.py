"""Adapters as other trainers and programs write them, under diffusers' names.

Layers are found behind any prefix (`base_model.model.` of PEFT, `diffusion_model.` of ComfyUI, `module.`, none), and
by the flattened names of kohya (`lora_unet_transformer_blocks_0_attn_to_q`). Names of adapters inside of keys
(`lora_A.default.weight`) are left out. `lora_down`, `lora_up` and `alpha` become `lora_A` and `lora_B`, which then
holds the scale.
"""

import json
import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from .names import TRANSPARENT, WRAPPERS


__all__ = ["as_diffusers", "metadata_of_peft"]

_KEY = re.compile(
    r"(?P<layer>.+?)\.(?P<part>lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up|lora_magnitude_vector|dora_scale"
    r"|alpha|lokr_\w+)(?:\.(?!weight$|bias$)[^.]+)?(?P<end>\.weight|\.bias)?"
)
_PARTS = {"lora_down": "lora_A", "lora.down": "lora_A", "lora_up": "lora_B", "lora.up": "lora_B"}
_PARTS["dora_scale"] = "lora_magnitude_vector"
_FLAT = ("lora_unet_", "lora_transformer_", "lora_dit_", "lora_", "lycoris_")  # in front of flattened names
_SHOWN = 3  # names in an error
_SETTINGS = (  # of PEFT's `LoraConfig`: what the weights mean
    "r lora_alpha target_modules exclude_modules rank_pattern alpha_pattern use_dora use_rslora lora_bias bias"
    " fan_in_fan_out layers_to_transform layers_pattern"
).split()


def as_diffusers(
    weights: Mapping[str, torch.Tensor], modules: Collection[str], source: object
) -> dict[str, torch.Tensor]:
    """
    The weights of an adapter as `transformer.<layer>.lora_A.weight`, and so on.

    Args:
        weights (`Mapping[str, torch.Tensor]`): in any of the layouts that the top of this file names.
        modules (`Collection[str]`): names of the transformer's modules.
        source (`object`): what errors call the adapter.

    Raises:
        `ValueError`: where no layer is one of the transformer; where only some are not, a warning names them.
    """
    by_flat_name = {name.replace(".", "_"): name for name in modules}
    found: dict[str, dict[str, torch.Tensor]] = {}  # layer -> part -> weight
    strange = []
    for key, weight in weights.items():
        match = _KEY.fullmatch(key)
        layer = _layer_of(match["layer"], modules, by_flat_name) if match else None
        if match is None or layer is None:
            strange.append(key)
            continue
        part = _PARTS.get(match["part"], match["part"])
        end = "" if part == "lora_magnitude_vector" else match["end"] or ""
        found.setdefault(layer, {})[part + end] = weight.flatten() if match["part"] == "dora_scale" else weight
    if not found:
        names = ", ".join(strange[:_SHOWN]) or "nothing"
        raise ValueError(
            f"Nothing was loaded: no weight of {source} belongs to a layer of the transformer. Its names are like"
            f" {names}; those of an adapter are like transformer_blocks.0.attn.to_q.lora_A.weight, behind any prefix."
        )
    if strange:
        shown = ", ".join(strange[:_SHOWN]) + (f" and {len(strange) - _SHOWN} more" if len(strange) > _SHOWN else "")
        warnings.warn(f"{source}: {shown} belong to no layer of the transformer and have no effect.", stacklevel=3)
    scaled = {f"transformer.{layer}.{part}": x for layer, parts in found.items() for part, x in _scaled(parts).items()}
    return dict(sorted(scaled.items()))  # `lora_A` first, by which diffusers knows the layout


def _layer_of(name: str, modules: Collection[str], by_flat_name: Mapping[str, str]) -> str | None:
    parts = [part for part in name.split(".") if part not in TRANSPARENT]
    while len(parts) > 1 and parts[0] in WRAPPERS | {"base_model"}:
        parts.pop(0)
    layer = ".".join(parts)
    flat = [by_flat_name.get(layer.removeprefix(prefix)) for prefix in _FLAT if layer.startswith(prefix)]
    return layer if layer in modules else next(filter(None, flat), None)


def _scaled(parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """With `alpha / rank` in the second matrix, where an alpha is stored."""
    parts = dict(parts)
    alpha = parts.pop("alpha", None)
    if alpha is not None and "lora_A.weight" in parts and "lora_B.weight" in parts:
        scale = alpha.item() / len(parts["lora_A.weight"])
        parts["lora_B.weight"] = (parts["lora_B.weight"].float() * scale).to(parts["lora_B.weight"].dtype)
    return parts


def metadata_of_peft(path: Path) -> dict[str, Any]:
    """What diffusers wants to know of an adapter beside its weights, from PEFT's `adapter_config.json`: scale, ranks,
    DoRA and so on, but not how training began.

    Args:
        path (`Path`): the file.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    return {f"transformer.{key}": content[key] for key in _SETTINGS if key in content}
