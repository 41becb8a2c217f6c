"""Makes a trained pipeline the one that ships inside the package: half precision, with its scores beside it.

    python benchmarks/seeing.py --checkpoint runs/long/pipeline --worlds shards/test --output runs/seeing
    python examples/bundle_checkpoint.py --pipeline runs/long/pipeline --scores runs/seeing/seeing.json

Scores are taken before the rounding to half precision; the model card is written by hand.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from kaleido_diffusers import KaleidoViewSynthesisPipeline, RectifiedFlowViewScheduler


@dataclass
class Config:
    pipeline: Path
    """Folder of the trained pipeline."""
    scores: Path
    """The table of `benchmarks/seeing.py`."""
    output: Path = Path("kaleido_diffusers/weights/kaleido-tiny")
    """Folder that ships."""
    steps: int = 10
    """Denoising steps of the scores that are taken over."""
    solver: str = "euler"
    """Of the scheduler that ships."""
    shift: float = 3.0
    """Time shift of the scheduler that ships."""


def main(config: Config) -> None:
    pipe = KaleidoViewSynthesisPipeline.from_pretrained(config.pipeline, dtype=torch.float16)
    pipe.scheduler = RectifiedFlowViewScheduler.from_config(
        pipe.scheduler.config, solver=config.solver, shift=config.shift
    )
    pipe.save_pretrained(config.output)
    for file in config.output.rglob("*.json"):  # where the run lay is nobody's business
        entries = json.loads(file.read_text(encoding="utf-8"))
        if entries.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    rows = json.loads(config.scores.read_text(encoding="utf-8"))
    scores = {"scored on": f"held-out worlds, {pipe.default_sample_size} px, {config.steps} steps"}
    for row in rows:
        if row["data"] == "worlds" and row["steps"] in (0, config.steps):
            name = f"PSNR (dB) with {row['references']} references"
            scores.setdefault(name, {})[row["method"]] = round(row["psnr"], 2)
    path = config.output / "scores.json"
    path.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")

    size = sum(file.stat().st_size for file in config.output.rglob("*") if file.is_file())
    print(f"wrote {config.output} ({size / 1e6:.1f} MB)\n{path.read_text(encoding='utf-8')}")


if __name__ == "__main__":
    main(tyro.cli(Config))
