"""The viewer, through viser's own protocol: a client connects by a websocket, moves its camera, and gets a view."""

import base64
import io
import itertools
import re
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import random_poses, served_command
from torch.utils.flop_counter import FlopCounterMode

from kaleido_diffusers import KaleidoViewSynthesisPipeline, bundled_checkpoint, cli, load_scene, sample_capture
from kaleido_diffusers.evaluation.metrics import psnr
from kaleido_diffusers.geometry.cameras import rotations_from_quaternions
from kaleido_diffusers.viewer.live import LiveScene
from kaleido_diffusers.viewer.overview import among
from kaleido_diffusers.viewer.page import Viewer


viser = pytest.importorskip("viser")

import msgspec  # noqa: E402
import zstandard  # noqa: E402
from viser import _messages  # noqa: E402
from websockets.sync.client import connect  # noqa: E402


DOCS = Path(__file__).parents[1] / "docs" / "viewing.md"
PATIENCE = 120.0  # seconds; only a viewer that hangs gets there


class Browser:
    """What viser's page does, as far as the wire sees it: keeps what the server sends, sends cameras and clicks."""

    def __init__(self, url: str):
        address = url.replace("http", "ws")
        self._open = ExitStack()
        connection = connect(address, subprotocols=[f"viser-v{viser.__version__}"], max_size=None)
        self.socket = self._open.enter_context(connection)
        self.elements: dict[str, dict] = {}  # uuid -> properties of the page's elements
        self.nodes: dict[str, dict] = {}  # name -> properties of what stands in space
        self.pictures: list[np.ndarray] = []  # that were shown, in order
        self.said: list[str] = []
        self.progress: list[float] = []
        self.types: set[str] = set()

    def close(self) -> None:
        self._open.close()

    def send(self, message) -> None:
        self.socket.send(msgspec.msgpack.encode(message.as_serializable_dict()))

    def move(self, wxyz, position, size=(900, 1200)) -> None:
        ahead = rotations_from_quaternions(torch.as_tensor(np.array(wxyz, dtype=float)))[:, 2].numpy()
        self.send(
            _messages.ViewerCameraMessage(
                wxyz=tuple(float(x) for x in wxyz),
                position=tuple(float(x) for x in position),
                fov=0.8,
                near=0.01,
                far=1000.0,
                image_height=size[0],
                image_width=size[1],
                look_at=tuple(float(x) for x in np.asarray(position) + ahead),
                up_direction=(0.0, 0.0, 1.0),
            )
        )

    def until_placed(self, name: str) -> None:
        self.until(lambda: {"wxyz", "position"} <= self.nodes.get(name, {}).keys())

    def move_to(self, name: str, shift=(0.0, 0.0, 0.0)) -> None:
        """Where a frustum stands."""
        self.until_placed(name)
        self.move(self.nodes[name]["wxyz"], np.add(self.nodes[name]["position"], shift))

    def element(self, label: str) -> str:
        self.until(lambda: any(element.get("label") == label for element in self.elements.values()))
        return next(uuid for uuid, element in self.elements.items() if element.get("label") == label)

    def set(self, label: str, value) -> None:
        self.send(_messages.GuiUpdateMessage(self.element(label), {"value": value}))

    def press(self, label: str) -> None:
        self.set(label, True)

    def until(self, done) -> None:
        """Reads what comes until `done()`."""
        end = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < end, f"in vain; said last: {self.said[-3:]}"
            try:
                self._take(self.socket.recv(timeout=0.2))
            except TimeoutError:
                pass

    def until_said(self, text: str) -> str:
        start = len(self.said)
        self.until(lambda: any(text in said for said in self.said[start:]))
        return next(said for said in self.said[start:] if text in said)

    def until_view(self) -> np.ndarray:
        """The next picture; what is said last is then what is said of it."""
        pictures, start = len(self.pictures), len(self.said)
        self.until(lambda: len(self.pictures) > pictures)
        end = time.monotonic() + 2  # what is said follows the picture, unless it is, to the word, what was said before
        self.until(lambda: time.monotonic() > end or any(" s. " in s or " s, " in s for s in self.said[start:]))
        return self.pictures[-1]

    def _take(self, data: bytes) -> None:
        length = int.from_bytes(data[8:16], "little")
        payload = msgspec.msgpack.decode(zstandard.ZstdDecompressor().decompress(data[16 : 16 + length]))
        arrays, end = [], 16 + length
        for size in payload["binaryBufferLengths"]:  # each starts at a multiple of 8 bytes
            start = -(-end // 8) * 8
            arrays.append(data[start : (end := start + size)])
        for message in payload["messages"]:
            kind = message.pop("type")
            self.types.add(kind)
            if kind == "GuiUpdateMessage":
                self._update(message["uuid"], message["updates"])
            elif kind.startswith("Gui") and "uuid" in message:
                self.elements[message["uuid"]] = {}
                self._update(message["uuid"], message.get("props") or {})
            elif kind == "RemoveSceneNodeMessage":
                self.nodes.pop(message["name"], None)
            elif "name" in message:
                node = self.nodes.setdefault(message["name"], {})
                node.update({key: value for key, value in message.items() if key not in ("name", "props")})
                for key, value in (message.get("props") or message.get("updates") or {}).items():
                    is_array = isinstance(value, dict) and "__binary_index" in value
                    node[key] = np.frombuffer(arrays[value["__binary_index"]], value["dtype"]) if is_array else value

    def _update(self, uuid: str, properties: dict) -> None:
        known = uuid in self.elements and bool(self.elements[uuid])
        self.elements.setdefault(uuid, {}).update(properties)
        if known and properties.get("_data"):
            picture = np.asarray(PIL.Image.open(io.BytesIO(properties["_data"])).convert("RGB"))
            if picture.std() > 0:  # not the blank one of the start
                self.pictures.append(picture)
        if "_markdown" in properties:
            self.said.append(properties["_markdown"])
        if known and "value" in properties and isinstance(properties["value"], float):
            self.progress.append(properties["value"])


@contextmanager
def counted(pipe):
    """Views and floating point operations of each pass through the transformer, in whichever thread it runs."""
    passes = []
    counter = threading.local()

    def before(_module, args, kwargs):
        counter.mode = FlopCounterMode(display=False)
        counter.mode.__enter__()
        counter.views = (args[0] if args else kwargs["hidden_states"]).shape[1]

    def after(_module, _args, _output):
        counter.mode.__exit__(None, None, None)
        passes.append((counter.views, counter.mode.get_total_flops()))

    handles = [
        pipe.transformer.register_forward_pre_hook(before, with_kwargs=True),
        pipe.transformer.register_forward_hook(after),
    ]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


@pytest.fixture(scope="module")
def pipe() -> KaleidoViewSynthesisPipeline:
    return KaleidoViewSynthesisPipeline.from_pretrained(bundled_checkpoint())


@pytest.fixture(scope="module")
def scene():
    return load_scene(sample_capture())


@contextmanager
def serving(pipe, scene, output, references: int = 12, steps: int = 4):
    """A viewer, and a browser that has not moved yet."""
    viewer = Viewer(LiveScene(pipe, scene, references), output, port=0, steps=steps, settle=0.05)
    browser = None
    try:
        browser = Browser(viewer.url)
        yield viewer, browser
    finally:
        if browser is not None:
            browser.close()
        viewer.close()


def seconds(said: str) -> float:
    return float(re.match(r"([\d.]+) s", said).group(1))


def as_tensor(picture: np.ndarray, size: int = 128) -> torch.Tensor:
    small = PIL.Image.fromarray(picture).resize((size, size), PIL.Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(small) / 255.0).permute(2, 0, 1).float()


def test_the_second_view_costs_one_target(pipe, scene, tmp_path):
    """12 references, 4 steps, no guidance: counted first, and once more for the clock, which counting slows down."""
    for counting in (True, False):
        costs, times, views = [], [], []
        watch = counted(pipe) if counting else nullcontext([])
        with serving(pipe, scene, tmp_path) as (_, browser), watch as passes:
            for name, shift in (("/references/0", (0.02, 0.0, 0.0)), ("/references/5", (0.0, 0.03, 0.0))):
                passes.clear()
                browser.move_to(name, shift)
                views.append(browser.until_view())
                costs.append(list(passes))
                times.append(seconds(browser.said[-1]))
                assert ("only this once" in browser.said[-1]) == (name == "/references/0")
        if counting:
            assert [count for count, _ in costs[0]] == [12, 1, 1, 1, 1]
            assert [count for count, _ in costs[1]] == [1, 1, 1, 1]
            operations = [sum(flops for _, flops in cost) for cost in costs]
        assert views[0].shape == (384, 384, 3) and np.abs(views[0].astype(int) - views[1]).max() > 50
    print(f"\nfirst view: {operations[0] / 1e9:.2f} GFLOP, {times[0]:.2f} s")
    print(
        f"second view: {operations[1] / 1e9:.2f} GFLOP ({operations[1] / operations[0]:.0%}), {times[1]:.2f} s",
        end=" ",
    )
    print(f"({times[1] / times[0]:.0%})")
    assert operations[1] <= 0.6 * operations[0]


def test_views_are_those_of_the_pipeline_from_where_the_camera_stands(pipe, scene, tmp_path):
    """The client stands where the server says that a photo was taken, and sees that photo."""
    references = LiveScene(pipe, scene, 6).references
    with serving(pipe, scene, tmp_path, references=6) as (_, browser):
        for view in references[1:3]:
            browser.move_to(f"/references/{view}")
            seen = as_tensor(browser.until_view())
            photo = scene.fitted([view], 128, 128)[0][0]
            others = [scene.fitted([other], 128, 128)[0][0] for other in references if other != view]
            assert psnr(seen[None], photo[None])[0] > max(psnr(seen[None], other[None])[0] for other in others)
            expected = pipe(
                [scene.images[reference] for reference in references],
                scene.cameras[references],
                scene.cameras[[view]],
                num_inference_steps=4,
                generator=torch.Generator().manual_seed(0),
            ).images[0]
            expected = torch.from_numpy(np.asarray(expected) / 255.0).permute(2, 0, 1).float()
            assert (seen - expected).abs().mean() < 0.01, "the page enlarges, and this test shrinks it back"


def test_the_world_stands_upright_and_in_its_own_unit(pipe, scene, tmp_path):
    """The same page for a capture that was rigidly moved and scaled; what is up there is +Z here."""
    motion = random_poses(generator=torch.Generator().manual_seed(1), spread=5.0)
    poses = motion @ scene.cameras.world_from_camera
    poses[:, :3, 3] *= 40.0
    points = scene.cameras.centers[:7] + scene.cameras.forward[:7]
    moved_points = 40.0 * (points @ motion[:3, :3].T + motion[:3, 3])
    seen = []
    for capture in (
        replace(scene, points=points),
        replace(scene, cameras=scene.cameras.with_poses(poses), points=moved_points),
    ):
        with serving(pipe, capture, tmp_path, references=4) as (viewer, browser):
            names = [f"/references/{view}" for view in viewer.live.references]
            for name in names:
                browser.until_placed(name)
            browser.until(lambda: "points" in browser.nodes.get("/points", {}))
            dots = browser.nodes["/points"]["points"].astype(float).reshape(-1, 3)
            places = np.array([browser.nodes[name]["position"] for name in names])
            turns = torch.tensor([browser.nodes[name]["wxyz"] for name in names], dtype=torch.float64)
            ups = -rotations_from_quaternions(turns)[:, :, 1]
            assert (ups[:, 2] > 0.5).all() and turns.norm(dim=-1).sub(1).abs().max() < 1e-6
            assert 0.3 < np.linalg.norm(places, axis=1).mean() < 3, "about what the cameras look at, in its distance"
            gaps = np.linalg.norm(places[:, None] - places, axis=-1)
            to_dots = np.linalg.norm(places[:, None] - dots, axis=-1)
            seen.append((places[:, 2], gaps, ups[:, 2].numpy(), dots[:, 2], to_dots))
            assert all(
                max(PIL.Image.open(io.BytesIO(browser.nodes[name]["_image_data"])).size) <= 160 for name in names
            )
    for one, other in zip(*seen):
        np.testing.assert_allclose(one, other, atol=2e-3)  # the wire has half precision for points
    assert len(dots) == 7 and dots[:, 2].std() > 0.01


def test_views_join_the_memory_and_are_forgotten(pipe, scene, tmp_path):
    with serving(pipe, scene, tmp_path, references=2) as (viewer, browser):
        first, second = viewer.live.references
        browser.move_to(f"/references/{first}", shift=(0.1, 0.1, 0.0))
        browser.until_view()
        browser.move_to(f"/references/{second}", shift=(0.1, 0.0, 0.05))
        alone = browser.until_view()
        browser.move_to(f"/references/{first}", shift=(0.1, 0.1, 0.0))
        browser.until_view()
        browser.press("Add this view to the memory")
        assert "2 photos and 1 added view." in browser.until_said("Added")
        browser.press("Add this view to the memory")
        browser.until_said("in the memory already")
        browser.until(lambda: "/kept/0" in browser.nodes)
        with counted(pipe) as passes:
            browser.move_to(f"/references/{second}", shift=(0.1, 0.0, 0.05))
            together = browser.until_view()
        assert [count for count, _ in passes] == [1, 1, 1, 1, 1], "the added view is encoded, the photos are not"
        assert np.abs(together.astype(int) - alone).max() > 5
        browser.press("Forget added views")
        assert np.abs(browser.until_view().astype(int) - alone).max() <= 2
        browser.until(lambda: "/kept/0" not in browser.nodes)
        browser.set("References", 3)
        browser.until_view()
        assert "The model knows 3 photos." in browser.said[-1]
        browser.until(lambda: sum(name.startswith("/references/") for name in browser.nodes) == 3)


def test_a_flight_through_keyframes_becomes_a_video(pipe, scene, tmp_path):
    import av

    with serving(pipe, scene, tmp_path / "out", references=3, steps=2) as (viewer, browser):
        browser.move_to(f"/references/{viewer.live.references[-1]}")  # viser greets a browser at its first camera
        browser.until_view()
        browser.press("Render the flight")
        browser.until_said("at least two keyframes")
        for number, view in enumerate(viewer.live.references, start=1):
            browser.move_to(f"/references/{view}")
            browser.until_view()
            browser.press("Record a keyframe")
            browser.until_said(f"{number} keyframe")
        browser.until(lambda: "/keys/path" in browser.nodes)
        browser.set("Views", 9)
        browser.press("Render the flight")
        said = browser.until_said("Wrote").removeprefix("Wrote ").rstrip(".")
        file = Path(re.sub(r"\\(.)", r"\1", said))  # as Markdown shows it
        assert file == tmp_path / "out" / "sample_flight_1.mp4"
        assert len(set(browser.progress)) >= 6 and browser.progress == sorted(browser.progress)
        with av.open(str(file)) as video:
            assert sum(1 for _ in video.decode(video=0)) == 9
        player = next(element for element in browser.elements.values() if "<video" in element.get("content", ""))
        played = base64.b64decode(re.search(r"base64,([^\"]+)", player["content"])[1])
        assert played == file.read_bytes() and player["visible"] and "controls" in player["content"]
        browser.press("Download the flight")
        browser.until(lambda: "FileTransferStartDownload" in browser.types)
        strip = browser.elements[browser.element("Keyframes")]
        previews = np.asarray(PIL.Image.open(io.BytesIO(strip["_data"])).convert("RGB"))
        assert previews.shape == (96, 3 * 96, 3) and all(previews[:, i * 96 : i * 96 + 96].std() > 5 for i in range(3))
        browser.set("Timeline", 50.0)
        browser.until(lambda: "SetCameraPositionMessage" in browser.types)
        browser.set("Views", 240)
        browser.press("Render the flight")
        browser.until_said("Flight: step")
        browser.press("Cancel")
        browser.until_said("was cancelled")
        assert [path.name for path in file.parent.iterdir()] == [file.name]
        browser.press("Remove the last keyframe")
        browser.until_said("2 keyframes")
        browser.press("Clear the keyframes")
        browser.until(lambda: not any(name.startswith("/keys/") for name in browser.nodes))


def turned_to(position: np.ndarray, ahead: np.ndarray) -> np.ndarray:
    """The turn of an upright camera that looks at a point, as viser has it."""
    import viser.transforms as tf

    forward = (ahead - position) / np.linalg.norm(ahead - position)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    return tf.SO3.from_matrix(np.stack([right, np.cross(forward, right), forward], axis=-1)).wxyz


# Of windows: pixels across and down, and which of them the panel leaves: 415 at the right are its own, or 60% below
WINDOWS = {(1440, 900): (1025, 900), (1920, 700): (1505, 700), (390, 844): (390, 338)}


@pytest.mark.parametrize("window, free", WINDOWS.items())
@pytest.mark.parametrize("capture", ["sample", "skull"])
def test_the_overview_leaves_room_for_the_panel(capture, window, free, pipe, tmp_path):
    """Photos, with what stands for them, and what they look at, projected as the window shows them."""
    with serving(pipe, load_scene(sample_capture(capture)), tmp_path, references=12) as (viewer, browser):
        names = [f"/references/{view}" for view in viewer.live.references]
        for name in names:
            browser.until_placed(name)
        corners = (
            np.array(list(itertools.product((-0.5, 0.5), (-0.5, 0.5), (0, 1)))) * browser.nodes[names[0]]["scale"]
        )
        turns = [torch.as_tensor(np.array(browser.nodes[name]["wxyz"])) for name in names]
        seen = [corners @ rotations_from_quaternions(turn).numpy().T for turn in turns]
        seen = [turned + browser.nodes[name]["position"] for turned, name in zip(seen, names)]
        seen = np.concatenate([*seen, np.zeros((1, 3))])
        position, ahead = viewer._overview(*window)
        axes = rotations_from_quaternions(torch.as_tensor(turned_to(position, ahead))).numpy()
        x, y, depth = ((seen - position) @ axes).T
        focal = window[1] / 2 / np.tan(viewer._vertical_fov / 2)
        across, down = window[0] / 2 + focal * x / depth, window[1] / 2 + focal * y / depth
        assert depth.min() > 0 and across.min() > 0 and down.min() > 0
        assert across.max() < free[0] and down.max() < free[1]
        assert max(np.ptp(across) / free[0], np.ptp(down) / free[1]) > 0.6, "no farther away than that takes"


def test_the_first_view_is_from_among_the_photos(scene):
    """Half way between the photo that is nearest to all others and its neighbour, where they see enough of that."""
    centers = [0.0, 0.1, 0.4, 0.55, 0.9]
    poses = torch.eye(4, dtype=torch.float64).repeat(5, 1, 1)
    poses[:, 0, 3] = torch.tensor(centers)
    poses[:, 2, 3] = -2 + torch.tensor(centers) ** 2  # rays of parallel cameras in one plane would meet nowhere
    row = scene.cameras[:5].with_poses(poses)
    assert among(row)[0, 3] == pytest.approx(0.475)
    assert torch.equal(among(row[3:4]), poses[3]), "a lone photo stands for itself"
    few = scene.cameras[[0, 19, 39]]  # from the two ends and the middle of a long arc
    assert torch.equal(among(few), few.world_from_camera[1])


def test_the_page_opens_on_an_overview_and_looks_as_one_likes(pipe, scene, tmp_path):
    with serving(pipe, scene, tmp_path, references=3, steps=1) as (viewer, browser):
        name = f"/references/{viewer.live.references[0]}"
        browser.until_placed(name)
        position, ahead = viewer._overview()
        assert position[2] > ahead[2], "from above"
        browser.until(lambda: "SetCameraPositionMessage" in browser.types)  # where all begin
        browser.types.discard("SetCameraPositionMessage")
        browser.move(turned_to(position, ahead), position, size=(900, 1440))
        browser.until_view()
        assert "SetCameraPositionMessage" not in browser.types, "it stands where it should"
        assert "Seen from among the photos" in browser.said[-1] and "invented" not in browser.said[-1]
        browser.move_to(name)
        browser.until_view()
        browser.move(turned_to(position, ahead), position, size=(844, 390))
        browser.until(lambda: "SetCameraPositionMessage" in browser.types)  # farther away, above the panel of a phone
        browser.move_to(name, shift=(0.0, 0.0, 0.05))  # a picture that is shown already is not sent again
        browser.until_view()
        before = browser.nodes[name]["scale"]
        browser.set("Photo size", 2.0)
        browser.until(lambda: browser.nodes[name]["scale"] == pytest.approx(2 * before))
        browser.set("Show photos", False)
        browser.move_to(name, shift=(1.0, 0.0, 0.0))
        browser.until(lambda: browser.nodes[name].get("visible") is False)
        assert browser.nodes.get("/view", {}).get("visible") is not True, "the view stands beside the scene"
        narrow = viewer.live.lens.fov[0, 1]
        browser.set("Field of view", 20.0)
        browser.until_view()
        assert float(viewer.live.lens.fov[0, 1]) == pytest.approx(20.0, abs=0.01) and narrow > 25
        browser.move(browser.nodes[name]["wxyz"], 2 * np.asarray(position))
        browser.until_view()
        browser.until(lambda: "Hardly a photo looks there" in browser.said[-1])
        browser.set("Dark", True)
        browser.until(lambda: "ThemeConfigurationMessage" in browser.types)


def test_a_view_that_is_out_of_date_is_given_up(pipe, scene, tmp_path):
    started = threading.Event()
    with serving(pipe, scene, tmp_path, references=2, steps=50) as (viewer, browser), counted(pipe) as passes:
        handle = pipe.transformer.register_forward_pre_hook(lambda *_: started.set() if len(passes) > 4 else None)
        try:
            first, second = viewer.live.references
            browser.move_to(f"/references/{first}")
            assert started.wait(PATIENCE)
            browser.move_to(f"/references/{second}")
            view = browser.until_view()
        finally:
            handle.remove()
        assert len(browser.pictures) == 1 and 55 < len(passes) < 100
        photo = scene.fitted([second], 128, 128)[0]
        assert psnr(as_tensor(view)[None], photo)[0] > 15


def test_what_fails_is_said_on_the_page_and_the_viewer_goes_on(pipe, scene, tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    with serving(pipe, scene, tmp_path / "file", references=2, steps=1) as (viewer, browser):
        for view in viewer.live.references:
            browser.move_to(f"/references/{view}")
            browser.until_view()
            browser.press("Record a keyframe")
            browser.until_said("keyframe")
        browser.set("Views", 2)
        browser.press("Render the flight")
        assert "exists" in browser.until_said("This did not work").lower()
        browser.move_to(f"/references/{viewer.live.references[0]}")
        browser.until_view()
    assert "kaleido: FileExistsError" in capsys.readouterr().err


def test_no_browser_can_open_a_tunnel_or_read_files(pipe, scene, tmp_path):
    with serving(pipe, scene, tmp_path, references=2, steps=1) as (viewer, browser):
        browser.send(_messages.ShareUrlRequest())
        browser.move_to(f"/references/{viewer.live.references[0]}")
        browser.until_view()
        assert viewer._server._share_tunnel is None and "ShareUrlUpdated" not in browser.types
        for path in ("/../../../../../../etc/passwd", "/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(viewer.url + path, timeout=PATIENCE)


def test_one_reference_has_the_capture_for_its_unit(pipe, scene):
    live = LiveScene(pipe, scene, 1)
    (reference,) = live.references
    assert live.render(scene.cameras[:1], steps=1) is not None
    reach = (scene.cameras.centers - scene.cameras.centers[reference]).norm(dim=-1).max()
    torch.testing.assert_close(live.memory.frame.scale, reach[None])


def test_the_command_of_the_docs_serves_until_interrupted(tmp_path):
    command = re.search(r"^kaleido (view sample)\b", DOCS.read_text(), re.MULTILINE).group(1)
    arguments = [*command.split(), "--port", "0", "--references", "3", "--steps", "1", "--output", str(tmp_path)]
    with served_command(arguments, r"^open (http://127\.0\.0\.1:\d+) in a browser") as (url, said):
        assert b"<html" in urllib.request.urlopen(url, timeout=PATIENCE).read()
        browser = Browser(url)
        browser.move_to("/references/0")
        browser.until_view()
    browser.close()
    assert "closed" in said[-1] and "viser" not in "".join(said), "all that is said is ours"


def test_ctrl_c_just_before_the_viewer_waits_ends_it_as_well(tmp_path, monkeypatch, capsys):
    closed, close = [], Viewer.close

    def interrupted(viewer):
        raise KeyboardInterrupt

    def noted(viewer):
        closed.append(viewer)
        close(viewer)

    monkeypatch.setattr(Viewer, "wait", interrupted)
    monkeypatch.setattr(Viewer, "close", noted)
    assert cli.main(["view", "sample", "--port", "0", "--references", "1", "--output", str(tmp_path)]) == 0
    assert len(closed) == 1 and capsys.readouterr().out.endswith("closed\n")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("view /nowhere", "/nowhere: no such capture"),
        ("view sample --references 0", "between 1 and 32, got 0"),
        ("view sample --steps 0", "--steps must be at least 1"),
        ("view sample --checkpoint /nowhere", "/nowhere"),
    ],
)
def test_bad_input_ends_in_one_line(arguments, message, capsys):
    assert cli.main(arguments.split()) == 1
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err


def test_without_viser_one_sentence_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "viser", None)  # what an import of a package that is not there meets
    assert cli.main(["view", "sample"]) == 1
    assert "pip install 'kaleido-diffusers[demo]'" in capsys.readouterr().err
