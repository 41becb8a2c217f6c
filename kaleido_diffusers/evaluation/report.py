"""Contact sheets."""

from collections.abc import Sequence

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch

from ..data.images import tensor_to_image


__all__ = ["contact_sheet"]

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
