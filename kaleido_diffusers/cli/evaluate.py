"""`kaleido evaluate`: scores a checkpoint, beside simple baselines."""

import json
import math
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ..captures.images import save_image
from ..evaluation.metrics import LPIPS
from ..evaluation.protocol import EvaluationCase, EvaluationResult, capture_case, evaluate, synthetic_cases
from ..evaluation.report import contact_sheet, markdown_table, plot_scores
from ..files import refuse_existing, write_text
from .checks import check_at_least, check_folder, check_views, errors_first
from .evaluate_protocol import list_protocols, merge, run_protocol
from .loading import load_pipeline, say_next
from .settings import EvaluateSettings


__all__ = ["Evaluate"]

COLUMNS = {"method": "", "references": "d", "psnr": ".2f", "ssim": ".3f", "lpips": ".3f", "gradient_energy": ".2f"}
COLUMNS |= {"consistency": ".2f", "true_consistency": ".2f", "views": "d"}


class Evaluate(EvaluateSettings):
    def run(self) -> None:
        if self.published.list_protocols:
            return list_protocols()
        check_folder(self.output)
        check_at_least(self, steps=1, size=8, scenes=1, views_per_group=1)
        if self.published.merge:
            return merge(self.published.merge, self.output)
        if self.published.protocol is not None:
            call = {"num_inference_steps": self.steps, "guidance_scale": self.guidance_scale}
            call |= {"views_per_group": self.views_per_group}
            where = (self.checkpoint, self.size, call, self.lpips, self.device, self.output, self.lora, self.overwrite)
            return run_protocol(self.published, self.data, self.references, *where)
        self._run_own(self.references or (1, 2, 3, 6, 12))

    def _run_own(self, references: tuple[int, ...]) -> None:
        if not self.overwrite:
            refuse_existing(self.output / "scores.json")
        if min(references) < 1:
            raise ValueError(f"--references must be at least 1, where no --protocol is run, got {min(references)}.")
        with errors_first():
            lpips = None if self.lpips is None else LPIPS(self.lpips)
            pipe = None if self.checkpoint == "none" else load_pipeline(self.checkpoint, self.device, lora=self.lora)
            size = self.size or (64 if pipe is None else pipe.default_sample_size)
            if pipe is not None:
                check_views(pipe, size, size, self.guidance_scale)
            cases, total = self._cases(references, size)
        options = {"height": size, "width": size, "num_inference_steps": self.steps}
        options |= {"guidance_scale": self.guidance_scale, "views_per_group": self.views_per_group}
        if pipe is not None:
            pipe.set_progress_bar_config(disable=total > 1)
        started = time.monotonic()
        result = evaluate(pipe, tqdm(cases, total=total, desc="scenes"), references, lpips, **options)
        self._write(result, time.monotonic() - started)

    def _cases(self, references: tuple[int, ...], size: int) -> tuple[Iterable[EvaluationCase], int]:
        """What is scored on, and how many scenes that are."""
        most = max(references)
        if self.data in ("test", "validation"):
            worlds = (self.scenes, size, self.level, self.data, most, self.spread, self.max_solids)
            return synthetic_cases(*worlds), self.scenes
        scene = self.capture.load(self.data)
        targets, rest = self.capture.split_of(scene)
        if min(references) > len(rest):
            raise ValueError(f"--references: {scene.name} has {len(rest)} photos that may be references.")
        return [capture_case(scene, targets, size, size, most, rest)], 1

    def _write(self, result: EvaluationResult, seconds: float) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        for name in ("scores.png", "sheet.png"):  # of an earlier call: these may not be drawn now
            (self.output / name).unlink(missing_ok=True)
        summary, near_and_far = result.summary(), result.by_distance()
        settings = asdict(self)
        content = {"settings": settings, "seconds": round(seconds, 1), "summary": summary}
        content |= {"by_distance": near_and_far, "scores": result.rows()}
        content = _without_nan(content)
        scores, table = self.output / "scores.json", self.output / "scores.md"
        write_text(scores, json.dumps(content, indent=1, allow_nan=False, default=str) + "\n")
        text = markdown_table(summary, COLUMNS)
        if near_and_far:
            columns = {"method": "", "distance": ".2f", "psnr": ".2f", "lpips": ".3f", "views": "d"}
            text += "\nBy the distance of the target from the nearest of 3 references:\n\n"
            text += markdown_table(near_and_far, columns)
        write_text(table, text)
        print(text)
        written = [scores, table]
        try:
            plot_scores(summary, self.output / "scores.png")
            written.append(self.output / "scores.png")
        except ImportError:
            print("No plot: it needs matplotlib (pip install 'kaleido-diffusers[train]').")
        if result.pictures:
            written.append(self._sheet(result))
        for path in written:
            print(f"wrote {path}")
        if self.data not in ("test", "validation"):
            say_next("lora", self.data)

    def _sheet(self, result: EvaluationResult) -> Path:
        """One target of each pictured scene, in columns."""
        names = [name for name in result.pictures[0] if name != "references"]
        shown = min(3, *(len(picture["references"]) for picture in result.pictures))
        rows = {f"reference {i + 1}": torch.stack([p["references"][i] for p in result.pictures]) for i in range(shown)}
        rows |= {name: torch.stack([picture[name][0] for picture in result.pictures]) for name in names}
        path = self.output / "sheet.png"
        return save_image(contact_sheet(torch.zeros(0, 3, 1, 1, dtype=torch.float32), rows), path)


def _without_nan(value):
    """Scores that were not taken, and PSNR of equal images, have no place in JSON: null."""
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
