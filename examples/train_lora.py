"""Fits a LoRA adapter to one capture, and renders a view with it: what `kaleido lora` does, in Python.

    python examples/train_lora.py --capture PATH --minutes 20 --output runs/my-scene

The adapter folder that it writes loads into any pipeline of the same base: `pipe.load_lora_weights(folder)`.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from kaleido_diffusers import KaleidoViewSynthesisPipeline, bundled_checkpoint, load_scene, sample_capture
from kaleido_diffusers.geometry.choosing import choose_references
from kaleido_diffusers.training.config import LoraOptions
from kaleido_diffusers.training.loop import Trainer
from kaleido_diffusers.training.recipes import CaptureRecipe
from kaleido_diffusers.worlds.sources import capture_views


@dataclass
class Config:
    capture: Path = Path(sample_capture())
    """Folder of the capture."""
    base: Path = Path(bundled_checkpoint("kaleido-tiny-objects"))
    """Pipeline folder to start from."""
    output: Path = Path("runs/lora")
    """Folder for checkpoints, the log and the adapter."""
    rank: int = 64
    """Rank of the adapter."""
    minutes: float = 20.0
    """Training time; a second call goes on."""


def main(config: Config) -> None:
    # ------------------------------------------------------------------------------------------------ training
    recipe = CaptureRecipe(lora=LoraOptions(rank=config.rank), max_minutes=config.minutes)
    settings = recipe.settings(config.capture, config.output, config.base)
    adapter = Trainer(settings).train()

    # ------------------------------------------------------------------------------------------------ using it
    pipe = KaleidoViewSynthesisPipeline.from_pretrained(config.base)
    pipe.load_lora_weights(adapter)
    scene = load_scene(config.capture, missing="skip")
    test, train = capture_views(scene, "test"), capture_views(scene, "train")
    references = choose_references(scene.cameras, 6, train, scene.cameras[test])
    views = pipe(scene.images[references], scene.cameras[references], scene.cameras[test]).images
    views[0].save(config.output / "view.png")
    print(f"wrote {adapter} and {config.output / 'view.png'}")


if __name__ == "__main__":
    main(tyro.cli(Config))
