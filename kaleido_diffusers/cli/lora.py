"""`kaleido lora`: fine-tunes a checkpoint on one capture."""

import resource
import sys
from dataclasses import replace
from pathlib import Path

import torch

from ..bundled import resolve_capture, resolve_checkpoint
from ..captures.images import save_image
from ..captures.readers import load_scene
from ..evaluation.protocol import EvaluationResult, capture_case, evaluate
from ..evaluation.report import contact_sheet, markdown_table
from ..files import write_json
from ..loaders.adapter_files import save_adapter
from ..pipelines.hub import write_card
from ..pipelines.pipeline_kaleido import KaleidoViewSynthesisPipeline
from ..training.loop import Trainer
from ..worlds.sources import capture_views
from .loading import say_next
from .settings import LoraSettings


__all__ = ["Lora"]

COLUMNS = {"model": "", "references": "d", "psnr": ".2f", "ssim": ".3f", "gradient_energy": ".2f", "views": "d"}


class Lora(LoraSettings):
    def run(self) -> None:
        base = resolve_checkpoint(self.checkpoint)
        capture = resolve_capture(self.capture)
        output = self.output or Path("runs") / Path(capture).absolute().name
        config = self.recipe.settings(capture, output, Path(base))
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
        if not self.recipe.full:
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
        say_next("render", self.capture, checkpoint=folder)

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
