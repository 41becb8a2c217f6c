"""Makes a trained pipeline the one that ships inside the package: half precision, with its scores beside it.

    kaleido evaluate kaleido_diffusers/captures/sample --checkpoint runs/table/pipeline --output runs/table/evaluation
    python examples/bundle_checkpoint.py --pipeline runs/table/pipeline --evaluation runs/table/evaluation/scores.json

Scores are taken before the rounding to half precision; the model card is written by hand.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from kaleido_diffusers import KaleidoViewSynthesisPipeline


@dataclass
class Config:
    pipeline: Path
    """Folder of the trained pipeline."""
    evaluation: Path
    """The scores.json of `kaleido evaluate`."""
    output: Path = Path("kaleido_diffusers/weights/kaleido-tiny")
    """Folder that ships."""
    fitted_to: str | None = None
    """What alone it can render, if it does not generalise; `kaleido render` warns with these words."""


def main(config: Config) -> None:
    pipe = KaleidoViewSynthesisPipeline.from_pretrained(config.pipeline, dtype=torch.float16)
    pipe.save_pretrained(config.output)
    for file in config.output.rglob("*.json"):  # where the run lay is nobody's business
        entries = json.loads(file.read_text(encoding="utf-8"))
        if entries.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    evaluation = json.loads(config.evaluation.read_text(encoding="utf-8"))
    scores = {"scored on": f"{evaluation['settings']['data']}, {pipe.transformer.config.sample_size} px"}
    if config.fitted_to is not None:
        scores["fitted to"] = config.fitted_to
    for row in evaluation["summary"]:
        name = f"PSNR (dB) with {row['references']} references"
        scores.setdefault(name, {})[row["method"]] = round(row["psnr"], 2)
    path = config.output / "scores.json"
    path.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")

    size = sum(file.stat().st_size for file in config.output.rglob("*") if file.is_file())
    print(f"wrote {config.output} ({size / 1e6:.1f} MB)\n{path.read_text(encoding='utf-8')}")


if __name__ == "__main__":
    main(tyro.cli(Config))
