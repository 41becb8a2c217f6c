"""A capture to fly through: its references encoded once, views rendered from anywhere."""

import math
from collections.abc import Callable

import PIL.Image
import torch

from ..captures.images import fit_cameras
from ..captures.scene import Scene
from ..geometry.cameras import Cameras
from ..geometry.choosing import INVENTED, choose_references, seen_share
from ..pipelines.memory import SceneMemory
from ..pipelines.pipeline_kaleido import KaleidoViewSynthesisPipeline


__all__ = ["MOST_REFERENCES", "LiveScene"]

MOST_REFERENCES, MOST_REMEMBERED = 32, 64  # flights are long: a view attends to no more than the nearest


class LiveScene:
    """
    A capture whose references are encoded once, for views from anywhere.

    Args:
        pipe ([`KaleidoViewSynthesisPipeline`]): renders.
        scene ([`Scene`]): the capture.
        references (`int`): photos given to the model, spread over the capture.
        height (`int`, *optional*): of the views in pixels; the model's own when not given.
        width (`int`, *optional*): likewise.
        seed (`int`): of the noise, the same for each view.
    """

    def __init__(
        self,
        pipe: KaleidoViewSynthesisPipeline,
        scene: Scene,
        references: int,
        height: int | None = None,
        width: int | None = None,
        seed: int = 0,
    ):
        self.pipe, self.scene, self.seed = pipe, scene, seed
        self.height, self.width = height or pipe.default_sample_size, width or pipe.default_sample_size
        self._photo_lens = self.lens = fit_cameras(scene.cameras[:1], self.height, self.width)
        self.memory: SceneMemory | None = None  # None until a view asks for it
        self._of_references: SceneMemory | None = None
        self._after_view: SceneMemory | None = None
        self.choose(references)

    def choose(self, references: int) -> None:
        """Takes another number of references, and forgets the views that were kept.

        Args:
            references (`int`): how many.
        """
        count = min(references, len(self.scene), MOST_REFERENCES)
        self.references = choose_references(self.scene.cameras, count, range(len(self.scene)))
        self.memory = self._of_references = self._after_view = None

    def look_with(self, fov: float) -> None:
        """Takes a lens of another vertical field of view, for the views to come.

        Args:
            fov (`float`): degrees.
        """
        now = torch.deg2rad(self._photo_lens.fov[0, 1])
        intrinsics = self._photo_lens.intrinsics.clone()
        intrinsics[:, :2, :2] *= torch.tan(now / 2) / math.tan(math.radians(fov) / 2)
        self.lens = Cameras(self._photo_lens.world_from_camera, intrinsics, self._photo_lens.image_sizes)

    def is_invented(self, cameras: Cameras) -> bool:
        """Whether hardly a reference looks where the first of some cameras does.

        Args:
            cameras ([`Cameras`] of shape `[V]`): where from.
        """
        return bool(seen_share(self.scene.cameras[self.references], cameras[:1])[0] < INVENTED)

    def cameras(self, poses: torch.Tensor) -> Cameras:
        """Cameras at `poses` `[V, 4, 4]` (`world_from_camera`) with the lens of the capture's first photo, or that of
        [`look_with`]."""
        return Cameras(poses, self.lens.intrinsics[0], self.lens.image_sizes[0])

    def render(
        self,
        cameras: Cameras,
        steps: int,
        guidance_scale: float = 1.0,
        on_step: Callable[[int, int], bool] = lambda done, total: True,
    ) -> list[PIL.Image.Image] | None:
        """
        Views from `cameras` `[V]`, or `None` where `on_step` has stopped it. The references are encoded where they are
        not yet.

        Args:
            cameras ([`Cameras`] of shape `[V]`): where from.
            steps (`int`): denoising steps.
            guidance_scale (`float`): 1 for none.
            on_step (`Callable`): called with the steps done and all there are; `False` stops.
        """

        def after_step(pipe, step, _timestep, _tensors):
            pipe._interrupt = not on_step(step + 1, pipe.num_timesteps)
            return {}

        out = self.pipe(
            memory=self._encoded(),
            target_poses=cameras,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=torch.Generator().manual_seed(self.seed),
            callback_on_step_end=after_step,
        )
        if self.pipe.interrupt:
            return None
        if len(cameras) == 1:
            self._after_view = out.memory
        return out.images

    def keep(self) -> None:
        """Adds the view that was rendered last to the memory; flights do not count."""
        if self._after_view is not None:
            self.memory, self._after_view = self._after_view, None

    def forget(self) -> None:
        """Goes back to the references alone."""
        self.memory, self._after_view = self._of_references, None

    def _encoded(self) -> SceneMemory:
        if self.memory is None:
            scene, scale = self.scene, 1.0
            given = scene.cameras[self.references]
            reach = (scene.cameras.centers - given.centers[0]).norm(dim=-1).max().item()
            if len(given) == 1 and reach > 0:  # one reference does not tell the unit, the capture does
                scale = 1 / reach
            images = [scene.images[view] for view in self.references]
            options = {"height": self.height, "width": self.width, "max_memory_views": MOST_REMEMBERED}
            self.memory = self._of_references = self.pipe.encode_references(
                images, given, camera_scale=scale, **options
            )
        return self.memory
