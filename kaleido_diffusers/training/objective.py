"""The one training objective: rectified flow on target views, given clean references.

3D and video differ in their data alone: views with cameras, or frames with times.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..geometry.views import Views, as_shown
from ..models.transformer_kaleido import KaleidoTransformer3DModel
from ..schedulers.scheduling_rectified_flow_view import RectifiedFlowViewScheduler


__all__ = ["Denoised", "ViewPartition", "denoise_targets", "draw_partition"]


@dataclass(frozen=True)
class ViewPartition:
    """
    Which views of a batch are references and which are targets, in which groups.

    Attributes:
        references (`tuple[tuple[int, ...], ...]`): indices of the views of each memory group, in their order.
        targets (`tuple[tuple[int, ...], ...]`): indices of the views of each target group.
        drop_references (`bool`): whether the targets are denoised without their references (for guidance). The
            references still set the frame and the unit of the scene, as they do in sampling.
    """

    references: tuple[tuple[int, ...], ...]
    targets: tuple[tuple[int, ...], ...]
    drop_references: bool = False

    @property
    def num_references(self) -> int:
        return sum(map(len, self.references))

    @property
    def order(self) -> list[int]:
        """All views: references, then targets."""
        return [view for group in self.references + self.targets for view in group]

    def view_groups(self) -> list[int]:
        """Group number of each view in the order of `order`, as the transformer takes them."""
        return [number for number, group in enumerate(self.references + self.targets) for _ in group]


def draw_partition(
    num_views: int,
    generator: torch.Generator,
    num_references: int | None = None,
    reference_dropout: float = 0.1,
    ordered_references: float = 0.5,
    target_group_sizes: Sequence[int] = (1, 2, 4),
) -> ViewPartition:
    """
    Draws a random partition of views; one holds for a whole batch.

    Args:
        num_views (`int`):
            V, the views of each scene.
        generator (`torch.Generator`):
            Source of randomness (on the CPU).
        num_references (`int`, *optional*):
            N; drawn evenly from 0 to V - 1 when not given.
        reference_dropout (`float`, defaults to `0.1`):
            Probability that the targets do without their references.
        ordered_references (`float`, defaults to `0.5`):
            Probability that the references come in several ordered groups, as in a memory that grew.
        target_group_sizes (`Sequence[int]`, defaults to `(1, 2, 4)`):
            Sizes of target groups, one of which is drawn. The last group may be smaller.
    """

    def chance(probability: float) -> bool:
        return torch.rand((), generator=generator, dtype=torch.float32).item() < probability

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    if num_references is None:
        num_references = integer(0, num_views)
    if not 0 <= num_references < num_views:
        raise ValueError(f"`num_references` must lie between 0 and {num_views - 1}, got {num_references}.")
    order = torch.randperm(num_views, generator=generator).tolist()
    cuts = [0, num_references]
    if num_references > 1 and chance(ordered_references):
        inner = torch.randperm(num_references - 1, generator=generator)[: integer(1, num_references)] + 1
        cuts = [0, *sorted(inner.tolist()), num_references]
    references = tuple(tuple(order[a:b]) for a, b in zip(cuts, cuts[1:]) if a < b)
    size = target_group_sizes[integer(0, len(target_group_sizes))]
    targets = tuple(tuple(order[i : i + size]) for i in range(num_references, num_views, size))
    return ViewPartition(references, targets, bool(references) and chance(reference_dropout))


@dataclass(frozen=True)
class Denoised:
    """
    What the model made of noisy targets.

    Attributes:
        views (`torch.Tensor` of shape `[B, M, C, H, W]`): the clean views (or latents) that its answer stands for.
        truth (`torch.Tensor` of shape `[B, M, C, H, W]`): what they are.
        error (`torch.Tensor` of shape `[B, M, C, H, W]`): of the velocity.
    """

    views: torch.Tensor
    truth: torch.Tensor
    error: torch.Tensor

    @property
    def loss(self) -> torch.Tensor:
        """Mean squared error of the velocity, `[]`: `E |v(x_sigma, sigma, references) - (eps - x_0)|^2`. With
        `prediction_type="sample"` this is `|x_0 prediction - x_0|^2 / max(sigma, sigma_min)^2`."""
        return self.error.square().mean()


def denoise_targets(
    transformer: KaleidoTransformer3DModel,
    scheduler: RectifiedFlowViewScheduler,
    batch: Views,
    partition: ViewPartition,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    max_focal_length: float | None = None,
) -> Denoised:
    """
    One pass of the model over noisy targets and clean references. Each target group has a noise level of its own.

    Args:
        transformer ([`KaleidoTransformer3DModel`]):
            The model, wrapped or not.
        scheduler ([`RectifiedFlowViewScheduler`]):
            Its training distribution and prediction type are used.
        batch ([`Views`] of shape `[B, V]`):
            Views in [-1, 1] or latents, in any frame and unit.
        partition ([`ViewPartition`]):
            Shared by the batch.
        generator (`torch.Generator` or a sequence of B of them, *optional*):
            Source of the noise (on the CPU), for the batch or for each row of it.
        max_focal_length (`float`, *optional*):
            That of the config of the transformer, see [`as_shown`].

    Returns:
        [`Denoised`]: what it made of them, and how far that is from the truth.
    """
    batch = batch.select(partition.order)
    groups = partition.view_groups()
    num_references = partition.num_references
    batch = Views.seen(batch.pixels, as_shown(batch, num_references, max_focal_length=max_focal_length))
    if partition.drop_references:
        batch = batch.select(slice(num_references, None))
        groups, num_references = groups[num_references:], 0
    references, clean = batch.pixels[:, :num_references], batch.pixels[:, num_references:]

    rows = [(len(clean), generator)]
    if isinstance(generator, Sequence):
        rows = [(1, row_generator) for row_generator in generator]
    sizes = torch.tensor([len(group) for group in partition.targets])
    sigma = torch.cat([scheduler.sample_sigmas(count, len(sizes), source) for count, source in rows])
    sigma = sigma.repeat_interleave(sizes, dim=1).to(clean.device)
    noise = torch.cat(
        [torch.randn(count, *clean.shape[1:], generator=source, dtype=torch.float32) for count, source in rows]
    ).to(clean)
    timestep = sigma * scheduler.config.num_train_timesteps
    noisy = scheduler.scale_noise(clean, timestep, noise)
    prediction = transformer(
        torch.cat([references, noisy], dim=1),
        torch.cat([timestep.new_zeros(len(clean), num_references), timestep], dim=1),
        **batch.arguments(),
        view_groups=groups,
        num_targets=clean.shape[1],
        return_dict=False,
    )[0]
    truth = clean if scheduler.config.prediction_type == "sample" else noise - clean
    error = scheduler.to_velocity(prediction, noisy, sigma) - scheduler.to_velocity(truth, noisy, sigma)
    return Denoised(scheduler.to_sample(prediction, noisy, sigma), clean, error)
