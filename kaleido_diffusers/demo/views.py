"""From a capture and a wish to views, and to files that hold them."""

import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import PIL.Image
import torch

from ..captures.export import write_capture, write_video
from ..captures.images import tensor_to_image
from ..evaluation.baselines import reference_distances
from ..geometry import trajectories
from ..geometry.cameras import Cameras
from ..geometry.choosing import choose_references
from ..pipelines.pipeline_kaleido import KaleidoViewSynthesisPipeline
from .captures import Capture
from .limits import Limits, Progress, in_background


__all__ = [
    "FREE",
    "FREE_BOUNDS",
    "HELD_OUT",
    "PATHS",
    "Plan",
    "Result",
    "Wish",
    "generate",
    "plan_views",
    "write_files",
]

HELD_OUT, FREE = "photos kept back", "one free camera"
PATHS = (*trajectories.PATHS, HELD_OUT, FREE)
FREE_BOUNDS = {"azimuth": (-180, 180), "elevation": (-85, 85), "distance": (0.2, 4), "zoom": (0.25, 4)}
GROUP = 4  # views denoised together
_FPS = 8.0


@dataclass(frozen=True)
class Wish:
    """
    What a visitor asks for.

    Attributes:
        path (`str`): one of `PATHS`.
        views (`int`): views on the path.
        azimuth, elevation (`float`): of the free camera, degrees from the first photo's side and above what the
            photos look at.
        distance (`float`): of the free camera from there, in the photos' median distance.
        zoom (`float`): the free camera's focal length over the first photo's.
        references (`int`): photos given to the model.
        steps (`int`): denoising steps.
        guidance (`float`): classifier-free guidance, 1 for none.
        seed (`int`): of the noise.
    """

    path: str = "orbit"
    views: int = 24
    azimuth: float = 0.0
    elevation: float = 30.0
    distance: float = 1.0
    zoom: float = 1.0
    references: int = 6
    steps: int = 10
    guidance: float = 1.0
    seed: int = 0

    def check(self, limits: Limits) -> None:
        """Raises `ValueError` for what is not allowed: a page's sliders bind only those who use the page.

        Args:
            limits (`Limits`): what is allowed.
        """
        if self.path not in PATHS:
            raise ValueError(f"There is no path called {self.path!r}: choose one of {', '.join(PATHS)}.")
        bounds = {
            "views": (1, limits.views),
            "references": (1, limits.references),
            "steps": (1, limits.steps),
            **FREE_BOUNDS,
            "guidance": (0, 10),
            "seed": (0, 2**31 - 1),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise ValueError(f"The {name} must lie between {low} and {high}, got {value!r}.")
            if name in ("views", "references", "steps", "seed") and value != int(value):
                raise ValueError(f"The {name} must be a whole number, got {value!r}.")


@dataclass(frozen=True)
class Plan:
    """
    What is given and where from it will be seen.

    Attributes:
        references (`list[int]`): photos given to the model.
        targets (`Cameras` of shape `[M]`): where to.
        truths (`list[int]`): photos taken from there, one for each target, or none at all.
    """

    references: list[int]
    targets: Cameras
    truths: list[int]

    def nearest(self, capture: Capture) -> list[int]:
        """For each target the reference nearest in place and direction.

        Args:
            capture (`Capture`): the capture of the visitor.
        """
        nearest = reference_distances(capture.cameras[self.references], self.targets).argmin(-1)
        return [self.references[place] for place in nearest.tolist()]


@dataclass(frozen=True)
class Result:
    """The `views` of a `plan` of a `capture`, as many as were finished, and for each the number of the photo to hold
    it against, the `nearest`."""

    capture: Capture
    plan: Plan
    views: list[PIL.Image.Image]
    nearest: list[int]


def plan_views(capture: Capture, wish: Wish, limits: Limits) -> Plan:
    """The cameras and the references of a wish; raises `ValueError` for one that cannot be met.

    Args:
        capture (`Capture`): the capture of the visitor.
        wish (`Wish`): what the visitor asks for.
        limits (`Limits`): what is allowed.
    """
    wish.check(limits)
    photos, truths = list(range(len(capture))), []
    if wish.path == HELD_OUT:
        truths = capture.held_out[: int(wish.views)]
        if not truths:
            raise ValueError("A single photo leaves none to keep back: choose another path.")
        photos = [photo for photo in photos if photo not in capture.held_out]
    count = min(int(wish.references), len(photos))
    targets = capture.cameras[truths] if truths else _path(capture.cameras, count, wish)
    references = choose_references(capture.cameras, count, photos, targets) if count > 1 else _best(capture, targets)
    return Plan(references, targets, truths)


def _best(capture: Capture, targets: Cameras) -> list[int]:
    """The one reference for targets: choosing by what cameras see needs several to tell where they look."""
    if len(capture) == 1:
        return [0]
    photos = [photo for photo in range(len(capture)) if photo not in capture.held_out]
    return choose_references(capture.cameras, 1, photos, targets)


def _path(cameras: Cameras, references: int, wish: Wish) -> Cameras:
    if wish.path == FREE:
        return _free_camera(cameras, wish)
    if wish.path == "keyframes":
        if len(cameras) == 1:
            raise ValueError("A path through the photos needs at least two of them: choose another path.")
        cameras = cameras[choose_references(cameras, max(2, references), range(len(cameras)))]
    return trajectories.camera_path(wish.path, cameras, int(wish.views))


def _free_camera(cameras: Cameras, wish: Wish) -> Cameras:
    focus = trajectories.lone_focus(cameras)
    about = trajectories.focus_point(cameras) if focus is None else focus
    radius = wish.distance * float((cameras.centers - about).norm(dim=-1).median())
    arc = {"degrees": float(wish.azimuth), "elevation": float(wish.elevation), "radius": radius}
    camera = trajectories.orbit(cameras, num_views=2, **arc, focus=focus)[1:]
    intrinsics = camera.intrinsics.clone()
    intrinsics[:, :2, :2] *= wish.zoom
    return Cameras(camera.world_from_camera, intrinsics, camera.image_sizes)


def generate(
    pipe: KaleidoViewSynthesisPipeline, capture: Capture, plan: Plan, wish: Wish, cancelled: threading.Event
) -> Iterator[Progress]:
    """
    Generates the views of a plan. What is yielded names group and step; after each group, and at the end, its `news`
    is the [`Result`] so far. Setting `cancelled` ends it after the step that is being computed.

    Args:
        pipe (`KaleidoViewSynthesisPipeline`): what generates.
        capture (`Capture`): the capture of the visitor.
        plan (`Plan`): cameras and references.
        wish (`Wish`): what the visitor asks for.
        cancelled (`threading.Event`): set by who wants it to end.
    """
    groups = -(-len(plan.targets) // GROUP)
    result = Result(capture, plan, [], plan.nearest(capture))

    def work(report) -> None:
        def after_step(pipe, step: int, _timestep, tensors: dict) -> dict:
            nonlocal result
            if cancelled.is_set():
                pipe._interrupt = True
                return {}
            steps = pipe.num_timesteps // groups
            group, done = step // steps + 1, step % steps + 1
            news = None
            if done == steps:
                pixels = pipe.decode_latents(tensors["latents"])[0] / 2 + 0.5
                result = news = replace(result, views=[*result.views, *map(tensor_to_image, pixels)])
            text = f"Group {group} of {groups}, step {done} of {steps}"
            report(Progress(text, step + 1, pipe.num_timesteps, news))
            return {}

        pipe(
            list(capture.pixels[plan.references]),
            capture.cameras[plan.references],
            plan.targets,
            height=capture.pixels.shape[-2],
            width=capture.pixels.shape[-1],
            num_inference_steps=int(wish.steps),
            guidance_scale=float(wish.guidance),
            views_per_group=GROUP,
            generator=torch.Generator().manual_seed(int(wish.seed)),
            output_type="latent",  # the views were decoded as they came
            callback_on_step_end=after_step,
        )

    yield Progress(f"Looking at {len(plan.references)} reference photos")
    yield from in_background(work, cancelled)
    done = f"{len(result.views)} of {len(plan.targets)} views"
    yield Progress(f"Stopped after {done}" if cancelled.is_set() else f"Done: {done}", 1, 1, result)


def write_files(result: Result, folder: Path) -> list[Path]:
    """Writes views as MP4, as GIF, and with their references as a capture folder in a zip.

    Args:
        result (`Result`): the views.
        folder (`Path`): where the files go.
    """
    folder.mkdir(parents=True)
    files = [write_video(folder / f"kaleido{suffix}", result.views, _FPS) for suffix in (".mp4", ".gif")]
    references = result.plan.references
    images = [tensor_to_image(result.capture.pixels[photo] / 255) for photo in references] + result.views
    cameras = Cameras.cat([result.capture.cameras[references], result.plan.targets[: len(result.views)]])
    generated = [False] * len(references) + [True] * len(result.views)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        write_capture(Path(scratch) / "kaleido", images, cameras, generated=generated)
        files.append(Path(shutil.make_archive(str(folder / "kaleido"), "zip", scratch, "kaleido")))
    return files
