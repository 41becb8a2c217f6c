"""What a checkpoint sees of worlds and of photos that it has not been trained on, beside the nearest reference, one
flat colour and a plane sweep.

    python benchmarks/seeing.py --checkpoint kaleido-tiny --worlds shards/test --captures fox skull --lpips alex.pth

Worlds come from shards of pictures (`kaleido shard --data worlds --split test`): of each, the first view and the one
nearest to it are made from references drawn among the others. Of a capture every eighth photo is made, each from the
references nearest to it; the others are what references are taken from.
"""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from measuring import show
from tqdm.auto import tqdm

from kaleido_diffusers import Cameras, KaleidoViewSynthesisPipeline, RectifiedFlowViewScheduler, load_scene
from kaleido_diffusers.cli.loading import load_pipeline
from kaleido_diffusers.evaluation.baselines import nearest_reference, plane_sweep, reference_distances
from kaleido_diffusers.evaluation.metrics import LPIPS, gradient_energy, psnr
from kaleido_diffusers.evaluation.report import contact_sheet
from kaleido_diffusers.geometry.choosing import held_out_views
from kaleido_diffusers.worlds.shards import ShardSource


COLUMNS = {
    "data": "", "references": "d", "method": "", "steps": "d", "psnr": ".2f", "lpips": ".3f", "gradient_energy": ".2f",
    "views": "d",
}  # fmt: skip


@dataclass
class Config:
    checkpoint: str = "kaleido-tiny"
    """Folder or Hub id of a pipeline, or the name of a bundled checkpoint."""
    worlds: Path | None = None
    """Shards of pictures of held-out worlds."""
    scenes: int = 200
    """Most of these worlds."""
    captures: tuple[Path, ...] = ()
    """Folders of captures."""
    photos: int = 25
    """Most held-out photos of a capture, evenly spread."""
    references: tuple[int, ...] = (1, 3, 6, 12)
    """Numbers of references of worlds."""
    capture_references: tuple[int, ...] = (6,)
    """Numbers of references of captures."""
    steps: tuple[int, ...] = (1, 10)
    """Numbers of denoising steps."""
    solver: str | None = None
    """Of the scheduler, instead of the checkpoint's."""
    shift: float | None = None
    """Likewise."""
    guidance_scale: float = 1.0
    """Classifier-free guidance."""
    baselines: bool = True
    """Score the baselines too."""
    lpips: Path | None = None
    """State dict of LPIPS (AlexNet, version 0.1)."""
    dtype: str = "float32"
    """Precision of the weights."""
    output: Path = Path("runs/seeing")
    """Folder of the table (JSON) and of a sheet a data set."""

    def main(self) -> None:
        torch.set_grad_enabled(False)
        pipe = load_pipeline(self.checkpoint, dtype=self.dtype)
        pipe.set_progress_bar_config(disable=True)
        changes = {"solver": self.solver, "shift": self.shift}
        changes = {name: value for name, value in changes.items() if value is not None}
        pipe.scheduler = RectifiedFlowViewScheduler.from_config(pipe.scheduler.config, **changes)
        self.output.mkdir(parents=True, exist_ok=True)
        lpips, rows = None if self.lpips is None else LPIPS(self.lpips), []
        sets = {} if self.worlds is None else {"worlds": (self._worlds(pipe.default_sample_size), self.references)}
        for folder in self.captures:
            sets[folder.name] = (self._photos(folder, pipe.default_sample_size), self.capture_references)
        for name, (cases, counts) in sets.items():
            scores, shown = defaultdict(list), []
            for number, case in enumerate(tqdm(cases, desc=name)):
                for count in counts:
                    if count <= len(case[0]):
                        self._score(pipe, lpips, number, *case, count, scores, shown)
            rows += [_mean(name, key, values) for key, values in scores.items()]
            (self.output / "seeing.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
            views = {row: torch.cat([views[row] for views in shown[:8]]) for row in shown[0]}
            contact_sheet(torch.zeros(0, 3, 1, 1), views).save(self.output / f"{name}.png")
        show(rows, COLUMNS, self.output / "seeing.json")

    def _worlds(self, size: int):
        """References and their cameras in the order in which they are taken, targets and theirs."""
        source = ShardSource(self.worlds, size)
        for index in range(min(self.scenes, len(source))):
            sample = source[index]
            cameras = sample.cameras
            gaps = reference_distances(cameras, cameras[:1])[0]
            gaps[0] = torch.inf
            targets = [0, int(gaps.argmin())]
            rest = [view for view in range(len(sample)) if view not in targets]
            images = sample.views.float() / 255
            yield images[rest], cameras[rest], images[targets], cameras[targets]

    def _photos(self, folder: Path, size: int):
        """Of each held-out photo: all others, nearest first, and itself."""
        scene = load_scene(folder, missing="skip")
        held_out = held_out_views(len(scene))
        rest = [view for view in range(len(scene)) if view not in held_out]
        images, cameras = scene.fitted(range(len(scene)), size, size)
        places = torch.linspace(0, len(held_out) - 1, min(self.photos, len(held_out))).round().long().tolist()
        for target in [held_out[place] for place in places]:
            order = reference_distances(cameras[rest], cameras[[target]])[0].argsort()
            order = [rest[place] for place in order.tolist()]
            yield images[order], cameras[order], images[[target]], cameras[[target]]

    def _score(
        self,
        pipe: KaleidoViewSynthesisPipeline,
        lpips: LPIPS | None,
        number: int,
        images: torch.Tensor,
        cameras: Cameras,
        truth: torch.Tensor,
        targets: Cameras,
        count: int,
        scores: dict,
        shown: list,
    ) -> None:
        references, known, made = images[:count], cameras[:count], {}
        for steps in self.steps:
            made["kaleido", steps] = pipe(
                references,
                known,
                targets,
                num_inference_steps=steps,
                guidance_scale=self.guidance_scale,
                views_per_group=1,
                joins_memory="none",
                generator=torch.Generator().manual_seed(number),
                output_type="pt",
            ).images.float()
        if self.baselines:
            made["nearest", 0] = nearest_reference(references, known, targets)
            made["flat", 0] = references.mean((0, 2, 3)).view(1, 3, 1, 1).expand_as(truth)
            made["plane sweep", 0] = plane_sweep(references, known, targets)
        for (method, steps), views in made.items():
            perceptual = torch.full((len(views),), torch.nan) if lpips is None else lpips(views, truth)
            columns = (psnr(views, truth), perceptual, gradient_energy(views), gradient_energy(truth))
            scores[count, method, steps] += torch.stack(columns, dim=1).tolist()
        if count == min(6, max(self.references)) and number < 8:
            picture = {f"{method} {steps or ''}".strip(): views[:1] for (method, steps), views in made.items()}
            shown.append({"nearest": references[:1]} | picture | {"truth": truth[:1]})


def _mean(name: str, key: tuple, values: list) -> dict:
    values = torch.tensor(values)
    count, method, steps = key
    row = {"data": name, "references": count, "method": method, "steps": steps, "views": len(values)}
    energy = (values[:, 2].mean() / values[:, 3].mean()).item()
    return {**row, "psnr": values[:, 0].mean().item(), "lpips": values[:, 1].mean().item(), "gradient_energy": energy}


if __name__ == "__main__":
    tyro.cli(Config).main()
