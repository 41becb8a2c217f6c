"""The viewer: fly a camera through a capture, and see what the model makes of the place where it stops."""

import base64
import math
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
import torch.nn.functional as F

from ..captures.export import write_video
from ..geometry.cameras import Cameras, SceneFrame, rotations_from_quaternions
from ..geometry.trajectories import focus_point, keyframes, up_direction
from ..web.origins import OriginRule
from ..web.texts import as_markdown
from .jobs import Jobs
from .live import MOST_REFERENCES, LiveScene
from .overview import among, is_at, stand_back
from .serving import serve


__all__ = ["LOOPBACK", "Viewer"]

REFERENCE, KEPT, KEYFRAME = (70, 110, 200), (60, 160, 80), (200, 60, 120)  # colours of frustums
PHOTO_SIDE = 160  # pixels of the photos in the frustums
VIEW_SIDE = 384  # pixels of the view on the page: small ones are enlarged
MOST_POINTS = 50_000
KEY_STEPS = 16  # pieces of the drawn path between two keyframes
KEY_SIDE, KEYS_A_ROW = 96, 6  # pixels of the previews of keyframes, and how many stand side by side
HELP = "Drag to turn, right-drag to shift, scroll or WASD to fly, click on a photo to go there. Stop, and look."
FIRST = "Seen from among the photos: fly, and stop."
EXPECT = "What the photos see comes out soft, without fine detail; what no photo shows is invented."
OVERVIEW_SLOPE = 0.6  # of the line of sight from which the page opens
WINDOW = (1440, 900)  # pixels across and down, until a browser says its own
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Viewer:
    """
    A page, served by viser, with the cameras of a capture in space. When the camera that the user flies stops, the
    view from there is rendered and shown. For one user: who moved last decides what all browsers see.

    Args:
        live ([`LiveScene`]): the capture and its model.
        output (`Path`): folder for flights.
        host (`str`): address to serve on.
        port (`int`): likewise; 0 takes a free one.
        steps (`int`): denoising steps at the start.
        guidance_scale (`float`): guidance at the start.
        settle (`float`): seconds for which the camera must stand still.
        allow_origin (`Sequence[str]`): origins of further pages that may use it, see [`OriginRule`].
    """

    def __init__(
        self,
        live: LiveScene,
        output: Path,
        host: str = "127.0.0.1",
        port: int = 8080,
        steps: int = 8,
        guidance_scale: float = 1.0,
        settle: float = 0.25,
        allow_origin: Sequence[str] = (),
    ):
        self.live, self.output, self.settle = live, Path(output), settle
        live.pipe.set_progress_bar_config(disable=True)
        self._place = _place(live.scene.cameras)
        self._pose: torch.Tensor | None = None  # [4, 4], where the user's camera is
        self._is_home = False  # that camera, where the page opens
        self._shown: torch.Tensor | None = None  # [4, 4], where the view on the page is from
        self._keys: list[tuple[torch.Tensor, PIL.Image.Image | None]] = []  # pose [4, 4], and the view from there
        self._film: Path | None = None  # the flight that was rendered last
        self._view_in_space = None
        self._kept = 0
        self._flying = True
        self._drawn: dict[str, list] = {"references": [], "kept": [], "keys": []}
        self._server = serve(host, port, OriginRule(allow_origin))
        self._jobs = Jobs(self._say)
        self._build_page(steps, guidance_scale)
        self._draw_scene()
        self._server.on_client_connect(self._greet)

    @property
    def url(self) -> str:
        """Where the page is."""
        host = self._server.get_host()
        return f"http://{f'[{host}]' if ':' in host else host}:{self._server.get_port()}"

    def wait(self) -> None:
        """Serves until Ctrl-C."""
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            pass
        finally:
            self.close()

    def close(self) -> None:
        """Stops what is being rendered, and the server."""
        self._flying = False
        self._jobs.close()
        self._server.stop()

    # The page

    def _build_page(self, steps: int, guidance_scale: float) -> None:
        gui, live = self._server.gui, self.live
        self._set_theme(dark=False)
        blank = PIL.Image.new("RGB", (live.width, live.height), (235, 235, 235))
        self._picture = gui.add_image(_enlarged(blank), label="The view from here", format="png")
        self._status = gui.add_markdown("Waiting for a camera.")
        gui.add_markdown(f"{HELP} {EXPECT}")
        self._build_look()
        self._keep = gui.add_button(
            "Add this view to the memory", hint="Views to come attend to it, as to the photos."
        )
        self._forget = gui.add_button("Forget added views", disabled=True)
        with gui.add_folder("Sampling", expand_by_default=False):
            most = min(len(live.scene), MOST_REFERENCES)
            self._references = gui.add_slider("References", 1, max(most, 2), 1, min(len(live.references), most))
            self._steps = gui.add_slider("Steps", 1, max(50, steps), 1, steps)
            self._guidance = gui.add_slider("Guidance", 1.0, 5.0, 0.1, guidance_scale)
        self._build_flight()
        self._keep.on_click(lambda _: self._jobs.put("keep", self._keep_view))
        self._forget.on_click(lambda _: self._jobs.put("forget", self._forget_views))
        self._references.on_update(lambda _: self._jobs.put("references", self._choose, self.settle))
        for slider in (self._steps, self._guidance):
            slider.on_update(lambda _: self._jobs.put("view", self._show_view, self.settle))

    def _set_theme(self, dark: bool) -> None:
        self._server.gui.configure_theme(show_share_button=False, control_width="large", dark_mode=dark)

    def _build_look(self) -> None:
        """Where the camera stands and what it shows, beside what is generated."""
        gui = self._server.gui
        home = gui.add_button_group("Camera", ("Overview", "Level"))
        with gui.add_folder("Look", expand_by_default=False):
            fov = gui.add_slider("Field of view", 10.0, 110.0, 1.0, round(math.degrees(self._vertical_fov)))
            self._size = gui.add_slider("Photo size", 0.2, 4.0, 0.1, 1.0)
            self._photos = gui.add_checkbox("Show photos", True)
            self._in_space = gui.add_checkbox("Show the view in space", False)
            dark = gui.add_checkbox("Dark", False)
        home.on_click(lambda event: self._go_home(event.client, event.target.value))
        fov.on_update(lambda _: self._look_with(fov.value))
        self._size.on_update(lambda _: self._resize())
        self._photos.on_update(lambda _: self._clear_sight())
        self._in_space.on_update(lambda _: self._show_in_space())
        dark.on_update(lambda _: self._set_theme(dark.value))

    def _build_flight(self) -> None:
        gui = self._server.gui
        with gui.add_folder("Flight"):
            self._record = gui.add_button("Record a keyframe")
            self._strip = gui.add_image(np.full((8, 8, 3), 235, np.uint8), label="Keyframes", visible=False)
            self._timeline = gui.add_slider(
                "Timeline", 0.0, 100.0, 1.0, 0.0, visible=False, hint="Goes along the flight, to see it before."
            )
            self._undo = gui.add_button("Remove the last keyframe", visible=False)
            self._clear = gui.add_button("Clear the keyframes", visible=False)
            self._views = gui.add_slider("Views", 2, 240, 1, 48)
            self._fps = gui.add_slider("Views a second", 1, 30, 1, 12)
            self._fly = gui.add_button("Render the flight", hint=f"Writes a video into {self.output}.")
            self._progress = gui.add_progress_bar(0.0, visible=False)
            self._cancel = gui.add_button("Cancel", visible=False)
            self._player = gui.add_html("", visible=False)
            self._download = gui.add_button("Download the flight", visible=False)
        self._record.on_click(lambda _: self._record_key())
        self._timeline.on_update(lambda event: self._scrub(event.client))
        self._undo.on_click(lambda _: self._clear_keys(len(self._keys) - 1))
        self._clear.on_click(lambda _: self._clear_keys())
        self._fly.on_click(lambda _: self._jobs.put("flight", self._render_flight))
        self._cancel.on_click(lambda _: setattr(self, "_flying", False))
        self._download.on_click(lambda event: self._send_film(event.client))

    def _say(self, text: str) -> None:
        self._status.content = text

    # Space. viser's cameras have OpenCV's axes too; its world is ours, turned so that +Z is up, about what the cameras
    # look at, in units of their distance from it.

    def _draw_scene(self) -> None:
        server, live = self._server, self.live
        server.scene.set_up_direction("+z")
        if live.scene.points is not None and len(live.scene.points):
            points = live.scene.points.to("cpu", torch.float64)
            points = points[
                torch.linspace(0, len(points) - 1, min(len(points), MOST_POINTS), dtype=torch.float32).long()
            ]
            poses = torch.eye(4, dtype=torch.float64).repeat(len(points), 1, 1)
            poses[:, :3, 3] = points
            placed = self._place.normalize(poses)[:, :3, 3].float().numpy()
            server.scene.add_point_cloud("/points", placed, (120, 120, 120), point_size=0.003)
        self._draw_references()
        server.initial_camera.position, server.initial_camera.look_at = self._overview()
        server.initial_camera.fov = self._vertical_fov

    def _overview(self, width: int = WINDOW[0], height: int = WINDOW[1]) -> tuple[np.ndarray, np.ndarray]:
        """Position and a point ahead, in viser's world: behind all the photos and above them, so far that they and
        what they look at are seen beside the panel of a window so large."""
        centers = self._place.normalize(self.live.scene.cameras.world_from_camera)[:, :3, 3]
        side = centers.mean(0)
        side[2] = 0
        side = F.normalize(side, dim=0) if side.norm() > 1e-3 else side.new_tensor([0.0, -1.0, 0.0])
        side[2] = OVERVIEW_SLOPE
        seen = F.pad(centers, (0, 0, 0, 1))  # the focus point is the origin
        reach = 2 * self._frustum_scale
        position, ahead = stand_back(seen, side, reach, self._vertical_fov, width, height)
        return position.numpy(), ahead.numpy()

    def _is_at_home(self, camera) -> bool:
        """Whether a browser's camera stands where the page opens. It opens before it is known how large its window is,
        and then is put where that shows the same."""
        if is_at(camera, *self._overview(camera.image_width, camera.image_height)):
            return True
        if not is_at(camera, *self._overview()):
            return False
        self._go_home(camera.client, "Overview")
        return True

    def _go_home(self, client, where: str) -> None:
        with client.atomic():
            client.camera.up_direction = np.array([0.0, 0.0, 1.0])
            if where == "Overview":
                size = client.camera.image_width, client.camera.image_height
                client.camera.position, client.camera.look_at = self._overview(*size)

    def _look_with(self, fov: float) -> None:
        self.live.look_with(fov)
        for client in self._server.get_clients().values():
            client.camera.fov = math.radians(fov)
        self._jobs.put("view", self._show_view, self.settle)

    def _resize(self) -> None:
        for handle in [handle for handles in self._drawn.values() for handle in handles]:
            if handle.name != "/keys/path":
                handle.scale = self._frustum_scale * self._size.value
        self._clear_sight()

    @property
    def _vertical_fov(self) -> float:
        return float(torch.deg2rad(self.live.lens.fov[0, 1]))

    def _placed(self, pose: torch.Tensor) -> tuple[torch.Tensor, float]:
        """A pose `[4, 4]` in viser's world, and how far ahead of it the focus point is."""
        placed = self._place.normalize(pose[None])[0]
        return placed, float((-placed[:3, 3] @ placed[:3, 2]).clamp_min(0.2))

    def _line_of_sight(self, pose: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Position in viser's world, and a point ahead, as far as the focus point is."""
        placed, depth = self._placed(pose)
        return placed[:3, 3].numpy(), (placed[:3, 3] + depth * placed[:3, 2]).numpy()

    def _frustum(self, name: str, pose: torch.Tensor, lens: Cameras, image: PIL.Image.Image | None, color):
        """A camera in space; a click on it flies there."""
        height, width = lens.image_sizes.tolist()
        if image is not None:
            image = image.convert("RGB").copy()
            image.thumbnail((PHOTO_SIDE, PHOTO_SIDE))
        handle = self._server.scene.add_camera_frustum(
            name,
            fov=float(torch.deg2rad(lens.fov[1])),
            aspect=width / height,
            scale=self._frustum_scale * self._size.value,
            thickness=1.5,
            thickness_units="screen",
            color=color,
            image=None if image is None else np.asarray(image),
            format="jpeg" if image is None or max(image.size) == PHOTO_SIDE else "png",
            cast_shadow=False,
            receive_shadow=False,
            **self._where(pose),
        )
        handle.on_click(lambda event: self._go(event.client, pose))
        return handle

    def _where(self, pose: torch.Tensor) -> dict[str, np.ndarray]:
        """Orientation and position in viser's world."""
        import viser.transforms as tf

        placed = self._place.normalize(pose[None])[0].numpy()
        return {"wxyz": tf.SO3.from_matrix(placed[:3, :3]).wxyz, "position": placed[:3, 3]}

    def _draw_references(self) -> None:
        cameras, images = self.live.scene.cameras[self.live.references], self.live.scene.images
        gaps = torch.cdist(cameras.centers, cameras.centers) / self._place.scale
        gaps = gaps[gaps > 0]
        self._frustum_scale = float((0.15 * gaps.median()).clamp(0.03, 0.08)) if len(gaps) else 0.08
        self._replace(
            "references",
            [
                self._frustum(f"/references/{view}", camera.world_from_camera, camera, images[view], REFERENCE)
                for view, camera in zip(self.live.references, cameras)
            ],
        )

    def _replace(self, kind: str, handles: Sequence = ()) -> None:
        kept = {handle.name for handle in handles}  # viser has replaced those already
        for handle in self._drawn[kind]:
            if handle.name not in kept:
                handle.remove()
        self._drawn[kind] = list(handles)
        self._clear_sight()

    def _go(self, client, pose: torch.Tensor) -> None:
        position, look_at = self._line_of_sight(pose)
        with client.atomic():
            client.camera.position = position
            client.camera.look_at = look_at

    # Views

    def _greet(self, client) -> None:
        client.camera.on_update(self._moved)
        self._moved(client.camera)

    def _moved(self, camera) -> None:
        placed = torch.eye(4, dtype=torch.float64)
        placed[:3, :3] = rotations_from_quaternions(F.normalize(torch.from_numpy(camera.wxyz).double(), dim=0))
        placed[:3, 3] = torch.from_numpy(camera.position)
        pose = self._place.denormalize(placed[None])[0]
        if self._pose is not None and torch.allclose(pose, self._pose, rtol=0, atol=1e-6):
            return  # the window changed, not the camera
        was_home, self._is_home = self._is_home, self._is_at_home(camera)
        self._pose = pose
        self._clear_sight()
        if was_home and self._is_home:
            return
        self._jobs.put("view", self._show_view, self.settle)

    @property
    def _sight(self) -> torch.Tensor | None:
        """Where the view is to be from: where the camera stands, and at the overview from among the photos, as from
        there all would be invented."""
        return among(self.live.scene.cameras[self.live.references]) if self._is_home else self._pose

    def _stand(self, pose: torch.Tensor, view: PIL.Image.Image) -> None:
        """Puts a view into space: a screen at the distance of the focus point, as large as it is seen from `pose`."""
        placed, depth = self._placed(pose)
        height, width = self.live.lens.image_sizes[0].tolist()
        (fx, _, cx), (_, fy, cy), _ = self.live.lens.intrinsics[0].tolist()
        offset = depth * torch.tensor([(width / 2 - cx) / fx, (height / 2 - cy) / fy, 1.0], dtype=torch.float64)
        self._view_in_space = self._server.scene.add_image(
            "/view",
            _enlarged(view),
            depth * width / fx,
            depth * height / fy,
            format="png",
            visible=self._in_space.value,
            wxyz=self._where(pose)["wxyz"],
            position=(placed[:3, 3] + placed[:3, :3] @ offset).numpy(),
            cast_shadow=False,
            receive_shadow=False,
        )

    def _show_in_space(self) -> None:
        if self._view_in_space is not None:
            self._view_in_space.visible = self._in_space.value

    def _clear_sight(self) -> None:
        """Hides the frustums that the camera stands in: they would hide all others."""
        if self._pose is None:
            return
        eye = self._place.normalize(self._pose[None])[0, :3, 3].numpy()
        for handle in [handle for handles in self._drawn.values() for handle in handles]:
            reach = 2.5 * self._frustum_scale * self._size.value
            away = handle.name == "/keys/path" or np.linalg.norm(handle.position - eye) > reach
            away = away and (self._photos.value or not handle.name.startswith("/references/"))
            if handle.visible != away:
                handle.visible = away

    def _show_view(self) -> None:
        pose, is_home = self._sight, self._is_home
        if pose is None:
            return
        encoded, start = self.live.memory is not None, time.perf_counter()
        cameras = self.live.cameras(pose[None])
        views = self.live.render(
            cameras,
            self._steps.value,
            self._guidance.value,
            on_step=lambda _done, _total: not self._jobs.waits("view", "references"),
        )
        if views is None:
            return
        seconds = time.perf_counter() - start
        self._picture.image = _enlarged(views[0])
        self._shown, self._view = pose, views[0]
        self._stand(pose, views[0])
        once = "" if encoded else ", of which the photos are encoded only this once"
        invented = " **Hardly a photo looks there: most of this view is invented.**"
        where = f" {FIRST}" * is_home + invented * self.live.is_invented(cameras)
        self._say(f"{seconds:.2f} s{once}. {self._memory_line()}{where}")

    def _memory_line(self) -> str:
        photos = f"{len(self.live.references)} photo{'s' * (len(self.live.references) != 1)}"
        added = f" and {self._kept} added view{'s' * (self._kept != 1)}" if self._kept else ""
        return f"The model knows {photos}{added}."

    def _keep_view(self) -> None:
        if self._shown is None:
            return
        before = self.live.memory
        self.live.keep()
        if self.live.memory is before:
            self._say("This view is in the memory already: move on.")
            return
        name = f"/kept/{self._kept}"
        added = self._frustum(name, self._shown, self.live.lens[0], self._view, KEPT)
        self._replace("kept", [*self._drawn["kept"], added])
        self._kept += 1
        self._forget.disabled = False
        self._say(f"Added. {self._memory_line()}")

    def _forget_views(self) -> None:
        self.live.forget()
        self._kept = 0
        self._forget.disabled = True
        self._replace("kept")
        self._show_view()

    def _choose(self) -> None:
        self.live.choose(self._references.value)
        self._draw_references()
        self._forget_views()

    # Flights

    def _record_key(self) -> None:
        pose = self._sight
        if pose is not None:
            is_seen = self._shown is not None and torch.equal(self._shown, pose)
            self._keys.append((pose, self._view if is_seen else None))
            self._draw_keys()

    def _clear_keys(self, kept: int = 0) -> None:
        del self._keys[kept:]
        self._draw_keys()

    def _path(self, num_views: int) -> Cameras:
        return keyframes(self.live.cameras(torch.stack([pose for pose, _ in self._keys])), num_views)

    def _scrub(self, client) -> None:
        """Goes to a place of the flight, whose view is shown as any other."""
        if client is not None and len(self._keys) > 1:
            path = self._path(101)
            self._go(client, path.world_from_camera[round(self._timeline.value)])

    def _draw_keys(self) -> None:
        lens = self.live.lens[0]
        drawn = [self._frustum(f"/keys/{i}", pose, lens, None, KEYFRAME) for i, (pose, _) in enumerate(self._keys)]
        self._strip.visible = self._undo.visible = self._clear.visible = bool(self._keys)
        self._timeline.visible = len(self._keys) > 1
        if self._keys:
            self._strip.image = _strip([view for _, view in self._keys])
        if len(self._keys) > 1:
            path = self._path(KEY_STEPS * (len(self._keys) - 1) + 1)
            line = self._place.normalize(path.world_from_camera)[:, :3, 3].float()
            pieces = torch.stack([line[:-1], line[1:]], dim=1).numpy()
            options = {"colors": KEYFRAME, "thickness": 3.0, "thickness_units": "screen"}
            drawn.append(self._server.scene.add_line_segments("/keys/path", pieces, **options))
        self._replace("keys", drawn)
        self._say(f"{len(self._keys)} keyframe{'s' * (len(self._keys) != 1)}.")

    def _render_flight(self) -> None:
        if len(self._keys) < 2:
            self._say("A flight needs at least two keyframes: stop somewhere, record, go on, record.")
            return
        path = self._path(self._views.value)
        self._flying = self._progress.visible = self._cancel.visible = True
        try:
            frames = self.live.render(path, self._steps.value, self._guidance.value, self._on_flight_step)
        finally:
            self._progress.visible = self._cancel.visible = False
        if frames is None:
            self._say("The flight was cancelled.")
            return
        self._film = self._write(frames)
        self._play(self._film)
        self._say(f"Wrote {as_markdown(str(self._film))}.")

    def _play(self, file: Path) -> None:
        """Shows a flight in the page."""
        data = base64.b64encode(file.read_bytes()).decode()
        style = 'style="width: 100%; border-radius: 4px"'
        if file.suffix == ".mp4":
            shown = (
                f'<video {style} controls autoplay loop muted playsinline src="data:video/mp4;base64,{data}"></video>'
            )
        else:
            shown = f'<img {style} alt="the flight" src="data:image/gif;base64,{data}">'
        self._player.content = shown
        self._player.visible = self._download.visible = True

    def _send_film(self, client) -> None:
        if client is not None and self._film is not None:
            client.send_file_download(self._film.name, self._film.read_bytes())

    def _on_flight_step(self, done: int, total: int) -> bool:
        self._progress.value = 100 * done / total
        self._say(f"Flight: step {done} of {total}.")
        return self._flying and not self._jobs.closing

    def _write(self, frames: list[PIL.Image.Image]) -> Path:
        self.output.mkdir(parents=True, exist_ok=True)
        stem, number = f"{self.live.scene.name}_flight", 1
        while list(self.output.glob(f"{stem}_{number}.*")):
            number += 1
        file = self.output / f"{stem}_{number}.mp4"
        try:
            file = write_video(file, frames, self._fps.value)
        except ImportError:
            file = write_video(file.with_suffix(".gif"), frames, self._fps.value)
        print(f"wrote {file}", flush=True)
        return file


def _place(cameras: Cameras) -> SceneFrame:
    """Where the scene stands in viser's world."""
    centers, up = cameras.centers, up_direction(cameras)
    if cameras.in_one_place:
        focus = centers[0] + cameras.forward[0]
    else:
        focus = focus_point(cameras)
    aside = torch.eye(3, dtype=torch.float64)[up.abs().argmin()]
    aside = F.normalize(aside - (aside @ up) * up, dim=0)
    world_from_scene = torch.eye(4, dtype=torch.float64)
    world_from_scene[:3, :3] = torch.stack([aside, torch.linalg.cross(up, aside), up], dim=-1)
    world_from_scene[:3, 3] = focus
    return SceneFrame(world_from_scene, (centers - focus).norm(dim=-1).median().clamp_min(1e-9))


def _strip(views: Sequence[PIL.Image.Image | None]) -> np.ndarray:
    """Previews beside and below each other, in their order; grey where there is none."""
    columns, rows = min(len(views), KEYS_A_ROW), -(-len(views) // KEYS_A_ROW)
    strip = PIL.Image.new("RGB", (columns * KEY_SIDE, rows * KEY_SIDE), (235, 235, 235))
    for number, view in enumerate(views):
        if view is not None:
            small = PIL.ImageOps.pad(view.convert("RGB"), (KEY_SIDE - 4,) * 2)
            strip.paste(small, (number % KEYS_A_ROW * KEY_SIDE + 2, number // KEYS_A_ROW * KEY_SIDE + 2))
    return np.asarray(strip)


def _enlarged(view: PIL.Image.Image) -> np.ndarray:
    factor = max(1.0, VIEW_SIDE / max(view.size))
    size = tuple(round(side * factor) for side in view.size)
    return np.asarray(view.resize(size, PIL.Image.Resampling.BICUBIC))
