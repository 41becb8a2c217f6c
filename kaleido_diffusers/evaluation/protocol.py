"""How a model is scored: which views it gets, which it must make, and against what it is held."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace

import torch

from ..captures.scene import Scene
from ..geometry.cameras import Cameras, scene_frame, view_distances
from ..geometry.choosing import reference_order
from ..geometry.views import ViewGeometry, Views
from ..pipelines.pipeline_kaleido import KaleidoViewSynthesisPipeline
from ..worlds.sources import SyntheticSource
from .baselines import nearest_reference, plane_sweep, reference_distances
from .metrics import LPIPS, consistency, gradient_energy, psnr, ssim


__all__ = ["EvaluationCase", "EvaluationResult", "Score", "capture_case", "evaluate", "sample_case", "synthetic_cases"]


@dataclass
class EvaluationCase:
    """
    One scene to be scored on.

    Attributes:
        name (`str`): of the scene.
        views (`Views` of shape `[R + M]`): pixels in [0, 1]; references in the order in which they are given to the
            model, then targets.
        num_targets (`int`): M. Targets that follow each other are neighbours.
    """

    name: str
    views: Views
    num_targets: int

    @property
    def images(self) -> torch.Tensor:
        """Pixels in [0, 1], `[R + M, 3, H, W]`."""
        return self.views.pixels

    @property
    def cameras(self) -> Cameras:
        """Cameras of the views."""
        return self.views.cameras


@dataclass
class Score:
    """Scores of one generated view; `NaN` where a score was not taken."""

    method: str  # what made it
    scene: str  # name of the case
    target: int  # number of the target in it
    num_references: int  # it was made from
    distance: float  # from the nearest of them, see `view_distances`
    psnr: float  # dB
    ssim: float  # structural similarity
    lpips: float  # perceptual distance
    gradient: float  # `gradient_energy` of the view
    true_gradient: float  # and of the truth
    consistency: float  # with the other target, see `cross_view_consistency`
    true_consistency: float  # of the truths


@dataclass
class EvaluationResult:
    """All scores, and the pictures of some scenes."""

    scores: list[Score] = field(default_factory=list)  # one for each method, target and number of references
    pictures: list[dict[str, torch.Tensor]] = field(default_factory=list)  # by method, `[M, 3, H, W]`

    def rows(self) -> list[dict]:
        """Every score as a plain dictionary."""
        return [asdict(score) for score in self.scores]

    def summary(self) -> list[dict]:
        """Means for each method and number of references. `gradient_energy` is that of the generated views over that
        of the true ones: 1 is as sharp as the truth."""
        groups: dict[tuple[str, int], list[Score]] = {}
        for score in self.scores:
            groups.setdefault((score.method, score.num_references), []).append(score)
        return [{"method": key[0], "references": key[1], **_means(scores)} for key, scores in groups.items()]

    def by_distance(self, num_references: int = 3, bins: int = 4) -> list[dict]:
        """Means for each method by the distance from target to nearest reference, in equally full bins.

        Args:
            num_references (`int`, defaults to `3`): of the scores that are taken.
            bins (`int`, defaults to `4`): how many.
        """
        chosen = [score for score in self.scores if score.num_references == num_references]
        if not chosen:
            return []
        distances = torch.tensor([score.distance for score in chosen], dtype=torch.float32)
        edges = torch.quantile(distances, torch.linspace(0, 1, bins + 1, dtype=torch.float32)[1:-1])
        groups: dict[tuple[int, str], list[Score]] = {}
        for score in chosen:
            place = int(torch.bucketize(torch.tensor(score.distance, dtype=torch.float32), edges))
            groups.setdefault((place, score.method), []).append(score)
        return [
            {"method": key[1], "distance": _mean([s.distance for s in scores]), **_means(scores)}
            for key, scores in sorted(groups.items())
        ]


def _mean(values: Sequence[float]) -> float:
    """Mean of the values that were taken. Infinite ones count if there are no others: a capture may hold a photo
    twice."""
    values = torch.tensor(values, dtype=torch.float32)
    finite = values[values.isfinite()]
    return float(finite.mean() if len(finite) else values.nanmean())


def _means(scores: Sequence[Score]) -> dict[str, float]:
    names = ("psnr", "ssim", "lpips", "consistency", "true_consistency")
    means = {name: _mean([getattr(score, name) for score in scores]) for name in names}
    energy = _mean([score.gradient for score in scores]) / _mean([score.true_gradient for score in scores])
    return {"views": len(scores), **means, "gradient_energy": energy}


def synthetic_cases(
    num_scenes: int = 200,
    size: int = 64,
    level: str = "mixed",
    split: str = "test",
    max_references: int = 12,
    spread: float = 1.0,
    max_solids: int = 6,
) -> Iterator[EvaluationCase]:
    """Scenes of a split of the synthetic worlds (see [`SyntheticSource`] for what sets them apart): 24 views each, of
    which one and its nearest neighbour are the targets and the first of the others the references.

    Args:
        num_scenes (`int`, defaults to `200`): how many.
        size (`int`, defaults to `64`): pixels a side.
        level (`str`, defaults to `"mixed"`): kind of worlds: `object`, `scene` or `mixed`.
        split (`str`, defaults to `"test"`): `train`, `validation` or `test`.
        max_references (`int`, defaults to `12`): most references.
        spread (`float`, defaults to `1.0`): how far the cameras are apart, from 0 to 1.
        max_solids (`int`, defaults to `6`): most solids of a world.
    """
    source = SyntheticSource(level, "views", split, num_scenes, 24, size, spread, max_solids)
    return (_synthetic_case(f"{split}-{index:04d}", source[index], max_references) for index in range(num_scenes))


def _synthetic_case(name: str, sample: Views, max_references: int) -> EvaluationCase:
    poses = scene_frame(sample.poses, 0).normalize(sample.poses)
    gaps = view_distances(poses[:1], poses)[0]
    gaps[0] = torch.inf
    targets = [0, int(gaps.argmin())]
    order = [view for view in range(len(sample)) if view not in targets][:max_references] + targets
    return sample_case(name, sample.select(order), 2)


def sample_case(name: str, sample: Views, num_targets: int) -> EvaluationCase:
    """Views of a source, the last `num_targets` of them to be made from the others.

    Args:
        name (`str`): of the case.
        sample ([`Views`]): its views.
        num_targets (`int`): how many, the last, are to be made.
    """
    return EvaluationCase(name, replace(sample, pixels=sample.pixels.float() / 255), num_targets)


def capture_case(
    scene: Scene,
    targets: Sequence[int],
    height: int,
    width: int,
    max_references: int = 12,
    candidates: Sequence[int] | None = None,
) -> EvaluationCase:
    """A capture: `targets` are kept back, references are those of `candidates` (all others when not given) that see
    most of what the targets see.

    Args:
        scene ([`Scene`]): the capture.
        targets (`Sequence[int]`): views to be made.
        height (`int`): pixels.
        width (`int`): pixels.
        max_references (`int`, defaults to `12`): most references.
        candidates (`Sequence[int]`, *optional*): views that may be references.
    """
    rest = [view for view in candidates or range(len(scene)) if view not in targets]
    order = reference_order(scene.cameras, min(max_references, len(rest)), rest, scene.cameras[targets])
    order += list(targets)
    images, cameras = scene.fitted(order, height, width)
    return EvaluationCase(scene.name, Views.seen(images, ViewGeometry.of(cameras)), len(targets))


def evaluate(
    pipe: KaleidoViewSynthesisPipeline | None,
    cases: Iterable[EvaluationCase],
    num_references: Sequence[int] = (1, 2, 3, 6, 12),
    lpips: LPIPS | None = None,
    baselines: bool = True,
    num_pictures: int = 8,
    **options,
) -> EvaluationResult:
    """
    Scores a pipeline, and the baselines beside it.

    Args:
        pipe ([`KaleidoViewSynthesisPipeline`], *optional*):
            What to score; the baselines alone when not given.
        cases (`Iterable[EvaluationCase]`):
            The scenes.
        num_references (`Sequence[int]`, defaults to `(1, 2, 3, 6, 12)`):
            How many references to give; more than a case has are left out.
        lpips ([`LPIPS`], *optional*):
            Takes the perceptual distance.
        baselines (`bool`, defaults to `True`):
            Whether to score the nearest reference, one flat colour, and the plane sweep too.
        num_pictures (`int`, defaults to `8`):
            Scenes whose views are kept for pictures, at 3 references or the number nearest to it.
        options:
            Passed to the pipeline (`num_inference_steps`, `guidance_scale`, ...).
    """
    result = EvaluationResult()
    pictured = min(num_references, key=lambda count: abs(count - 3))
    for number, case in enumerate(cases):
        total = len(case.images) - case.num_targets
        truth, targets = case.images[total:], case.cameras[total:]
        of_truth = {"true_gradient": gradient_energy(truth), "true_consistency": _consistency(truth)}
        for count in num_references:
            if count > total:
                continue
            images, cameras = case.images[:count], case.cameras[:count]
            known = {**of_truth, "distance": reference_distances(cameras, targets).amin(-1)}
            made = {}
            if pipe is not None:
                generator = torch.Generator().manual_seed(number)
                views = pipe(images, cameras, targets, generator=generator, output_type="pt", **options).images
                made["kaleido"] = views.float().cpu()
            if baselines:
                made["nearest"] = nearest_reference(images, cameras, targets)
                made["flat"] = images.mean((0, 2, 3)).view(1, 3, 1, 1).expand_as(truth)
                made["plane sweep"] = plane_sweep(images, cameras, targets)
            for method, views in made.items():
                result.scores += _scores(method, case.name, count, views, truth, lpips, known)
            if count == pictured and number < num_pictures:
                result.pictures.append({"references": images, **made, "truth": truth})
    return result


def _scores(method: str, scene: str, count: int, views, truth, lpips: LPIPS | None, known) -> list[Score]:
    """Scores of one method; `known` are the columns that all methods share."""
    columns = {
        "psnr": psnr(views, truth),
        "ssim": ssim(views, truth),
        "lpips": torch.full((len(views),), torch.nan, dtype=torch.float32) if lpips is None else lpips(views, truth),
        "gradient": gradient_energy(views),
        "consistency": _consistency(views),
        **known,
    }
    return [
        Score(method, scene, index, count, **{name: float(column[index]) for name, column in columns.items()})
        for index in range(len(views))
    ]


def _consistency(views: torch.Tensor) -> torch.Tensor:
    """Of each view `[M]` with the one before it; `NaN` for the first, and for views too small to tell."""
    scores = torch.full((len(views),), torch.nan, dtype=torch.float32)
    if len(views) > 1 and min(views.shape[-2:]) >= 32:
        scores[1:] = consistency(views[1:], views[:-1])
    return scores
