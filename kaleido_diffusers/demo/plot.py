"""The picture of a capture in space: its cameras, the references' photos at their places, and where to look from."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from ..captures.pictures import FRUSTUM_EDGES, frustum_corners, frustum_size, upright_axes
from ..web.texts import as_markdown
from .captures import Capture
from .views import Plan


__all__ = ["describe", "space_figure"]

_PHOTO, _REFERENCE, _TARGET, _DUST, _GRID = "#9aa3ab", "#2563eb", "#ea580c", "#8b949e", "rgba(128, 128, 128, 0.25)"
_INVENTED = "#78716c"  # of targets that hardly a reference sees
_CELLS = 8000  # coloured squares that make up all thumbnails together
_MOST_FRUSTUMS = 24  # of a path that are drawn; its line shows the others


def space_figure(capture: Capture, plan: Plan | None = None):
    """
    A plotly figure to turn and zoom: all photos' cameras in grey, the references in blue with what they show, the
    targets in orange with the path between them, in a darker grey those that hardly a reference sees. Needs
    `pip install kaleido-diffusers[demo]`.

    Args:
        capture (`Capture`): the photos.
        plan (`Plan`, *optional*): references and targets; without it all photos show what they show.
    """
    from plotly import graph_objects

    axes = upright_axes(capture.cameras)
    size = frustum_size(capture.cameras)
    shown = list(range(len(capture))) if plan is None else plan.references
    others = [photo for photo in range(len(capture)) if photo not in shown]
    large = max(1.6 * size, frustum_size(capture.cameras[shown]))  # for their photos to be seen
    traces = []
    if capture.points is not None:
        dust = {"mode": "markers", "marker": {"size": 1.5, "color": _DUST, "opacity": 0.5}, "hoverinfo": "skip"}
        traces.append(_scatter(graph_objects, capture.points.to(axes) @ axes.mT, **dust))
    if others:
        corners = frustum_corners(capture.cameras[others], size) @ axes.mT
        traces += _frustums(graph_objects, corners, _PHOTO, 1.5, [f"photo {photo + 1}" for photo in others])
    corners = frustum_corners(capture.cameras[shown], large) @ axes.mT
    traces += _frustums(graph_objects, corners, _REFERENCE, 3, [f"photo {photo + 1}" for photo in shown])
    traces.append(_thumbnails(graph_objects, capture.pixels[shown], corners[:, :4]))
    if plan is not None:
        traces += _targets(graph_objects, plan, large if len(plan.targets) == 1 else size, axes)
    return graph_objects.Figure(traces, _layout(traces))


def describe(capture: Capture, plan: Plan) -> str:
    """What the picture shows, for those who cannot see it.

    Args:
        capture (`Capture`): the capture of the visitor.
        plan (`Plan`): cameras and references.
    """
    count = len(plan.targets)
    shown = "one view" if count == 1 else f"{count} views"
    also = " The true photos are known." if plan.truths else ""
    numbers = ", ".join(str(photo + 1) for photo in plan.references)
    photos = f"{len(capture)} photo{'s' * (len(capture) != 1)}"
    grey = f" Grey: {len(plan.invented)} of them, where hardly a photo looks." if plan.invented else ""
    path = f"Orange: {shown} to generate.{grey}{also}"
    return f"{as_markdown(capture.name)}, {photos}. Blue: references ({numbers}). {path}"


def _layout(traces: list) -> dict:
    """One unit is as long along each axis, and everything fits into the picture, however long and flat it is."""
    places = np.concatenate([np.stack([trace.x, trace.y, trace.z]) for trace in traces], axis=1)
    low, high = np.nanmin(places, axis=1), np.nanmax(places, axis=1)
    middle, half = (low + high) / 2, np.maximum((high - low) / 2, 0.1 * (high - low).max())
    axis = {"showticklabels": False, "title": "", "showbackground": False, "gridcolor": _GRID, "zeroline": False}
    axis["showspikes"] = False
    spans = zip("xyz", (middle - half).tolist(), (middle + half).tolist())
    scene = {f"{name}axis": {**axis, "range": [start, end]} for name, start, end in spans}
    scene["aspectmode"], scene["dragmode"] = "manual", "turntable"
    scene["aspectratio"] = dict(zip("xyz", (half / half.max()).tolist()))
    scene["camera"] = {"eye": {"x": 0.59, "y": -1.07, "z": 0.69}}
    return {
        "scene": scene,
        "showlegend": False,
        "margin": dict.fromkeys("lrtb", 0),
        "height": 400,
        "paper_bgcolor": "rgba(0, 0, 0, 0)",
        "uirevision": "kept",  # a new path leaves the picture as the visitor turned it
    }


def _scatter(graph_objects, places: torch.Tensor, **style):
    x, y, z = places.reshape(-1, 3).mT.float().numpy()
    return graph_objects.Scatter3d(x=x, y=y, z=z, **style)


def _frustums(graph_objects, corners: torch.Tensor, color: str, width: float, labels: list[str]) -> list:
    """Lines of frustums `[V, 7, 3]`, and a dot in each centre that says what it is."""
    lines = F.pad(corners[:, FRUSTUM_EDGES], (0, 0, 0, 1), value=math.nan)  # lifts the pen between lines
    line = {"mode": "lines", "line": {"width": width, "color": color}, "hoverinfo": "skip"}
    dots = {"mode": "markers", "marker": {"size": 2, "color": color}, "text": labels, "hoverinfo": "text"}
    return [_scatter(graph_objects, lines, **line), _scatter(graph_objects, corners[:, 5], **dots)]


def _targets(graph_objects, plan: Plan, size: float, axes: torch.Tensor) -> list:
    targets, invented = plan.targets, set(plan.invented)
    path = targets.centers @ axes.mT
    line = {"mode": "lines", "line": {"width": 4, "color": _TARGET}, "hoverinfo": "skip"}
    traces = [_scatter(graph_objects, path, **line)]
    drawn = (
        torch.linspace(0, len(targets) - 1, min(len(targets), _MOST_FRUSTUMS), dtype=torch.float32)
        .round()
        .long()
        .tolist()
    )
    for is_invented, color in ((False, _TARGET), (True, _INVENTED)):
        views = [view for view in drawn if (view in invented) is is_invented]
        if views:
            corners = frustum_corners(targets[views], size) @ axes.mT
            labels = [f"view {view + 1}" + ", invented" * is_invented for view in views]
            traces += _frustums(graph_objects, corners, color, 2, labels)
    return traces


def _thumbnails(graph_objects, pixels: torch.Tensor, corners: torch.Tensor):
    """Photos `[V, 3, H, W]` in the image planes of their frustums, corners `[V, 4, 3]`: a mesh of coloured squares,
    since plotly places no images in space."""
    count = len(pixels)
    side = max(6, min(40, int(math.sqrt(_CELLS / count))))
    small = F.interpolate(pixels.float() / 255, (side, side), mode="area")
    colors = (small.flatten(2).mT.reshape(-1, 3) * 255).round().int().tolist()
    colors = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in colors for _ in range(2)]
    steps = torch.linspace(0, 1, side + 1, dtype=corners.dtype)
    across, down = steps[None, None, :, None], steps[None, :, None, None]
    top_left, top_right, _, bottom_left = corners[:, :, None, None].unbind(1)
    grid = top_left + across * (top_right - top_left) + down * (bottom_left - top_left)  # [V, side + 1, side + 1, 3]
    index = torch.arange(grid[..., 0].numel()).view(count, side + 1, side + 1)
    first, right = index[:, :-1, :-1].flatten(), index[:, :-1, 1:].flatten()
    below, last = index[:, 1:, :-1].flatten(), index[:, 1:, 1:].flatten()
    upper, lower = torch.stack([first, right, last]), torch.stack([first, last, below])
    i, j, k = torch.stack([upper, lower], dim=-1).flatten(1).int().numpy()
    x, y, z = grid.reshape(-1, 3).mT.float().numpy()
    light = {"ambient": 1, "diffuse": 0, "specular": 0, "fresnel": 0}
    return graph_objects.Mesh3d(
        x=x, y=y, z=z, i=i, j=j, k=k, facecolor=colors, lighting=light, flatshading=True, hoverinfo="skip"
    )
