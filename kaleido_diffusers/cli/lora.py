"""`kaleido lora`: fine-tunes a checkpoint on one capture."""

import resource
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from ..bundled import resolve_checkpoint, sample_capture
from ..captures.images import save_image
from ..captures.readers import load_scene
from ..evaluation.protocol import EvaluationResult, capture_case, evaluate
from ..evaluation.report import contact_sheet, markdown_table
from ..files import write_json
from ..loaders.lora import save_adapter
from ..models.latents import compression, load_autoencoder
from ..models.transformer_kaleido import KaleidoTransformer3DModel
from ..pipelines.hub import write_card
from ..pipelines.pipeline_kaleido import KaleidoViewSynthesisPipeline
from ..training.config import LoraOptions, TrainConfig
from ..worlds.sources import capture_views


__all__ = ["Lora"]

COLUMNS = {"model": "", "references": "d", "psnr": ".2f", "ssim": ".3f", "gradient_energy": ".2f", "views": "d"}


@dataclass
class Lora:
    """Fine-tunes a checkpoint on one capture, and scores it on photos that training never saw: an adapter of a few
    megabytes, or with `--full` a whole pipeline."""

    capture: Annotated[str, tyro.conf.Positional]
    """Folder of the capture, or `sample`. Its test split (or every 8th photo by name) is kept for the scores."""
    output: Path
    """Folder for the adapter, checkpoints and pictures. A run in it is resumed."""
    checkpoint: str = "kaleido-tiny-objects"
    """Pipeline folder (in pixels) to start from, or the name of a bundled checkpoint."""
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
    """Photos of each draw, split anew into references and targets."""
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
    """Training photos that are kept back to stop early and to choose the best weights."""
    validate_every: int = 50
    """Steps between validations."""
    patience: int = 12
    """Stop after so many validations without a better one."""
    scored_references: tuple[int, ...] = (3, 6, 12)
    """Numbers of references of the final scores."""
    denoising_steps: int = 25
    """Denoising steps of the final scores."""
    seed: int = 0
    """Decides the adapter's first weights, draws and noise."""

    def run(self) -> None:
        from ..training.loop import Trainer

        base = resolve_checkpoint(self.checkpoint)
        capture = sample_capture() if self.capture == "sample" else self.capture
        config = self._config(Path(base), capture)
        trainer = Trainer(config)
        folder = trainer.train()
        if not trainer.is_main:
            return
        result = trainer.result()
        rows, sheet = self._scores(base, result, capture, config.size)
        table = markdown_table(rows, COLUMNS)
        print(table)
        best = f", the best of them after {trainer.best_step}" if trainer.best_step else ""
        print(f"{trainer.step} steps{best}; {trainer.minutes:.1f} minutes; peak memory {_peak_memory()}")
        save_image(sheet, folder / "test_photos.png")
        if not self.full:
            ours = {f"PSNR, {r['references']} references": r["psnr"] for r in rows if r["model"] == "fine-tuned"}
            info = replace(trainer.adapter_info(), scores=ours)
            weights = save_adapter(folder, result.transformer, info)
            print(f"{weights}: {weights.stat().st_size / 1e6:.2f} MB")
            summary = [
                {"method": row["model"], **{key: row[key] for key in COLUMNS if key != "model"}} for row in rows
            ]
            write_json(folder / "scores.json", {"minutes": round(trainer.minutes, 1), "summary": summary})
            write_card(folder)
        for path in (folder, config.output / "log.jsonl"):
            print(f"wrote {path}")

    def _config(self, base: Path, capture: str) -> TrainConfig:
        size = self.size
        if size is None:
            size = KaleidoTransformer3DModel.load_config(base, subfolder="transformer")["sample_size"]
            size *= compression(load_autoencoder(base) if (base / "vae").is_dir() else None)
        return TrainConfig(
            output=self.output,
            data=(capture,),
            init_from=base,
            lora=LoraOptions() if self.full else self.lora,
            size=size,
            batch=self.batch,
            views=self.views,
            references=self.references,
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
            validation_photos=self.validation_photos,
            validation_references=min(6, max(self.references)),
            patience=self.patience,
            tracker="none",
            seed=self.seed,
        )

    def _scores(
        self, base: str, tuned: KaleidoViewSynthesisPipeline, capture: str, size: int
    ) -> tuple[list[dict], object]:
        """Rows of the table, and a picture of the test photos."""
        scene = load_scene(capture, missing="skip")
        test, train = capture_views(scene, "test"), capture_views(scene, "train")
        case = capture_case(scene, test, size, size, len(train), train)
        before = KaleidoViewSynthesisPipeline.from_pretrained(base).to(tuned.device)
        rows, pictures = evaluate(None, [case], (len(train),)).summary(), {}
        rows = [{**row, "model": row["method"]} for row in rows]  # what all photos say that training had
        for name, pipe in (("base", before), ("fine-tuned", tuned)):
            pipe.set_progress_bar_config(disable=True)
            result: EvaluationResult = evaluate(
                pipe,
                [case],
                self.scored_references,
                baselines=name == "base",
                height=size,
                width=size,
                num_inference_steps=self.denoising_steps,
                views_per_group=1,
            )
            rows += [
                {**row, "model": name if row["method"] == "kaleido" else row["method"]} for row in result.summary()
            ]
            for picture in result.pictures:
                pictures |= {name: picture["kaleido"], "truth": picture["truth"], "": picture["references"]}
        given = pictures.pop("", torch.zeros(0, 3, size, size))
        return rows, contact_sheet(given, pictures or {"truth": case.images[len(train) :]}, tile=96)


def _peak_memory() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB on the GPU"
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB"
