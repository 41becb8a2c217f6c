"""Settings of the training loop that were measured to work, for commands and examples alike."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..captures.opening import CaptureOptions
from .config import LoraOptions, TrainConfig


__all__ = ["CaptureRecipe"]


@dataclass
class CaptureRecipe:
    """Fine-tuning on one capture: an adapter, or all weights."""

    lora: Annotated[LoraOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=lambda: LoraOptions(rank=64))
    """The adapter."""
    full: bool = False
    """Train all weights instead of an adapter."""
    size: int | None = None
    """Height and width in pixels; the model's own when not given."""
    steps: int = 1500
    """Optimizer steps."""
    max_minutes: float | None = None
    """Stop (and save) after this many minutes of training; a later call goes on."""
    batch: int = 4
    """Draws of views a step."""
    views: int = 12
    """Photos of each draw, split anew into references and targets; fewer where the capture has fewer."""
    references: tuple[int, ...] = (1, 2, 3, 6)
    """Numbers of references to draw from."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """Muon for the matrices (needs torch 2.9), or AdamW for all."""
    learning_rate: float = 2e-3
    """Highest learning rate (of AdamW); it rises over 30 steps and falls over the last third."""
    matrix_lr: float = 0.01
    """Learning rate of Muon."""
    logit_mean: float = 3.0
    """Mean of logit(sigma) in training. High: in small pictures, layout shows through all but the strongest noise."""
    logit_std: float = 1.6
    """Spread of logit(sigma) in training."""
    gradient_checkpointing: bool = False
    """Trade time for memory."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of matrix products; `auto` takes the one that is faster here."""
    validation_photos: int = 4
    """Training photos that are kept back to stop early and to choose the best weights; at most a third of them."""
    validate_every: int = 50
    """Steps between validations."""
    patience: int = 12
    """Stop after so many validations without a better one."""
    seed: int = 0
    """Decides the adapter's first weights, draws and noise."""

    def settings(
        self,
        capture: str | Path,
        output: str | Path,
        base: str | Path,
        options: CaptureOptions | None = None,
        overwrite: bool = False,
    ) -> TrainConfig:
        """
        The settings of the training loop.

        Args:
            capture (`str` or `Path`): folder of the capture, whose training photos are split anew into references and
                targets at every step.
            output (`str` or `Path`): folder for checkpoints, the log and the result.
            base (`str` or `Path`): pipeline folder to start from.
            options ([`CaptureOptions`], *optional*): how the capture is read and split.
            overwrite (`bool`, defaults to `False`): start anew where a run is.
        """
        # Imported here, as `kaleido lora --help` shows the fields above
        from ..models.latents import compression, load_autoencoder
        from ..models.transformer_kaleido import KaleidoTransformer3DModel
        from ..worlds.sources import capture_views

        base, options = Path(base), options or CaptureOptions()
        scene = options.load(str(capture))
        photos = len(capture_views(scene, "train", options=options))
        if photos < 2:
            raise ValueError(
                f"{scene.name}: of its {len(scene)} photos, {len(scene) - photos} are kept for the scores and"
                f" {photos} left: fine-tuning needs 2, as references and targets."
            )
        kept = min(self.validation_photos, photos // 3)
        views = min(self.views, photos - kept)
        references = tuple(count for count in self.references if count < views) or (views - 1,)
        size = self.size
        if size is None:
            size = KaleidoTransformer3DModel.load_config(base, subfolder="transformer")["sample_size"]
            size *= compression(load_autoencoder(base) if (base / "vae").is_dir() else None)
        return TrainConfig(
            output=Path(output),
            overwrite=overwrite,
            data=(str(capture),),
            capture=options,
            init_from=base,
            lora=LoraOptions() if self.full else self.lora,
            size=size,
            batch=self.batch,
            views=views,
            references=references,
            target_group_sizes=(1,),
            ordered_references=0.0,
            view_mix=(0.5, 0.0, 0.5),
            in_memory=True,
            workers=0,
            steps=self.steps,
            max_minutes=self.max_minutes,
            optimizer=self.optimizer,
            matrix_lr=self.matrix_lr,
            other_lr=self.learning_rate,
            logit_mean=self.logit_mean,
            logit_std=self.logit_std,
            warmup_steps=30,
            cooldown=0.33,
            ema_decay=0.995,
            gradient_checkpointing=self.gradient_checkpointing,
            dtype=self.dtype,
            save_every=self.validate_every,
            validate_every=self.validate_every,
            validation_photos=kept,
            validation_references=min(6, max(references)),
            patience=self.patience if kept else None,  # photos of the scores must decide nothing
            tracker="none",
            seed=self.seed,
        )
