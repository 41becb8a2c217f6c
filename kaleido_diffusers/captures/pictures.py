"""The cameras of a capture, drawn in space."""

import base64
import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import torch
import torch.nn.functional as F

from ..files import written_whole
from ..geometry.cameras import Cameras, look_at
from ..geometry.trajectories import up_direction


__all__ = [
    "FRUSTUM_EDGES",
    "camera_picture",
    "camera_scene_html",
    "frustum_corners",
    "frustum_size",
    "neighbour_distances",
    "points_near",
    "thinned",
    "upright_axes",
]

_MAX_POINTS = 20_000  # of those that are drawn and projected
_MAX_LABELS = 8
_THUMBNAIL = 240  # pixels of the longer side


_INK, _GRID, _DUST = "#333333", "#dddddd", "#6f7a85"


def camera_picture(
    cameras: Cameras,
    path: str | os.PathLike,
    points: torch.Tensor | None = None,
    names: Sequence[str] | None = None,
) -> Path:
    """
    Draws cameras as frustums with their viewing directions, in perspective, from above and from the side, upright
    along the cameras' mean up and coloured in their order. Needs `pip install kaleido-diffusers[captures]`.

    Args:
        cameras (`Cameras` of shape `[V]`):
            The cameras.
        path (`str` or `Path`):
            The PNG.
        points (`torch.Tensor` of shape `[P, 3]`, *optional*):
            Sparse points in the world, drawn as faint dots; those far outside are left out.
        names (`Sequence[str]` of length V, *optional*):
            Labels, written beside a few cameras.

    Returns:
        `Path`: `path`.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("A picture needs matplotlib: pip install 'kaleido-diffusers[captures]'.") from error
    drawing = _Drawing.of(cameras, points)
    figure = Figure(figsize=(13, 6.6), facecolor="white")
    panel = _panel(figure, (0.01, 0.075, 0.6, 0.85), drawing, drawing.perspective)
    panel.set_axis_off()
    if names is not None:
        _label(panel, drawing.perspective(drawing.centers).tolist(), names)
    for bottom, title, plane in ((0.545, "from above", [0, 1]), (0.055, "from the side", [1, 2])):
        panel = _panel(figure, (0.65, bottom, 0.34, 0.40), drawing, lambda x, plane=plane: x[..., plane])
        panel.set_title(title, fontsize=10, loc="left", color=_INK)
        panel.grid(color=_GRID, linewidth=0.6)
        panel.tick_params(labelsize=7, colors=_INK, length=0)
    count = f"{len(cameras)} camera{'s' * (len(cameras) != 1)}"
    figure.text(0.02, 0.945, count if points is None else f"{count}, {len(points):,} points", fontsize=12, color=_INK)
    if len(cameras) > 1:
        _draw_order(figure, len(cameras))
    path = Path(path)
    with written_whole(path) as part:
        figure.savefig(part, dpi=120, format=path.suffix[1:] or "png")
    return path


@dataclass
class _Drawing:
    """Cameras and points in the frame in which they are drawn: right, away, up.

    Attributes:
        centers (`torch.Tensor` of shape `[V, 3]`)
        frustums (`torch.Tensor` of shape `[V, 7, 3]`): the corners of [`frustum_corners`].
        points (`torch.Tensor` of shape `[P, 3]`)
        low, high (`torch.Tensor` of shape `[3]`): the box that holds them.
    """

    centers: torch.Tensor
    frustums: torch.Tensor
    points: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    @classmethod
    def of(cls, cameras: Cameras, points: torch.Tensor | None) -> "_Drawing":
        if len(cameras.shape) != 1 or not len(cameras):
            raise ValueError(f"A drawing needs cameras of shape [V], got {list(cameras.shape)}.")
        cameras = cameras.to("cpu")
        drawing_from_world = upright_axes(cameras)
        centers = cameras.centers @ drawing_from_world.mT
        frustums = frustum_corners(cameras) @ drawing_from_world.mT
        points = torch.zeros(0, 3, dtype=torch.float32) if points is None else thinned(points)
        points = points_near(points.to(centers) @ drawing_from_world.mT, centers)
        everything = torch.cat([frustums.reshape(-1, 3), points])
        return cls(centers, frustums, points, everything.amin(0), everything.amax(0))

    def perspective(self, places: torch.Tensor) -> torch.Tensor:
        """Places `[..., 3]` on a canvas `[..., 2]`, seen from behind, from the right and from above."""
        middle, reach = (self.low + self.high) / 2, (self.high - self.low).norm()
        up = middle.new_tensor([0.0, 0.0, 1.0])
        pose = look_at(middle + 1.6 * reach * F.normalize(middle.new_tensor([0.5, -1.0, 0.55]), dim=0), middle, up)
        pixels, _ = Cameras.from_fov(pose, 40.0, [1000, 1000]).project(places.reshape(-1, 3))
        return (pixels * pixels.new_tensor([1.0, -1.0])).reshape(*places.shape[:-1], 2)

    def floor(self) -> torch.Tensor:
        """Lines `[L, 2, 3]` of a square grid under everything."""
        step = float((self.high - self.low)[:2].max()) / 8
        count = ((self.high - self.low)[:2] / step).ceil().int().tolist()
        x, y = (float(self.low[axis]) + step * torch.arange(count[axis] + 1, dtype=torch.float32) for axis in (0, 1))
        rows = [[[x[0], at, self.low[2]], [x[-1], at, self.low[2]]] for at in y]
        columns = [[[at, y[0], self.low[2]], [at, y[-1], self.low[2]]] for at in x]
        return torch.tensor(rows + columns, dtype=self.low.dtype)


# A frustum's corners: the image's (from the top left, clockwise), the tip of a roof that says up, the centre, and a
# point ahead. The lines between them:
FRUSTUM_EDGES = ((5, 0), (5, 1), (5, 2), (5, 3), (0, 1), (1, 2), (2, 3), (3, 0), (0, 4), (4, 1))
_AHEAD = (5, 6)


def frustum_size(cameras: Cameras) -> float:
    """How deep to draw frustums: as deep as the cameras' distances leave room for.

    Args:
        cameras ([`Cameras`]): `[V]`.
    """
    gap = float(neighbour_distances(cameras.centers).median())
    extent = 2 * float((cameras.centers - cameras.centers.mean(0)).norm(dim=-1).max())
    return min(max(0.7 * gap, 0.04 * extent), 0.12 * extent) or 1.0


def frustum_corners(cameras: Cameras, size: float | None = None) -> torch.Tensor:
    """Corners `[V, 7, 3]` of frustums in the world, `size` deep ([`frustum_size`] when not given): see
    `FRUSTUM_EDGES`.

    Args:
        cameras ([`Cameras`]): `[V]`.
        size (`float`, *optional*): depth in the world's unit.
    """
    size = frustum_size(cameras) if size is None else size
    height, width = cameras.image_sizes.to(cameras.intrinsics).unbind(-1)
    zero = torch.zeros_like(width)
    outline = [(zero, zero), (width, zero), (width, height), (zero, height), (width / 2, -height / 4)]
    pixels = torch.stack([torch.stack(corner, dim=-1) for corner in outline], dim=-2)
    corners = cameras.unproject(pixels, torch.full_like(pixels[..., 0], size))
    apex = cameras.centers[:, None]
    return torch.cat([corners, apex, apex + 2.5 * size * cameras.forward[:, None]], dim=1)


def upright_axes(cameras: Cameras) -> torch.Tensor:
    """Rotation `[3, 3]` to the axes right, away and up: the cameras' up, and away as they look on the whole, or along
    which they spread least where they look all round.

    Args:
        cameras ([`Cameras`]): `[V]`.
    """
    up = up_direction(cameras)
    level = torch.eye(3, dtype=torch.float32).to(up) - torch.outer(up, up)
    away = level @ cameras.forward.mean(0)
    if away.norm() < 0.2:
        offsets = (cameras.centers - cameras.centers.mean(0)) @ level
        spread = offsets.mT @ offsets + torch.outer(up, up) * (offsets.square().sum() + 1)
        away = torch.linalg.eigh(spread).eigenvectors[:, 0]
    away = F.normalize(level @ away, dim=0)
    return torch.stack([torch.linalg.cross(away, up), away, up])


def neighbour_distances(centers: torch.Tensor) -> torch.Tensor:
    """Distance `[V]` of each camera to the nearest other; zero for one alone.

    Args:
        centers (`torch.Tensor` of shape `[V, 3]`): of the cameras.
    """
    if len(centers) < 2:
        return torch.zeros_like(centers[:, 0])
    return torch.cdist(centers, centers).fill_diagonal_(torch.inf).amin(-1)


def thinned(points: torch.Tensor) -> torch.Tensor:
    """Points `[P, 3]`, no more than a picture needs: every so manyth of them.

    Args:
        points (`torch.Tensor` of shape `[P, 3]`): of a capture.
    """
    return points[:: -(-len(points) // _MAX_POINTS) or 1]


def points_near(points: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
    """The points that a picture can hold: between their 3rd and 97th percentiles, a little widened, and within three
    camera extents of the cameras.

    Args:
        points (`torch.Tensor`): `[P, 3]` in the world.
        centers (`torch.Tensor`): of the cameras, `[V, 3]`.
    """
    if not len(points):
        return points
    low, high = points.quantile(0.03, dim=0), points.quantile(0.97, dim=0)
    margin = 0.25 * (high - low)
    inside = ((points >= low - margin) & (points <= high + margin)).all(-1)
    middle = centers.mean(0)
    extent = 2 * (centers - middle).norm(dim=-1).max()
    near = (points - middle).norm(dim=-1) <= 3 * extent
    return points[inside & near] if near.any() else points[inside]


def _panel(figure, box: tuple[float, ...], drawing: _Drawing, flat):
    """Axes in `box` with the drawing, which `flat` maps from `[..., 3]` to the plane `[..., 2]`; one unit is as long
    along either axis."""
    from matplotlib.collections import LineCollection, PolyCollection

    axes = figure.add_axes(box)
    axes.set_axisbelow(True)
    frustums, points = flat(drawing.frustums), flat(drawing.points)
    shown = [frustums.reshape(-1, 2), points]
    if flat == drawing.perspective:
        floor = flat(drawing.floor())
        shown.append(floor.reshape(-1, 2))
        axes.add_collection(LineCollection(floor.tolist(), colors=_GRID, linewidths=0.6, zorder=0))
    axes.scatter(*points.mT.tolist(), s=1.3, c=_DUST, alpha=0.4, linewidths=0, zorder=1)
    colors = _colors(len(frustums))
    axes.add_collection(PolyCollection(frustums[:, :4].tolist(), facecolors=colors, alpha=0.15, zorder=2))
    edges, ahead = frustums[:, FRUSTUM_EDGES], frustums[:, _AHEAD]
    repeated = colors.repeat(len(FRUSTUM_EDGES), axis=0)
    axes.add_collection(LineCollection(edges.flatten(0, 1).tolist(), colors=repeated, linewidths=0.8, zorder=3))
    axes.add_collection(LineCollection(ahead.tolist(), colors=colors, linewidths=0.6, alpha=0.6, zorder=3))

    shown = torch.cat(shown)
    middle, half = (shown.amin(0) + shown.amax(0)) / 2, 0.53 * (shown.amax(0) - shown.amin(0))
    shape = half.new_tensor([a * b for a, b in zip(box[2:], figure.get_size_inches())])
    half = shape * ((half / shape).max() or 1.0)
    (left, bottom), (right, top) = (middle - half).tolist(), (middle + half).tolist()
    axes.set(xlim=(left, right), ylim=(bottom, top))
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def _label(axes, places: Sequence[tuple[float, float]], names: Sequence[str]) -> None:
    """Names of a few cameras, spread over the order, no two on top of each other."""
    from matplotlib.patheffects import withStroke

    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    placed = []
    for view in dict.fromkeys(
        torch.linspace(0, len(names) - 1, _MAX_LABELS, dtype=torch.float32).round().int().tolist()
    ):
        x, y = places[view]
        side = -1 if x > (left + right) / 2 else 1  # towards the middle, where there is room
        middle = x + 0.07 * side * (right - left)
        if any(abs(middle - u) < 0.15 * (right - left) and abs(y - v) < 0.03 * (top - bottom) for u, v in placed):
            continue
        style = {"fontsize": 7, "color": _INK, "path_effects": [withStroke(linewidth=2, foreground="white")]}
        style |= {"textcoords": "offset points", "ha": "right" if side < 0 else "left"}
        axes.annotate(names[view], (x, y), (5 * side, 5), **style)
        placed.append((middle, y))


def _colors(count: int):
    """RGBA of the views, `[V, 4]`, in their order."""
    from matplotlib import colormaps

    return colormaps["plasma"](torch.linspace(0.0, 0.86, count, dtype=torch.float32).numpy())


def _draw_order(figure, count: int) -> None:
    """What the colours mean."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    bar = figure.add_axes((0.02, 0.045, 0.14, 0.014))
    mappable = ScalarMappable(Normalize(0, count - 1), ListedColormap(_colors(256)))
    figure.colorbar(mappable, cax=bar, orientation="horizontal", ticks=[0, count - 1]).outline.set_visible(False)
    bar.tick_params(labelsize=7, colors=_INK, length=0)
    bar.set_title("view", fontsize=8, color=_INK)


# A page to turn the cameras about in


def camera_scene_html(
    cameras: Cameras,
    path: str | os.PathLike,
    points: torch.Tensor | None = None,
    names: Sequence[str] | None = None,
    thumbnails: Iterable[PIL.Image.Image | None] | None = None,
) -> Path:
    """
    Writes the cameras as a page to turn and zoom, which needs no network: frustums coloured in their order, the name
    and the place of a camera under the mouse. Needs `pip install kaleido-diffusers[captures]`.

    Args:
        cameras (`Cameras` of shape `[V]`):
            The cameras.
        path (`str` or `Path`):
            The HTML file (5 MB of it are plotly).
        points (`torch.Tensor` of shape `[P, 3]`, *optional*):
            Sparse points in the world; those far outside are left out.
        names (`Sequence[str]` of length V, *optional*):
            What to call the cameras; their numbers when not given.
        thumbnails (`Iterable[PIL.Image.Image | None]` of length V, *optional*):
            Photos, taken one at a time; a small copy is shown while the mouse is over the camera.

    Returns:
        `Path`: `path`.
    """
    try:
        from plotly import graph_objects
    except ImportError as error:
        raise ImportError("An HTML page needs plotly: pip install 'kaleido-diffusers[captures]'.") from error
    drawing = _Drawing.of(cameras, points)
    order = torch.arange(len(cameras))
    lines = drawing.frustums[:, (*FRUSTUM_EDGES, _AHEAD)]
    lines = F.pad(lines, (0, 0, 0, 1), value=torch.nan)  # lifts the pen between lines
    pens = order.repeat_interleave(lines[0].numel() // 3)
    look = {"colorscale": "Plasma", "cmin": 0, "cmax": max(len(cameras) - 1, 1) / 0.86}
    labels = [str(view) for view in range(len(cameras))] if names is None else names
    places = ["<br>at {:.4g}, {:.4g}, {:.4g}".format(*center) for center in cameras.centers.tolist()]
    traces = [
        _trace(graph_objects, drawing.points, mode="markers", marker={"size": 1, "color": _DUST}, hoverinfo="skip"),
        _trace(graph_objects, lines, mode="lines", line={"width": 2, "color": pens.numpy(), **look}, hoverinfo="skip"),
        _trace(
            graph_objects,
            drawing.centers,
            mode="markers",
            marker={"size": 3, "color": order.numpy(), **look},
            text=[label + place for label, place in zip(labels, places)],
            hoverinfo="text",
        ),
    ]
    axis = {"showticklabels": False, "title": "", "showbackground": False, "gridcolor": _GRID, "zeroline": False}
    scene = {f"{name}axis": axis for name in "xyz"}
    scene |= {"aspectmode": "data", "dragmode": "turntable", "camera": {"eye": {"x": 0.7, "y": -1.4, "z": 0.8}}}
    layout = {"scene": scene, "showlegend": False, "margin": dict.fromkeys("lrtb", 0)}
    script = None if thumbnails is None else _hover_script([_data_url(image) for image in thumbnails])
    page = graph_objects.Figure(traces, layout)
    config = {"displaylogo": False, "showSendToCloud": False}  # plotly would offer to upload the photos
    path = Path(path)
    with written_whole(path) as part:
        page.write_html(part, include_plotlyjs=True, post_script=script, config=config, default_height="95vh")
    return path


def _trace(graph_objects, places: torch.Tensor, **style):
    x, y, z = places.reshape(-1, 3).mT.float().numpy()
    return graph_objects.Scatter3d(x=x, y=y, z=z, **style)


def _data_url(image: PIL.Image.Image | None) -> str:
    if image is None:
        return ""
    image = image.convert("RGB")
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _hover_script(urls: Sequence[str]) -> str:
    """JavaScript that shows a photo in the corner while the mouse is over its camera."""
    return f"""
    const plot = document.getElementById('{{plot_id}}'), urls = {json.dumps(urls)};
    const photo = document.createElement('img');
    photo.style = 'position: fixed; top: 16px; left: 16px; display: none; border-radius: 4px; pointer-events: none';
    document.body.appendChild(photo);
    plot.on('plotly_hover', event => {{
        const {{curveNumber, pointNumber}} = event.points[0];
        if (curveNumber !== 2 || !urls[pointNumber]) return;
        photo.src = urls[pointNumber];
        photo.style.display = 'block';
    }});
    plot.on('plotly_unhover', () => {{ photo.style.display = 'none'; }});
    """
