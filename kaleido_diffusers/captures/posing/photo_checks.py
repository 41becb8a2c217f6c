"""What a set of pictures shows before anything is computed from it: which are blurred, and which show the same."""

import numpy as np
import PIL.Image


__all__ = ["SAME_PICTURE", "blurred", "difference", "grey", "same_pictures", "sharpness", "thumbnail"]

SAME_PICTURE = 0.004  # one grey level: copies of a photo differ by less, neighbours in a capture by five times as much
_BLURRED = 0.15  # of the median sharpness; hand-held captures reach down to 0.2, a blur of 2 in 1024 pixels to 0.03


def grey(image: PIL.Image.Image, long_side: int = 1024) -> np.ndarray:
    """Grey levels `[h, w]`, uint8, of a picture made smaller until its longer side has at most `long_side` pixels.

    Args:
        image (`PIL.Image.Image`): the picture.
        long_side (`int`, defaults to `1024`): most pixels of the longer side.
    """
    image = image.convert("L")
    image.thumbnail((long_side, long_side), PIL.Image.Resampling.BOX)
    return np.asarray(image)


def sharpness(levels: np.ndarray) -> float:
    """Variance of the Laplacian of grey levels `[h, w]`; zero for pictures of less than 3 pixels a side.

    Args:
        levels (`np.ndarray`): grey levels `[h, w]`, see [`grey`].
    """
    levels = levels.astype(np.float32)
    inner = levels[1:-1, 1:-1]
    around = levels[:-2, 1:-1] + levels[2:, 1:-1] + levels[1:-1, :-2] + levels[1:-1, 2:]
    return float((4 * inner - around).var()) if inner.size else 0.0


def blurred(values: list[float]) -> list[int]:
    """Numbers of the pictures that are far less sharp than the others, from the sharpness of each.

    Args:
        values (`list[float]`): sharpness of each picture, see [`sharpness`].
    """
    limit = _BLURRED * np.median(values)
    return [number for number, value in enumerate(values) if value < limit]


def thumbnail(image: PIL.Image.Image) -> np.ndarray:
    """The picture in 32 x 32 pixels, uint8 `[32, 32, 3]`.

    Args:
        image (`PIL.Image.Image`): the picture.
    """
    return np.asarray(image.convert("RGB").resize((32, 32), PIL.Image.Resampling.BOX))


def difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Mean distance of thumbnails `[..., 32, 32, 3]`, in [0, 1], over all but the leading dimensions.

    Args:
        first (`np.ndarray`): thumbnails, see [`thumbnail`].
        second (`np.ndarray`): likewise, broadcast against the first.
    """
    return np.abs(first.astype(np.int16) - second).mean(axis=(-3, -2, -1)) / 255


def same_pictures(thumbnails: list[np.ndarray]) -> dict[int, int]:
    """Numbers of the pictures that show what an earlier one does, and the number of that one.

    Args:
        thumbnails (`list[np.ndarray]`): one for each picture, see [`thumbnail`].
    """
    stack = np.stack(thumbnails)
    found = {}
    for number in range(1, len(stack)):
        distances = difference(stack[:number], stack[number])
        if distances.min() < SAME_PICTURE:
            found[number] = int(distances.argmin())
    return found
