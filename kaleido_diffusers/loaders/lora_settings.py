"""Settings of new adapters."""

from collections.abc import Sequence

from peft import LoraConfig


__all__ = ["LORA_TARGETS", "make_lora_config"]

LORA_TARGETS: dict[str, tuple[str, ...]] = {  # groups of layers, by the ends of their names
    "attention": ("to_q", "to_k", "to_v", "to_out.0"),
    "ffn": ("gate_proj", "up_proj", "down_proj"),
}


def make_lora_config(
    rank: int,
    alpha: float | None = None,
    targets: Sequence[str] = ("attention", "ffn"),
    dora: bool = False,
    rslora: bool = False,
    dropout: float = 0.0,
) -> LoraConfig:
    """
    Settings of a new adapter (LoRA, arXiv 2106.09685), for `transformer.add_adapter`.

    Args:
        rank (`int`): rank of the update of each matrix.
        alpha (`float`, *optional*): the update counts `alpha / rank` times; `rank` when not given.
        targets (`Sequence[str]`, defaults to `("attention", "ffn")`): names of [`LORA_TARGETS`].
        dora (`bool`, defaults to `False`): adapt lengths and directions apart (DoRA, arXiv 2402.09353).
        rslora (`bool`, defaults to `False`): count `alpha / sqrt(rank)` times (rsLoRA, arXiv 2312.03732).
        dropout (`float`, defaults to `0.0`): dropout in front of the adapter, in training.

    Raises:
        `ValueError`: for a rank below 1, and for targets that are unknown or none.
    """
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"`rank` must be a positive integer, got {rank!r}.")
    unknown = [target for target in targets if target not in LORA_TARGETS]
    if isinstance(targets, str) or unknown or not targets:
        raise ValueError(f"`targets` must name one or more of {tuple(LORA_TARGETS)}, got {targets!r}.")
    return LoraConfig(
        r=rank,
        lora_alpha=rank if alpha is None else alpha,  # pyright: ignore[reportArgumentType]  # PEFT takes fractions
        target_modules=[suffix for target in targets for suffix in LORA_TARGETS[target]],
        use_dora=dora,
        use_rslora=rslora,
        lora_dropout=dropout,
    )
