"""Names of tensors: freed from wrappers, and turned into ours."""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from .errors import CheckpointError


__all__ = [
    "RENAMES",
    "TRANSPARENT",
    "WRAPPERS",
    "Renames",
    "WhichWeights",
    "read_renames",
    "rename",
    "select_weights",
]

Renames = list[tuple[str, str | None]]
WhichWeights = Literal["auto", "raw", "ema"]

# Parts of a name that say nothing, wherever they stand; those that say nothing in front; those of averaged weights;
# and what else a training checkpoint holds.
TRANSPARENT = set("module _orig_mod _fsdp_wrapped_module _checkpoint_wrapped_module base_layer".split())
WRAPPERS = set(
    "state_dict model_state_dict model online_model diffusion_model transformer net network denoiser backbone".split()
)
AVERAGED = set("ema ema_model model_ema ema_state_dict ema_weights transformer_ema averaged_model".split())
TRAINING_STATE = set(
    "optimizer optimizers optimizer_states optim opt lr_scheduler lr_schedulers scheduler scaler grad_scaler rng"
    " rng_state callbacks loops".split()
)

# Regular expressions and what they turn into, applied one after the other; `None` leaves a tensor out. Our own names
# come through unchanged, and so do names that no rule knows.
RENAMES: Renames = [
    # Computed, not learned; counters of averaging
    (r"^(?:.*\.)?(?:freqs|freqs_cis|inv_freq|n_averaged|initted)$", None),
    # Ends of the network
    (r"^(?:x_embedder|patch_embedder|patch_embedding|patch_embed|img_in|proj_in)(?:\.proj)?\.", "patch_embed."),
    (r"^adaln_single\.emb\.", ""),
    (r"^(?:t_embedder|time_embedder|time_embedding|timestep_embedder)(?:\.mlp)?\.", "time_mlp."),
    (r"^time_mlp\.(?:0|linear_1)\.", "time_embed.embedder.linear_1."),
    (r"^time_mlp\.(?:2|linear_2)\.", "time_embed.embedder.linear_2."),
    (r"^(?:t_block|adaln_single|adaLN_modulation|time_projection)\.(?:1|linear)\.", "time_embed.linear."),
    (r"^(?:final_layer|head)\.(?:norm_final|norm)\.", "norm_out."),
    (r"^(?:norm|norm_f|final_norm|norm_final)\.", "norm_out."),
    (r"^(?:final_layer|head)\.(?:linear|head|proj)\.", "proj_out."),
    (r"^(?:final_layer|head)\.(?:scale_shift_table|modulation)$", "scale_shift_table"),
    # Blocks
    (r"^(?:blocks|layers|h)\.(\d+)\.", r"transformer_blocks.\1."),
    (r"\.modulation$", ".scale_shift_table"),
    (r"\.(?:attention_norm1|input_layernorm|pre_attn_norm|attn_norm)\.", ".norm1."),
    (r"\.(?:attention_norm2|post_attention_layernorm|post_attn_norm)\.", ".norm2."),
    (r"\.(?:ffn_norm1|pre_feedforward_layernorm|pre_ffn?_norm|ffn?_norm|mlp_norm)\.", ".norm3."),
    (r"\.(?:ffn_norm2|post_feedforward_layernorm|post_ffn?_norm)\.", ".norm4."),
    # Attention
    (r"\.(?:attention|self_attn|self_attention|attn1)\.", ".attn."),
    (r"\.attn\.(?:norm\.)?([qk])(?:uery|ey)?_?norm\.", r".attn.norm_\1."),
    (r"\.attn\.(?:[wW]?qkv|qkv_proj)\.", ".attn.to_qkv."),
    (r"\.attn\.w?([qkv])(?:_proj)?\.", r".attn.to_\1."),
    (r"\.attn\.(?:wo|o|o_proj|out|out_proj|proj|to_out)\.(?=weight$)", ".attn.to_out.0."),
    # Feed-forward
    (r"^(transformer_blocks\.\d+)\.(?:mlp|ffn|feed_forward|swiglu)\.", r"\1.ff."),
    (r"\.ff\.(?:w13|gate_up)\.", ".ff.gate_up_proj."),
    (r"\.ff\.net\.0\.proj\.", ".ff.up_gate_proj."),
    (r"\.ff\.(?:w1|gate)\.", ".ff.gate_proj."),
    (r"\.ff\.(?:w3|up)\.", ".ff.up_proj."),
    (r"\.ff\.(?:w2|down|net\.2)\.", ".ff.down_proj."),
    # Scales of norms
    (r"norm(\w*)\.(?:scale|gamma)$", r"norm\1.weight"),
]


def select_weights(keys: Iterable[str], weights: WhichWeights = "auto") -> tuple[dict[str, str], str]:
    """
    Frees names from wrappers in any nesting (`module.`, `_orig_mod.`, `model.`, `ema.`, `base_layer.`, ...) and takes
    the raw or the averaged ones. What else training keeps (optimizers and the like) is left out.

    Args:
        keys (`Iterable[str]`): names of tensors; nested dictionaries are joined by dots.
        weights (`str`, defaults to `"auto"`): as in [`read_checkpoint`].

    Returns:
        `tuple[dict[str, str], str]`: freed names to the names they come from, and `"raw"` or `"ema"`.
        [`CheckpointError`] if there are none, or two of one name.
    """
    found: dict[str, dict[str, list[str]]] = {"raw": {}, "ema": {}}
    for key in keys:
        parts, which = [part for part in key.split(".") if part not in TRANSPARENT], "raw"
        while len(parts) > 1 and parts[0] in WRAPPERS | AVERAGED:
            which = "ema" if parts.pop(0) in AVERAGED else which
        if parts and parts[0] not in TRAINING_STATE:
            found[which].setdefault(".".join(parts), []).append(key)
    taken = weights if weights != "auto" else "ema" if found["ema"] else "raw"
    if not found[taken]:
        raise CheckpointError(f"The checkpoint holds no {taken} weights" + (".", " (--weights).")[weights != "auto"])
    double = [" and ".join(names) for names in found[taken].values() if len(names) > 1]
    if double:
        raise CheckpointError(f"The checkpoint holds tensors twice: {'; '.join(double)}.")
    return {name: names[0] for name, names in found[taken].items()}, taken


def rename(name: str, renames: Renames) -> str | None:
    """
    Applies all rules in their order.

    Args:
        name (`str`): name of a tensor, freed from wrappers.
        renames (`list[tuple[str, str | None]]`): rules, as [`RENAMES`].

    Returns:
        `str` or `None`: the name here, or that the tensor is left out.
    """
    for pattern, replacement in renames:
        if replacement is None:
            if re.search(pattern, name):
                return None
        else:
            name = re.sub(pattern, replacement, name)
    return name


def read_renames(path: str | os.PathLike) -> Renames:
    """
    Rules of a JSON file, `[["pattern", "replacement"], ["pattern", null], ...]` as in [`RENAMES`], followed by those
    of [`RENAMES`]: only what differs needs to be said.

    Args:
        path (`str` or `os.PathLike`): the file.

    Raises:
        [`CheckpointError`]: if it is not such a list, or a pattern is no regular expression.
    """
    try:
        rules = json.loads(Path(path).read_text(encoding="utf-8"))
        rules = [(pattern, replacement) for pattern, replacement in rules]
        for pattern, replacement in rules:
            # An empty alternative matches, so that the replacement is looked at too
            re.sub(f"{pattern}|", replacement or "", "")
    except (ValueError, TypeError, re.error) as error:
        raise CheckpointError(f"{path} must be a list of [pattern, replacement or null] ({error}).") from error
    return rules + RENAMES
