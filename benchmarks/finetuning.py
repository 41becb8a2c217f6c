"""Draws what fine-tuning runs gain over the minutes, from the logs of `kaleido lora`.

kaleido lora CAPTURE --output runs/lora --max-minutes 40
kaleido lora CAPTURE --output runs/full --max-minutes 40 --full
python benchmarks/finetuning.py --runs runs/lora runs/full --output finetuning.png
"""

import json
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import tyro


@dataclass
class Config:
    runs: tuple[Path, ...]
    """Folders of runs; their names are the legend."""
    output: Path = Path("finetuning.png")
    """The figure."""


def main(config: Config) -> None:
    figure, axis = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for run in config.runs:
        lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
        points = [(line["minutes"], line["validation_psnr"]) for line in lines if "validation_psnr" in line]
        best = max(points, key=lambda point: point[1])
        print(f"{run.name}: best {best[1]:.2f} dB after {best[0]:.1f} minutes, last {points[-1][1]:.2f} dB")
        axis.plot(*zip(*points), marker=".", label=run.name)
    axis.set_xlabel("minutes of training")
    axis.set_ylabel("PSNR of validation photos (dB)")
    axis.legend()
    figure.savefig(config.output, dpi=110)
    print(f"wrote {config.output}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
