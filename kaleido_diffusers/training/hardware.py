"""What cards can do at most, for plans and for the share of it that a run reaches."""

from dataclasses import dataclass
from functools import cache

import torch

from ..models.precision import product_speed


__all__ = ["CARDS", "Card", "card_at_hand"]


@dataclass(frozen=True)
class Card:
    """One processor that trains."""

    name: str
    """What it is called."""
    peak: float
    """Operations a second of dense matrix products, in bfloat16 for the cards of `CARDS`, as their makers state."""
    memory: float | None
    """Bytes; `None` where the system's own memory is used."""


_GIB = 2**30
CARDS = {
    "a100": Card("A100 80GB", 312e12, 80 * _GIB),
    "h100": Card("H100 SXM", 989e12, 80 * _GIB),
    "h200": Card("H200", 989e12, 141 * _GIB),
    "b200": Card("B200", 2250e12, 180 * _GIB),
    "l40s": Card("L40S", 362e12, 48 * _GIB),
    "mi300x": Card("MI300X", 1307e12, 192 * _GIB),
    "rtx4090": Card("GeForce RTX 4090", 165e12, 24 * _GIB),
}


@cache
def card_at_hand(dtype: torch.dtype) -> Card:
    """That of this process. Where its maker's figure is not known here (on a CPU, say), square products are measured.

    Args:
        dtype (`torch.dtype`): of products.
    """
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device is None:
        return Card("CPU", product_speed(dtype), None)
    module = torch.get_device_module(device)
    if not hasattr(module, "get_device_properties"):
        return Card(device.type, product_speed(dtype, device=device.type), None)
    properties = module.get_device_properties(device)
    for key, card in CARDS.items():
        if key in properties.name.lower().replace(" ", "") and dtype == torch.bfloat16:
            return card
    return Card(properties.name, product_speed(dtype, device=device.type), properties.total_memory)
