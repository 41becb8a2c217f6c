"""Fits a LoRA adapter to one capture, and renders a view with it: `kaleido lora`, spelled out.

    python examples/train_lora.py --capture PATH --minutes 20 --output runs/my-scene

The adapter folder that it writes loads into any pipeline of the same base: `pipe.load_lora_weights(folder)`.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from kaleido_diffusers import KaleidoViewSynthesisPipeline, bundled_checkpoint, load_scene, sample_capture
from kaleido_diffusers.geometry.choosing import choose_references
from kaleido_diffusers.training.config import LoraOptions, TrainConfig
from kaleido_diffusers.training.loop import Trainer
from kaleido_diffusers.worlds.sources import capture_views


@dataclass
class Config:
    capture: Path = Path(sample_capture())
    """Folder of the capture."""
    base: Path = Path(bundled_checkpoint("kaleido-tiny-objects"))
    """Pipeline folder to start from."""
    output: Path = Path("runs/lora")
    """Folder for checkpoints, the log and the adapter."""
    rank: int = 16
    """Rank of the adapter."""
    minutes: float = 20.0
    """Training time; a second call goes on."""


def main(config: Config) -> None:
    # ------------------------------------------------------------------------------------------------ training
    settings = TrainConfig(
        output=config.output,
        data=(str(config.capture),),  # its training photos; at every step split anew into references and targets
        init_from=config.base,
        lora=LoraOptions(rank=config.rank),
        size=64,
        batch=4,
        views=12,
        references=(1, 2, 3, 6),
        optimizer="adamw",
        other_lr=2e-3,
        ema_decay=0.995,
        steps=1500,
        warmup_steps=30,
        in_memory=True,
        workers=0,
        validation_photos=4,  # of the training photos: the test photos stay unseen
        validate_every=100,
        patience=8,  # and stop when eight validations in a row are no better
        max_minutes=config.minutes,
        tracker="none",
    )
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
