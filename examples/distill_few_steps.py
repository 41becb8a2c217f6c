"""Distils a checkpoint to four steps: in each of four windows of the noise one step of the student lands where several
steps of the teacher do (piecewise rectified flow, PeRFlow, arXiv 2405.07510), over the one training loop.

    kaleido shard --data object --max-solids 2 --scenes 2000 --output worlds
    python examples/distill_few_steps.py --data worlds --minutes 30 --output runs/four-steps
    python benchmarks/few_steps.py --checkpoint runs/four-steps/pipeline --solvers euler --shifts 2 --steps 4
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from kaleido_diffusers import KaleidoTransformer3DModel, RectifiedFlowViewScheduler, bundled_checkpoint
from kaleido_diffusers.geometry.views import Views, as_shown
from kaleido_diffusers.training.config import TrainConfig
from kaleido_diffusers.training.loop import Trainer
from kaleido_diffusers.training.objective import ViewPartition


@dataclass
class Config:
    data: tuple[str, ...]
    """Sources as in `kaleido train`."""
    teacher: Path = Path(bundled_checkpoint())
    """Pipeline folder, in pixels and with sample prediction."""
    output: Path = Path("runs/four-steps")
    """Folder for checkpoints, the log and the student's pipeline."""
    windows: int = 4
    """Steps of the student."""
    teacher_steps: int = 6
    """Steps of the teacher in each window."""
    steps: int = 800
    """Optimizer steps."""
    minutes: float | None = None
    """Training time; a second call goes on."""


class Distillation(Trainer):
    """The training loop with the teacher's steps as the truth."""

    def __init__(self, config: Config, settings: TrainConfig):
        super().__init__(settings)
        self.recipe = config
        teacher = KaleidoTransformer3DModel.from_pretrained(config.teacher, subfolder="transformer")
        self.teacher = teacher.to(self.accelerator.device).eval().requires_grad_(False)
        self.scheduler = RectifiedFlowViewScheduler.from_config(self.scheduler.config, solver="euler")  # the student's
        schedule = RectifiedFlowViewScheduler.from_config(self.scheduler.config)
        schedule.set_timesteps(config.windows * config.teacher_steps)
        self.sigmas = schedule.sigmas  # falls from 1 to 0; every `teacher_steps`th is a step of the student

    def loss(self, batch: Views, partition: ViewPartition, generators: Sequence[torch.Generator]) -> torch.Tensor:
        # ---------------------------------------------------------------------------------------- views and cameras
        batch, count = batch.select(partition.order), partition.num_references
        shown = as_shown(batch, count, max_focal_length=self.teacher.config.max_focal_length)
        known, wanted = shown.select(slice(count)).arguments(), shown.select(slice(count, None)).arguments()
        references, clean = batch.pixels[:, :count], batch.pixels[:, count:]

        # ---------------------------------------------------------------------------------------- where windows begin
        windows = [torch.randint(self.recipe.windows, (1, clean.shape[1]), generator=g) for g in generators]
        begin = torch.cat(windows) * self.recipe.teacher_steps
        noise = torch.cat([torch.randn(1, *clean.shape[1:], generator=g) for g in generators]).to(clean)
        sigma = self.sigmas[begin].to(clean)
        start = self.scheduler.scale_noise(clean, 1000 * sigma, noise)

        # ---------------------------------------------------------------------------------------- the teacher's steps
        with torch.no_grad():
            cache = self.teacher.encode_views(references, **known) if count else None
            views, groups = start, list(range(clean.shape[1]))
            for step in range(self.recipe.teacher_steps):
                now, after = (self.sigmas[begin + step + i].to(clean) for i in (0, 1))
                told = {"cache": cache} if count else {"num_targets": len(groups)}
                call = {"timestep": 1000 * now, "view_groups": groups, **told, "return_dict": False}
                predicted = self.teacher(views, **wanted, **call)[0]
                views = torch.lerp(predicted, views, (after / now)[..., None, None, None])

        # ---------------------------------------------------------------------------------------- the student's one
        ratio = (self.sigmas[begin + self.recipe.teacher_steps].to(clean) / sigma)[..., None, None, None]
        target = (views - ratio * start) / (1 - ratio)  # the clean view whose straight line leads there
        prediction = self.model(
            torch.cat([references, start], dim=1),
            torch.cat([sigma.new_zeros(len(clean), count), 1000 * sigma], dim=1),
            **shown.arguments(),
            view_groups=[0] * count + [1 + group for group in groups],
            num_targets=len(groups),
            return_dict=False,
        )[0]
        return (prediction - target).square().mean()


def main(config: Config) -> None:
    settings = TrainConfig(
        output=config.output,
        data=config.data,
        init_from=config.teacher,
        size=64,
        batch=4,
        views=9,
        references=(1, 2, 3, 5),
        target_group_sizes=(1,),
        reference_dropout=0.0,
        ordered_references=0.0,
        matrix_lr=0.003,
        other_lr=3e-4,
        ema_decay=0.99,
        warmup_steps=30,
        steps=config.steps,
        max_minutes=config.minutes,
        in_memory=True,
        workers=0,
        validate_every=config.steps,
        tracker="none",
    )
    folder = Distillation(config, settings).train()
    print(f"wrote {folder}")


if __name__ == "__main__":
    main(tyro.cli(Config))
