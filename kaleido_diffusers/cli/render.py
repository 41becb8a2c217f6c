"""`kaleido render`: new views of a capture."""

import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import PIL.Image
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm

from ..captures.export import write_capture, write_colmap, write_video
from ..captures.images import fit_cameras, save_image, tensor_to_image
from ..captures.readers.single_photo import UnknownLensError, is_photo, photo_scene
from ..captures.scene import Scene
from ..evaluation.baselines import nearest_reference
from ..evaluation.metrics import psnr
from ..evaluation.report import contact_sheet
from ..files import folder_written_whole, refuse_existing, remove_folder
from ..geometry.cameras import Cameras
from ..geometry.choosing import INVENTED, choose_references, seen_share, tour
from ..geometry.trajectories import camera_path
from ..models.precision import fast_dtype
from ..pipelines.inputs import DEFAULT_FOV
from ..pipelines.pipeline_kaleido import KaleidoViewSynthesisPipeline
from .checks import check_at_least, check_folder, check_views, errors_first
from .cost import rendering_cost
from .loading import load_pipeline, say_next, where_it_runs
from .settings import RenderSettings


__all__ = ["Render"]

_REFERENCES = 6  # given to the model, where there are as many
_LONG_SECONDS = 3600  # above which a run is begun with --yes alone


class _Groups:
    """Ctrl-C in a flight: the views that are being generated are finished, later ones are left out."""

    def __init__(self):
        self.is_interrupted = False

    def note_interrupt(self, _number, _frame) -> None:
        if self.is_interrupted or PartialState().num_processes > 1:
            raise KeyboardInterrupt
        self.is_interrupted = True
        print("\nCtrl-C: finishing these views; once more to stop at once.", file=sys.stderr)

    def note_step(self, pipe, step: int, _timestep, tensors: dict) -> dict:
        if self.is_interrupted and (step + 1) % pipe.scheduler.timesteps.shape[0] == 0:
            pipe._interrupt = True
        return tensors


@contextmanager
def _interrupts_after_a_group() -> Iterator[_Groups]:
    groups = _Groups()
    if threading.current_thread() is not threading.main_thread():  # where signals do not arrive
        yield groups
        return
    before = signal.signal(signal.SIGINT, groups.note_interrupt)
    try:
        yield groups
    finally:
        signal.signal(signal.SIGINT, before)


class _ViewBar:
    """A bar that counts views, also while they are at work, and shows the time that is left."""

    def __init__(self, views: int, after_step: Callable | None = None):
        form = "{l_bar}{bar}| {n:.1f}/{total_fmt} views [{elapsed}, {remaining} left]"
        hidden = not PartialState().is_main_process
        self._bar = tqdm(total=views, desc="generating", bar_format=form, disable=hidden)
        self._after_step = after_step

    def __enter__(self) -> "_ViewBar":
        return self

    def __exit__(self, *_error) -> None:
        self._bar.close()

    def note_step(self, pipe, step: int, timestep, tensors: dict) -> dict:
        self._bar.update(self._bar.total * (step + 1) / pipe.num_timesteps - self._bar.n)
        return tensors if self._after_step is None else self._after_step(pipe, step, timestep, tensors)


class Render(RenderSettings):
    def run(self) -> None:
        with errors_first():
            scene, targets, references, path = self._inputs()
            if not self.overwrite:
                refuse_existing(*self._outputs(scene, bool(targets)))
            on_cpu = self.device == "cpu" or not torch.accelerator.is_available()
            processes = PartialState(cpu=on_cpu)  # before the pipeline: it decides what `cuda` is
            if processes.num_processes > 1 and self.joins_memory == "all":
                raise ValueError(
                    "With --joins-memory all, groups wait for each other: give several processes `first` or `none`."
                )
            pipe = self._pipeline(processes)
            check_views(pipe, self.height, self.width, self.guidance_scale)
            self._check_cost(pipe, len(references), len(targets) + (0 if path is None else len(path)))
        pipe.set_progress_bar_config(disable=True)  # it counts steps; ours counts views
        processes.print(f"{scene.name}: {len(scene)} photos; references {references}; targets {targets or 'none'}")
        processes.print(f"{self.checkpoint}: {where_it_runs(pipe)}")
        self.output.mkdir(parents=True, exist_ok=True)
        written = []
        if targets:
            written += self._render_photos(pipe, scene, references, targets)
        if self.trajectory != "none":
            written += self._render_path(pipe, scene, references, path)
        for path in written:
            print(f"wrote {path}")
        if written:
            self._say_next()

    def _inputs(self) -> tuple[Scene, list[int], list[int], Cameras | None]:
        """The capture, its targets and references, and the path of the fly-through."""
        if self.fov is not None and not is_photo(self.capture):
            raise ValueError("--fov is for a single photo: a capture brings its lenses.")
        if self.export != "none" and self.trajectory == "none":
            raise ValueError("--export writes a fly-through: pass --trajectory.")
        check_at_least(
            self, references=1, views=1, height=8, width=8, steps=1, views_per_group=1, max_memory_views=1, fps=0.01
        )
        check_folder(self.output)
        if is_photo(self.capture):
            self.trajectory = "arc" if self.trajectory == "none" else self.trajectory
            scene = self._photo()
            return scene, [], [0], self._path(scene, [0])
        if self.trajectory == "none" and self.targets == "none":
            raise ValueError("There is nothing to render: pass --targets or --trajectory.")
        scene = self.capture_options.load(self.capture)
        return scene, *self._views(scene)

    def _outputs(self, scene: Scene, has_targets: bool) -> list[Path]:
        """All that will be written, whatever of it."""
        paths = [self._sheet(scene), self._views_folder(scene)] if has_targets else []
        if self.trajectory != "none":
            paths += [self._film(scene), self._film(scene).with_suffix(".gif")]
        return paths + ([] if self.export == "none" else [self._export_folder(scene)])

    def _say_next(self) -> None:
        same = {"checkpoint": self.checkpoint, "lora": self.lora}
        if is_photo(self.capture):
            say_next("demo", **same)
        elif self.trajectory == "none":
            say_next("render", self.capture, targets="none", trajectory="keyframes", **same)
        else:
            say_next("view", self.capture, **same)

    def _photo(self) -> Scene:
        try:
            return photo_scene(self.capture, self.fov)
        except UnknownLensError as error:
            warnings.warn(f"{error} {DEFAULT_FOV:g} degrees are assumed; --fov says another.", stacklevel=2)
            return photo_scene(self.capture, DEFAULT_FOV)

    def _views(self, scene: Scene) -> tuple[list[int], list[int], Cameras | None]:
        """Targets, references, and the path of the fly-through."""
        if self.targets == "held-out":
            targets, candidates = self.capture_options.split_of(scene)
        else:
            targets = self._numbered(len(scene))
            candidates = [view for view in range(len(scene)) if view not in targets]
        count = min(_REFERENCES, len(candidates)) if self.references is None else self.references
        spread = choose_references(scene.cameras, min(count, len(candidates)), candidates)
        path = self._path(scene, spread)
        wanted = [scene.cameras[targets]] * bool(targets) + [path] * (path is not None)
        return targets, choose_references(scene.cameras, count, candidates, Cameras.cat(wanted)), path

    def _numbered(self, num_views: int) -> list[int]:
        if self.targets == "none":
            return []
        try:
            targets = list(dict.fromkeys(int(word) for word in self.targets.split(",")))
        except ValueError:
            targets = [-1]
        if not all(0 <= target < num_views for target in targets):
            raise ValueError(
                f"--targets must be `held-out`, `none`, or numbers from 0 to {num_views - 1} with commas, got"
                f" {self.targets!r}."
            )
        return targets

    def _path(self, scene: Scene, references: Sequence[int]) -> Cameras | None:
        """Cameras of the fly-through: through well spread photos, or around what all of them look at."""
        if self.trajectory == "none":
            return None
        cameras = scene.cameras
        if self.trajectory == "keyframes":
            cameras = cameras[references]
            cameras = cameras[tour(cameras)]
        return camera_path(self.trajectory, cameras, self.views)

    def _pipeline(self, processes: PartialState) -> KaleidoViewSynthesisPipeline:
        dtype = self.dtype
        if dtype == "auto" and processes.num_processes > 1:  # each would measure for itself, and a flight has one
            (dtype,) = broadcast_object_list([str(fast_dtype(processes.device.type)).removeprefix("torch.")])
        pipe = load_pipeline(self.checkpoint, self.device, dtype, self.lora)
        if self.attention_backend is not None:
            try:
                pipe.transformer.set_attention_backend(self.attention_backend)
            except (RuntimeError, ValueError) as error:
                raise ValueError(f"--attention-backend {self.attention_backend!r}: {error}") from error
        return pipe

    def _check_cost(self, pipe: KaleidoViewSynthesisPipeline, references: int, targets: int) -> None:
        """Refuses what takes too long, or more memory than there is, unless it was agreed to."""
        side = pipe.default_sample_size
        cost = rendering_cost(
            pipe,
            references,
            targets,
            self.height or side,
            self.width or side,
            self.steps,
            self.guidance_scale != 1,
            self.views_per_group,
            self.max_memory_views,
        )
        if (cost.seconds > _LONG_SECONDS or cost.memory > cost.free) and not self.yes:
            raise ValueError(
                f"{targets:,} views of {self.height or side} x {self.width or side} pixels take {cost}."
                " Ask for less (--views, --height, --width, --steps, --max-memory-views), or pass --yes."
            )

    def _generate(
        self, pipe, scene: Scene, references: Sequence[int], cameras: Cameras, after_step=None
    ) -> torch.Tensor:
        """Views `[M, 3, H, W]` in [0, 1]."""
        bar = _ViewBar(len(cameras), after_step)
        with bar:
            return self._call(pipe, scene, references, cameras, bar.note_step)

    def _call(self, pipe, scene: Scene, references: Sequence[int], cameras: Cameras, after_step) -> torch.Tensor:
        return pipe(
            scene.images[references],
            scene.cameras[references],
            cameras,
            height=self.height,
            width=self.width,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance_scale,
            views_per_group=self.views_per_group,
            max_memory_views=self.max_memory_views,
            generation_order=self.generation_order,
            joins_memory=self.joins_memory,
            share_groups=PartialState().num_processes > 1,
            generator=torch.Generator().manual_seed(self.seed),
            output_type="pt",
            callback_on_step_end=after_step,
        ).images

    def _render_photos(self, pipe, scene: Scene, references, targets) -> list[Path]:
        generated = self._generate(pipe, scene, references, scene.cameras[targets])
        if not PartialState().is_main_process:
            return []
        truth, target_cameras = scene.fitted(targets, *generated.shape[-2:])
        given, cameras = scene.fitted(references, *generated.shape[-2:])
        nearest = nearest_reference(given, cameras, target_cameras)
        scores, baseline = psnr(generated, truth), psnr(nearest, truth)
        print(f"{'target':>8}  {'generated':>9}  {'nearest reference':>17}   (PSNR, dB)")
        for target, score, base in zip(targets, scores, baseline):
            print(f"{target:>8}  {score:>9.2f}  {base:>17.2f}")
        means = [values[values.isfinite()].mean() for values in (scores, baseline)]  # a capture may hold a photo twice
        print(f"{'mean':>8}  {means[0]:>9.2f}  {means[1]:>17.2f}")

        rows = {
            "generated": generated,
            "truth": truth,
            "difference": (generated - truth).abs(),
            "nearest ref.": nearest,
        }
        captions = [f"{score:.1f} dB (nearest {base:.1f})" for score, base in zip(scores, baseline)]
        sheet = save_image(contact_sheet(given, rows, captions), self._sheet(scene))
        folder = self._views_folder(scene)
        with folder_written_whole(folder, replaces=True) as part:  # views of an earlier run do not stay beside these
            part.mkdir()
            for target, view in zip(targets, generated):
                save_image(tensor_to_image(view), part / f"{target:04d}.png")
        return [sheet, *(folder / f"{target:04d}.png" for target in targets)]

    def _render_path(self, pipe, scene: Scene, references, path: Cameras) -> list[Path]:
        invented = int((seen_share(scene.cameras[references], path) < INVENTED).sum())
        if invented:
            PartialState().print(
                f"{invented} of {len(path)} views look where hardly a reference does: there the model invents"
                " (--trajectory keyframes or arc fly where the photos are)"
            )
        with _interrupts_after_a_group() as groups:
            views = self._generate(pipe, scene, references, path, groups.note_step)
        if not PartialState().is_main_process:
            return []
        frames = [tensor_to_image(view) for view in views]
        if groups.is_interrupted:
            # Views that were not reached are of one grey, which none is that was generated
            frames = [frame for frame, view in zip(frames, views) if view.amin() < view.amax()]
            file = self._film(scene, "_interrupted")
            kept = f"{len(frames)} of {len(views)} views are in {self._video(file, frames)}" if frames else "No view"
            raise KeyboardInterrupt(f"{kept}; the same command with --overwrite starts anew.")
        film = self._video(self._film(scene), frames)
        for suffix in (".mp4", ".gif"):  # of an interrupted run, whose views are in the film now, or of an earlier one
            self._film(scene, "_interrupted").with_suffix(suffix).unlink(missing_ok=True)
            if suffix != film.suffix:
                film.with_suffix(suffix).unlink(missing_ok=True)
        written = [film]
        return written + ([] if self.export == "none" else [self._export(scene, references, frames, path)])

    def _video(self, file: Path, frames: Sequence[PIL.Image.Image]) -> Path:
        try:
            return write_video(file, frames, self.fps)
        except ImportError as error:
            print(f"{error} Writing a GIF.")
            return write_video(file.with_suffix(".gif"), frames, self.fps)

    def _sheet(self, scene: Scene) -> Path:
        return self.output / f"{scene.name}_sheet.png"

    def _views_folder(self, scene: Scene) -> Path:
        return self.output / f"{scene.name}_views"

    def _film(self, scene: Scene, state: str = "") -> Path:
        return self.output / f"{scene.name}_{self.trajectory}{state}.mp4"

    def _export_folder(self, scene: Scene) -> Path:
        return self.output / f"{scene.name}_{self.trajectory}_{self.export}"

    def _export(self, scene: Scene, references, frames, path: Cameras) -> Path:
        width, height = frames[0].size
        given, cameras = scene.fitted(references, height, width)
        images = [tensor_to_image(view) for view in given] + frames
        cameras = Cameras.cat([cameras, fit_cameras(path, height, width)])
        if self._export_folder(scene).exists():
            remove_folder(self._export_folder(scene))
        if self.export == "colmap":
            return write_colmap(self._export_folder(scene), images, cameras, scene.points)
        generated = [False] * len(references) + [True] * len(frames)
        return write_capture(self._export_folder(scene), images, cameras, generated=generated)
