"""`kaleido lora`: fine-tunes a checkpoint on one capture."""

import resource
import sys
from dataclasses import replace
from pathlib import Path

import torch

from ..bundled import BUNDLED, resolve_capture, resolve_checkpoint
from ..captures.images import save_image
from ..evaluation.protocol import EvaluationCase, capture_case, evaluate
from ..evaluation.report import contact_sheet, markdown_table
from ..files import folder_updated_whole, write_json
from ..loaders.adapter_files import save_adapter
from ..pipelines.hub import write_card
from ..pipelines.pipeline_kaleido import KaleidoViewSynthesisPipeline
from ..training.loop import Trainer
from .checks import check_at_least, check_folder, errors_first
from .loading import check_name, finished, say_next
from .settings import LoraSettings


__all__ = ["Lora"]

COLUMNS = {"model": "", "references": "d", "psnr": ".2f", "ssim": ".3f", "gradient_energy": ".2f", "views": "d"}


class Lora(LoraSettings):
    def run(self) -> None:
        if not self.scored_references or min(self.scored_references) < 1:
            raise ValueError(f"--scored-references must be numbers from 1, got {self.scored_references}.")
        check_at_least(self, denoising_steps=1)
        base = resolve_checkpoint(self.checkpoint)
        check_name("--checkpoint", base)
        capture = resolve_capture(self.capture)
        output = self.output or Path("runs") / Path(capture).absolute().name
        check_folder(output)
        case, rows, pictures = None, [], {}
        with errors_first():
            config = self.recipe.settings(capture, output, Path(base), self.capture_options, self.overwrite)
            trainer = Trainer(config)
            if trainer.has_made("test_photos.png"):
                print(finished(output))
                self._say_next(trainer.result_folder)
                return
            trainer.check()
            if trainer.is_main:  # before the training: whatever scores need is there, or is missed now
                case = self._case(capture, config.size)
        if case is not None:
            pipe = KaleidoViewSynthesisPipeline.from_pretrained(base).to(trainer.accelerator.device)
            rows = self._scores(None, case, "all") + self._scores(pipe, case, "base", pictures)
            del pipe
        folder = trainer.train()
        if case is None:
            return
        result = trainer.result()
        rows += self._scores(result, case, "fine-tuned", pictures)
        table = markdown_table(rows, COLUMNS)
        print(table)
        best = f", the best of them after {trainer.best_step}" if trainer.best_step else ""
        print(_verdict(rows))
        print(f"{trainer.step} steps{best}; {trainer.minutes:.1f} minutes; peak memory {_peak_memory()}")
        sheet = contact_sheet(pictures.pop(""), pictures, tile=96)
        if self.recipe.full:
            save_image(sheet, folder / "test_photos.png")
        else:
            with folder_updated_whole(folder) as part:
                save_image(sheet, part / "test_photos.png")
                self._save_adapter(part, trainer, result, rows)
        for path in (folder, config.output / "log.jsonl"):
            print(f"wrote {path}")
        self._say_next(folder)

    def _say_next(self, folder: Path) -> None:
        if self.recipe.full or self.checkpoint in BUNDLED:
            say_next("render", self.capture, checkpoint=folder)
        else:  # an adapter names its base, and not where that lies
            say_next("render", self.capture, checkpoint=self.checkpoint, lora=folder)

    def _case(self, capture: str, size: int) -> EvaluationCase:
        """The test photos, and all training photos as references, the best of them first."""
        scene = self.capture_options.load(capture)
        test, train = self.capture_options.split_of(scene)
        return capture_case(scene, test, size, size, len(train), train)

    def _save_adapter(self, folder: Path, trainer: Trainer, result: KaleidoViewSynthesisPipeline, rows: list) -> None:
        """The adapter with its scores, its card beside it."""
        ours = {f"PSNR, {r['references']} references": r["psnr"] for r in rows if r["model"] == "fine-tuned"}
        weights = save_adapter(folder, result.transformer, replace(trainer.adapter_info(), scores=ours))
        print(f"adapter of {weights.stat().st_size / 1e6:.2f} MB")
        summary = [{"method": row["model"], **{key: row[key] for key in COLUMNS if key != "model"}} for row in rows]
        write_json(folder / "scores.json", {"minutes": round(trainer.minutes, 1), "summary": summary})
        write_card(folder)

    def _scores(
        self,
        pipe: KaleidoViewSynthesisPipeline | None,
        case: EvaluationCase,
        name: str,
        pictures: dict[str, torch.Tensor] | None = None,
    ) -> list[dict]:
        """Rows of the table. `pictures` of the test photos are added to; those of the references are called `""`."""
        train = len(case.images) - case.num_targets
        counts = tuple(count for count in self.scored_references if count <= train) or (train,)
        if pipe is None:  # what all photos say that training had
            return [{**row, "model": row["method"]} for row in evaluate(None, [case], (train,)).summary()]
        pipe.set_progress_bar_config(disable=True)
        size = case.images.shape[-1]
        options = {"height": size, "width": size, "num_inference_steps": self.denoising_steps, "views_per_group": 1}
        result = evaluate(pipe, [case], counts, baselines=name == "base", **options)
        for picture in result.pictures if pictures is not None else ():
            pictures |= {name: picture["kaleido"], "truth": picture["truth"], "": picture["references"]}
        return [{**row, "model": name if row["method"] == "kaleido" else row["method"]} for row in result.summary()]


def _verdict(rows: list[dict]) -> str:
    """What the table says: whether fine-tuning was worth it."""
    ours = max((row for row in rows if row["model"] == "fine-tuned"), key=lambda row: row["psnr"])
    base, nearest = (
        max(row["psnr"] for row in rows if row["model"] == model and row["references"] >= fewest)
        for model, fewest in (("base", 0), ("nearest", max(row["references"] for row in rows)))
    )
    text = f"kept-back photos: {ours['psnr']:.2f} dB from {ours['references']} references, {base:.2f} dB before"
    text += f"; the nearest of all training photos {nearest:.2f} dB"
    if ours["psnr"] > max(base, nearest):
        return text
    return f"{text}. That is no gain: train longer (--steps), or take more photos, closer together."


def _peak_memory() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB on the GPU"
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB"
