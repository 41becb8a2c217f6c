"""What tells the base of an adapter: its architecture, and a fingerprint of its weights."""

import hashlib
import json

import torch
from diffusers.models.modeling_utils import ModelMixin
from peft.tuners.tuners_utils import BaseTunerLayer


__all__ = [
    "UNKNOWN",
    "adapter_weights",
    "base_architecture",
    "base_fingerprint",
    "is_adapter_weight",
    "weights_digest",
]

UNKNOWN = "unknown"
HASHED_VALUES = 4096  # of each tensor: billions of weights are told apart in well under a second


def base_architecture(transformer: ModelMixin) -> str:
    """The transformer's config as JSON, its entries in order: what decides shapes and their meaning.

    Args:
        transformer (`ModelMixin`): the model.
    """
    config = {key: value for key, value in transformer.config.items() if not key.startswith("_")}
    config["out_channels"] = config["out_channels"] or config["in_channels"]
    return json.dumps(config, sort_keys=True)


def base_fingerprint(transformer: ModelMixin) -> str:
    """
    Tells base weights apart: two halves of SHA-256, `"<32 hex digits>-<32 hex digits>"`, or `"unknown"`.

    Adapters do not count: neither loaded ones nor, until they are unloaded, those that `fuse_lora` fused. Values are
    rounded to bfloat16 first, in the second half after float16. So both halves are the same for a float16 checkpoint
    loaded in float32, float16 or bfloat16, and one of them for a float32 checkpoint loaded in float32 and in either of
    the others. Weights that are quantised, cast to 8 bits, sharded or offloaded to the meta device are `"unknown"`.

    Args:
        transformer (`ModelMixin`): the model.
    """
    unfused = getattr(transformer, "_unfused_fingerprint", None)
    if unfused is not None:
        return unfused
    fused = any(layer.merged_adapters for layer in transformer.modules() if isinstance(layer, BaseTunerLayer))
    if fused or getattr(transformer, "hf_quantizer", None) is not None:
        return UNKNOWN
    weights: dict[str, torch.Tensor] = {
        name.replace(".base_layer.", "."): weight
        for name, weight in transformer.named_parameters()
        if not is_adapter_weight(name) and ".to_qkv." not in name
    }
    return weights_digest(weights) or UNKNOWN


def is_adapter_weight(name: str) -> bool:
    """Whether a parameter belongs to an adapter and not to its base.

    Args:
        name (`str`): of the parameter.
    """
    return ".lora_" in name or ".lokr_" in name


def adapter_weights(transformer: ModelMixin, adapter: str) -> dict[str, torch.Tensor]:
    """The weights of one adapter, by the names of the transformer's parameters.

    Args:
        transformer (`ModelMixin`): holds the adapter.
        adapter (`str`): its name.
    """
    return {
        name: weight
        for name, weight in transformer.named_parameters()
        if is_adapter_weight(name) and f".{adapter}." in f"{name}."
    }


def weights_digest(weights: dict[str, torch.Tensor]) -> str | None:
    """See [`base_fingerprint`]; `None` where values cannot be read.

    Args:
        weights (`dict[str, torch.Tensor]`): by their names.
    """
    digests = hashlib.sha256(), hashlib.sha256()
    for name, weight in sorted(weights.items()):
        readable = weight.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
        if not readable or weight.is_meta or type(weight.data) is not torch.Tensor:
            return None
        values = weight.detach().reshape(-1)[:HASHED_VALUES].cpu()
        for digest, rounded in zip(digests, (values.bfloat16(), values.half().bfloat16())):
            digest.update(f"{name} {list(weight.shape)}".encode())
            digest.update(rounded.view(torch.int16).numpy().tobytes())
    return "-".join(digest.hexdigest()[:32] for digest in digests)
