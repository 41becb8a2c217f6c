"""Contact sheets, tables and plots."""

import math
from collections.abc import Sequence
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch

from ..captures.images import tensor_to_image
from ..files import written_whole


__all__ = ["contact_sheet", "markdown_table", "plot_scores"]

_LABEL_WIDTH, _CAPTION_HEIGHT, _GAP, _TILE, _COLUMNS = 92, 18, 4, 128, 8


def contact_sheet(
    references: torch.Tensor,  # [N, 3, H, W] in [0, 1]
    rows: dict[str, torch.Tensor],  # name -> [M, 3, H, W] in [0, 1]
    captions: Sequence[str] = (),
    tile: int = _TILE,
) -> PIL.Image.Image:
    """
    Lays references and targets out on one sheet.

    Args:
        references (`torch.Tensor` of shape `[N, 3, H, W]`):
            Reference views in [0, 1].
        rows (`dict[str, torch.Tensor]`):
            Name of each row (generated, truth, difference, ...) and its M images `[M, 3, H, W]` in [0, 1].
        captions (`Sequence[str]` of length M, *optional*):
            A line under each target.
        tile (`int`, defaults to `128`):
            Height of an image on the sheet.
    """
    blocks = []
    for start in range(0, len(references), _COLUMNS):
        blocks.append(({"references" if not start else "": references[start : start + _COLUMNS]}, ()))
    count = len(next(iter(rows.values()))) if rows else 0
    for start in range(0, count, _COLUMNS):
        part = slice(start, start + _COLUMNS)
        blocks.append(({name: images[part] for name, images in rows.items()}, captions[part]))
    drawn = [_block(named, lines, tile) for named, lines in blocks]
    width, height = max(block.width for block in drawn), sum(block.height + 2 * _GAP for block in drawn)
    sheet = PIL.Image.new("RGB", (width + 2 * _GAP, height), "white")
    top = _GAP
    for block in drawn:
        sheet.paste(block, (_GAP, top))
        top += block.height + 2 * _GAP
    return sheet


def _block(rows: dict[str, torch.Tensor], captions: Sequence[str], tile: int) -> PIL.Image.Image:
    """Rows of equally many images, names at the left, captions below."""
    first = next(iter(rows.values()))
    tile_width = round(tile * first.shape[-1] / first.shape[-2])
    width = _LABEL_WIDTH + len(first) * (tile_width + _GAP)
    height = len(rows) * (tile + _GAP) + (_CAPTION_HEIGHT if captions else 0)
    block = PIL.Image.new("RGB", (width, height), "white")
    draw, font = PIL.ImageDraw.Draw(block), PIL.ImageFont.load_default(12)
    for row, (name, images) in enumerate(rows.items()):
        top = row * (tile + _GAP)
        draw.text((0, top + tile // 2 - 8), name, fill="black", font=font)
        for column, image in enumerate(images):
            picture = tensor_to_image(image).resize((tile_width, tile), PIL.Image.Resampling.BICUBIC)
            block.paste(picture, (_LABEL_WIDTH + column * (tile_width + _GAP), top))
    for column, caption in enumerate(captions):
        place = (_LABEL_WIDTH + column * (tile_width + _GAP), height - _CAPTION_HEIGHT + 2)
        draw.text(place, caption, fill="black", font=font)
    return block


def markdown_table(rows: Sequence[dict], columns: dict[str, str]) -> str:
    """
    A Markdown table.

    Args:
        rows (`Sequence[dict]`): values by key; `NaN` is left blank.
        columns (`dict[str, str]`): key of each column and how it is formatted, such as `{"psnr": ".2f"}`.
    """

    def cell(value, form: str) -> str:
        return "" if isinstance(value, float) and math.isnan(value) else format(value, form)

    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell(row[key], form) for key, form in columns.items()) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def plot_scores(
    rows: Sequence[dict], path: Path, metrics: Sequence[str] = ("psnr", "lpips", "gradient_energy")
) -> None:
    """Draws metrics over the number of references, one line a method.

    Args:
        rows (`Sequence[dict]`): with `method`, `references` and the metrics.
        path (`Path`): of the PNG.
        metrics (`Sequence[str]`): one panel each.
    """
    from matplotlib.figure import Figure

    metrics = [metric for metric in metrics if not all(math.isnan(row[metric]) for row in rows)]
    figure = Figure(figsize=(4 * len(metrics), 3.2), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics):
        for method in dict.fromkeys(row["method"] for row in rows):
            points = sorted((row["references"], row[metric]) for row in rows if row["method"] == method)
            axes.plot(*zip(*points), marker="o", label=method)
        axes.set_xlabel("references")
        axes.set_title(metric.replace("_", " "))
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    with written_whole(path) as part:
        figure.savefig(part, dpi=110, format=path.suffix[1:])
