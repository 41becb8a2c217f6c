"""From a capture and a wish to views."""

import math
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass, replace

import PIL.Image
import torch

from ..captures.images import tensor_to_image
from ..evaluation.baselines import reference_distances
from ..geometry import trajectories
from ..geometry.cameras import Cameras
from ..geometry.choosing import INVENTED, choose_references, seen_share, tour
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
    "azimuth_and_elevation",
    "best_path",
    "generate",
    "paths_for",
    "plan_views",
]

HELD_OUT, FREE = "photos kept back", "one free camera"
PATHS = ("keyframes", *(path for path in trajectories.PATHS if path != "keyframes"), HELD_OUT, FREE)
FREE_BOUNDS = {"azimuth": (-180, 180), "elevation": (-85, 85), "distance": (0.2, 4), "zoom": (0.25, 4)}
GROUP = 4  # views denoised together
MELTS = 0.2  # widths of a view, between it and the nearest reference, beyond which the checkpoint loses shapes


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
        picked (`tuple[int, ...]`): photos that the visitor chose as references; none: they are chosen for the path.
    """

    path: str = "keyframes"
    views: int = 24
    azimuth: float = 0.0
    elevation: float = 30.0
    distance: float = 1.0
    zoom: float = 1.0
    references: int = 12
    steps: int = 10
    guidance: float = 1.5
    seed: int = 0
    picked: tuple[int, ...] = ()

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
        seen (`list[float]`): how much of each target the references see, see [`seen_share`].
        gaps (`list[float]`): how far each target is from the nearest reference, in widths of what it shows.
    """

    references: list[int]
    targets: Cameras
    truths: list[int]
    seen: list[float]
    gaps: list[float]

    @property
    def melts(self) -> list[int]:
        """Targets that the references see, but from too far away for shapes to hold."""
        both = zip(self.gaps, self.seen)
        return [view for view, (gap, share) in enumerate(both) if gap > MELTS and share >= INVENTED]

    @property
    def invented(self) -> list[int]:
        """Targets that look where hardly a reference does."""
        return [view for view, share in enumerate(self.seen) if share < INVENTED]

    def nearest(self, capture: Capture) -> list[int]:
        """For each target the reference nearest in place and direction.

        Args:
            capture (`Capture`): the capture of the visitor.
        """
        nearest = reference_distances(capture.cameras[self.references], self.targets).argmin(-1)
        return [self.references[place] for place in nearest.tolist()]


@dataclass(frozen=True)
class Result:
    """The `views` of a `plan` of a `wish` of a `capture`, as many as were finished, and for each the number of the
    photo to hold it against, the `nearest`."""

    capture: Capture
    wish: Wish
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
    picked = sorted(photo for photo in set(wish.picked) if photo in photos)
    count = len(picked) or min(int(wish.references), len(photos))
    if count > limits.references:
        raise ValueError(f"These are {count} references: at most {limits.references} are taken. Choose fewer photos.")
    targets = capture.cameras[truths] if truths else _path(capture.cameras, picked, count, wish)
    references = picked or _chosen(capture, count, photos, targets)
    shown = capture.cameras[references]
    return Plan(references, targets, truths, seen_share(shown, targets).tolist(), _gaps(shown, targets))


def _gaps(references: Cameras, targets: Cameras) -> list[float]:
    distance = trajectories.looking_distances(references, targets)
    widths = distance / targets.normalized_intrinsics[:, 0, 0]
    return (torch.cdist(targets.centers, references.centers).amin(-1) / widths).tolist()


def _chosen(capture: Capture, count: int, photos: list[int], targets: Cameras) -> list[int]:
    if len(capture) == 1:  # choosing by what cameras see needs several to tell where they look
        return [0]
    if count == 1:
        photos = [photo for photo in photos if photo not in capture.held_out]
    return choose_references(capture.cameras, count, photos, targets)


def paths_for(capture: Capture | None) -> list[str]:
    """The paths that a capture allows: one photo leaves none to fly through, and none to keep back.

    Args:
        capture (`Capture`, *optional*): the capture of the visitor; all paths when not given.
    """
    if capture is None:
        return list(PATHS)
    lone = len(capture) == 1
    return [path for path in PATHS if not (lone and path == "keyframes") and (capture.held_out or path != HELD_OUT)]


def best_path(capture: Capture) -> str:
    """The path to begin with, which flies where the photos are.

    Args:
        capture (`Capture`): the capture of the visitor.
    """
    return "keyframes" if len(capture) > 1 else "arc"


def _path(cameras: Cameras, picked: list[int], references: int, wish: Wish) -> Cameras:
    if wish.path == FREE:
        return _free_camera(cameras, wish)
    if wish.path == "keyframes":
        if len(cameras) == 1:
            raise ValueError("A path through the photos needs at least two of them: choose another path.")
        keys = picked if len(picked) > 1 else choose_references(cameras, max(2, references), range(len(cameras)))
        cameras = cameras[[keys[place] for place in tour(cameras[keys])]]
    return trajectories.camera_path(wish.path, cameras, int(wish.views))


def azimuth_and_elevation(capture: Capture, direction: torch.Tensor) -> tuple[float, float]:
    """Where a free camera stands, in degrees as in [`Wish`], that looks at the scene from a direction.

    Args:
        capture (`Capture`): the capture of the visitor.
        direction (`torch.Tensor` of shape `[3]`): from what the photos look at to the camera, in the world.
    """
    focus = trajectories.lone_focus(capture.cameras)
    focus = trajectories.focus_point(capture.cameras) if focus is None else focus
    up = trajectories.up_direction(capture.cameras)
    first = capture.cameras.centers[0] - focus
    first = first - (first @ up) * up
    level = direction - (direction @ up) * up
    turn = torch.atan2(torch.linalg.cross(first, level) @ up, first @ level)
    tilt = torch.atan2(direction @ up, level.norm())
    low, high = FREE_BOUNDS["elevation"]
    return math.degrees(turn), min(max(math.degrees(tilt), low), high)


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
) -> Generator[Progress, None, None]:
    """
    Generates the views of a plan. What is yielded names the views at work; after each group, and at the end, its
    `news` is the [`Result`] so far. Setting `cancelled` ends it after the step that is being computed.

    Args:
        pipe (`KaleidoViewSynthesisPipeline`): what generates.
        capture (`Capture`): the capture of the visitor.
        plan (`Plan`): cameras and references.
        wish (`Wish`): what the visitor asks for.
        cancelled (`threading.Event`): set by who wants it to end.
    """
    count = len(plan.targets)
    groups, begin = -(-count // GROUP), time.monotonic()
    result = Result(capture, wish, plan, [], plan.nearest(capture))

    def work(report) -> None:
        def after_step(pipe, step: int, _timestep, tensors: dict) -> dict:
            nonlocal result
            if cancelled.is_set():
                pipe._interrupt = True
                return {}
            total, done = pipe.num_timesteps, step + 1
            group, news = step // (total // groups), None
            if done % (total // groups) == 0:
                pixels = pipe.decode_latents(tensors["latents"])[0] / 2 + 0.5
                result = news = replace(result, views=[*result.views, *map(tensor_to_image, pixels)])
            first, last = GROUP * group + 1, min(GROUP * (group + 1), count)
            which = f"view {first}" if first == last else f"views {first} to {last}"
            left = (time.monotonic() - begin) / done * (total - done)
            text = f"Generating {which} of {count}" + (f", about {left:.0f} s left" if left >= 2 else "")
            report(Progress(text, done, total, news))
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

    if not cancelled.is_set():
        yield Progress(f"Looking at {len(plan.references)} reference photos")
        yield from in_background(work, cancelled)
    done = f"{len(result.views)} of {count} views"
    text = f"Stopped after {done}" if cancelled.is_set() else f"Done: {done}"
    yield Progress(text, 1, 1, result, is_last=True)
