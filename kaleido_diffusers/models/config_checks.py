"""What a config may say: the files come from others, and say a model's sizes before anything else is known of it."""

from numbers import Real


__all__ = ["check_config"]

# The largest model that anyone would train is far below; what lies above takes all memory, or minutes to be refused.
_MOST = {
    "patch_size": 1024,
    "in_channels": 4096,
    "out_channels": 4096,
    "num_layers": 1024,
    "num_attention_heads": 1024,
    "num_key_value_heads": 1024,
    "attention_head_dim": 1024,
    "ffn_dim": 1 << 20,
    "sample_size": 1 << 16,
}


def check_config(config, kinds: tuple[str, ...], encodings: tuple[str, ...]) -> None:
    """
    Raises `ValueError`, with the name of the entry, for values of [`KaleidoTransformer3DModel`]'s config that it
    cannot be built from.

    Args:
        config: its entries as attributes.
        kinds (`tuple[str, ...]`): the layer kinds that there are.
        encodings (`tuple[str, ...]`): the camera encodings that there are.
    """
    for name, most in _MOST.items():
        value = getattr(config, name)
        if value is None and name == "out_channels":
            continue
        if not _is_whole(value) or not 1 <= value <= most:
            raise ValueError(f"`{name}` must be a whole number from 1 to {most}, got {value!r}.")
    for name, most in {"norm_eps": 1.0, "rope_theta": 1e12, "rope_time_scale": 1e6, "max_focal_length": 1e6}.items():
        value = getattr(config, name)
        if value is None and name == "max_focal_length":
            continue
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value <= most:
            raise ValueError(f"`{name}` must be a number above 0 and up to {most:g}, got {value!r}.")
    axes, pattern = config.rope_axes_dim, config.layer_pattern
    even = isinstance(axes, (list, tuple)) and len(axes) == 3 and all(_is_whole(x) and x >= 0 == x % 2 for x in axes)
    if not even:
        raise ValueError(f"`rope_axes_dim` must be three even numbers, got {axes!r}.")
    if not isinstance(pattern, (list, tuple)) or not pattern or any(kind not in kinds for kind in pattern):
        raise ValueError(f"`layer_pattern` must list kinds of {kinds}, got {pattern!r}.")
    if config.camera_encoding not in encodings:
        raise ValueError(f"`camera_encoding` must be one of {encodings}, got {config.camera_encoding!r}.")
    camera_dim = config.attention_head_dim - sum(axes)
    if camera_dim < 0 or camera_dim % 4:
        raise ValueError(
            f"`attention_head_dim` must exceed the sum of `rope_axes_dim` by a multiple of 4, got"
            f" {config.attention_head_dim} and {axes}."
        )
    if config.num_attention_heads % config.num_key_value_heads:
        raise ValueError(
            f"`num_key_value_heads` ({config.num_key_value_heads}) must divide `num_attention_heads`"
            f" ({config.num_attention_heads})."
        )
    if config.sample_size % config.patch_size:
        raise ValueError(f"`sample_size` {config.sample_size} must be a multiple of `patch_size` {config.patch_size}.")


def _is_whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
