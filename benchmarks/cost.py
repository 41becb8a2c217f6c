"""Counts, without running, what a target costs, beside Stable Virtual Camera (arXiv 2503.14489) at its defaults: 214
TFLOP a target (1.264B parameters, 38.5 TFLOP for each forward pass of 21 views, 50 steps, guidance, 18 targets).

    python benchmarks/cost.py
"""

import inspect
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import tyro
from measuring import show

from kaleido_diffusers.models.operations import sampling_operations
from kaleido_diffusers.models.transformer_kaleido import KALEIDO_PRESETS, KaleidoTransformer3DModel


COLUMNS = {
    "preset": "", "token (px)": "d", "group": "d", "guidance": "", "cached TFLOP": ".0f", "uncached TFLOP": ".0f",
    "of its 214": ".2f", "steps at half": "d",
}  # fmt: skip
PEER = 214e12  # operations a target


@dataclass
class Config:
    presets: tuple[str, ...] = ("large", "xl")
    """Architectures."""
    pixels: int = 576
    """Height and width of a view, 8 pixels a latent cell."""
    references: int = 3
    """References."""
    targets: int = 18
    """Targets."""
    groups: tuple[int, ...] = (4, 18)
    """Targets denoised together."""
    steps: int = 25
    """Euler steps."""
    output: Path | None = None
    """JSON of the rows."""


def main(config: Config) -> None:
    signature = inspect.signature(KaleidoTransformer3DModel.__init__).parameters
    defaults = {name: parameter.default for name, parameter in signature.items() if name != "self"}
    rows, cells = [], config.pixels // 8
    for preset, patch_size, group, guidance in product(config.presets, (2, 4), config.groups, (True, False)):
        architecture = {**defaults, **KALEIDO_PRESETS[preset], "patch_size": patch_size}
        views = (architecture, config.references, config.targets, group)

        def of_a_target(steps: int, cached: bool = True, views=views, guidance=guidance) -> float:
            return sampling_operations(*views, steps, guidance, cached, height=cells, width=cells) / config.targets

        operations = of_a_target(config.steps)
        halves = [steps for steps in range(1, 101) if of_a_target(steps) <= PEER / 2]
        row = {"preset": preset, "token (px)": 8 * patch_size, "group": group}
        row |= {"guidance": "yes" if guidance else "no", "cached TFLOP": operations / 1e12}
        row |= {"uncached TFLOP": of_a_target(config.steps, cached=False) / 1e12}
        rows.append({**row, "of its 214": operations / PEER, "steps at half": max(halves, default=0)})
    show(rows, COLUMNS, config.output)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
