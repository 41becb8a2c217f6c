"""Opening images safely, and the one function that moves an image and its intrinsics together."""

import io
import os
import re
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL.Image
import PIL.ImageCms
import PIL.ImageOps
import torch
import torch.nn.functional as F

from ..files import written_whole
from ..geometry.cameras import Cameras


__all__ = [
    "HEIF_SUFFIXES",
    "MAX_IMAGE_PIXELS",
    "REDUCED_PIXELS",
    "THREADS",
    "UNREAD_SUFFIXES",
    "CaptureError",
    "as_image_tensor",
    "center_box",
    "crop_and_resize",
    "fit_cameras",
    "fit_image",
    "fit_views",
    "load_image",
    "load_mask",
    "open_image",
    "rotate_views",
    "save_image",
    "tensor_to_image",
    "to_rgb",
    "to_uint8",
    "unread_photo",
    "upright_turns",
]

THREADS = min(8, os.cpu_count() or 1)  # that open and decode photos

HEIF_SUFFIXES = (".heic", ".heif")
MAX_IMAGE_PIXELS = 150_000_000  # larger images are refused before they are decoded

_SRGB = PIL.ImageCms.createProfile("sRGB")
REDUCED_PIXELS = 16_000_000  # photos of more are reduced before they are floating point

UNREAD_SUFFIXES = (".avif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2")
_EXIF_ORIENTATION = 0x0112
_GPANO = re.compile(rb"GPano:ProjectionType\W+(equirectangular|cylindrical)", re.IGNORECASE)

# Our own limit stands above. Set once: to do so around each call is not safe in threads.
warnings.filterwarnings("ignore", category=PIL.Image.DecompressionBombWarning)


class CaptureError(ValueError):
    """A capture or an image that cannot be read: the message names the file, and the field where there is one."""


def load_image(
    path: str | os.PathLike | BinaryIO,
    background: tuple[int, int, int] = (255, 255, 255),
    exif: bool = True,
    name: str | None = None,
    long_side: int | None = None,
) -> PIL.Image.Image:
    """
    Opens an image as 8-bit RGB: transparency is laid over `background`, grey and 16-bit images are converted, and an
    EXIF rotation is applied unless `exif` is false. `name` is what errors call it, `path` when not given. Images whose
    longer side has more than `long_side` pixels are reduced to it, JPEGs while they are decoded.

    Raises [`CaptureError`] for files that are missing, truncated, not an image, or larger than `MAX_IMAGE_PIXELS`.
    """
    image = open_image(path, name)
    try:
        if long_side is not None and long_side < max(image.size):
            size = [max(1, round(side * long_side / max(image.size))) for side in image.size]
            image.draft(None, size)  # JPEG alone: decodes a half, a quarter or an eighth of it, not below `size`
            image.load()
            image.thumbnail((long_side, long_side), PIL.Image.Resampling.BOX)
        image.load()
        image = PIL.ImageOps.exif_transpose(image) if exif else image
        return to_rgb(image, background)
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError, IndexError, TypeError) as error:
        raise CaptureError(f"{name or path}: the image is damaged or cut short ({error}).") from error


def load_mask(path: str | os.PathLike, like: str | os.PathLike | None = None) -> PIL.Image.Image:
    """
    Opens a mask as 8-bit grey. Masks carry no EXIF rotation: that of the photo `like` is applied, if one is named.

    Raises [`CaptureError`] as [`load_image`] does.

    Args:
        path (`str` or `os.PathLike`): the mask.
        like (`str` or `os.PathLike`, *optional*): the photo that it belongs to.
    """
    mask, turns = load_image(path, exif=False).convert("L"), 0
    if like is not None:
        with open_image(like) as photo:
            turns = upright_turns(photo)
    return mask.rotate(90 * turns, expand=True) if turns else mask


def open_image(path: str | os.PathLike | BinaryIO, name: str | None = None) -> PIL.Image.Image:
    """Reads the header of an image, not its pixels; raises [`CaptureError`] as [`load_image`] does.

    Args:
        path (`str` or `os.PathLike` or `BinaryIO`): file, or a stream of its bytes.
        name (`str`, *optional*): what errors call it; the path when not given.
    """
    name = name or path
    if str(name).lower().endswith(HEIF_SUFFIXES):
        _register_heif(name)
    try:
        image = PIL.Image.open(path)
    except FileNotFoundError as error:
        raise CaptureError(f"{name}: no such image.") from error
    except PIL.Image.DecompressionBombError as error:
        raise CaptureError(f"{name}: the image is larger than {MAX_IMAGE_PIXELS} pixels.") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError) as error:
        raise CaptureError(unread_photo(name) or f"{name}: not an image that can be read ({error}).") from error
    if _is_panorama(image):
        image.close()
        raise CaptureError(
            f"{name}: a panorama (its GPano data say so), which no camera without a lens model has: cut pinhole views"
            " out of it first."
        )
    if image.width * image.height > MAX_IMAGE_PIXELS:
        image.close()
        raise CaptureError(
            f"{name}: {image.width} x {image.height} pixels are more than the {MAX_IMAGE_PIXELS} that are allowed."
        )
    return image


def _register_heif(name) -> None:
    """Teaches Pillow what phones write."""
    try:
        import pillow_heif
    except ImportError as error:
        raise CaptureError(
            f"{name}: HEIC photos need pillow-heif: pip install 'kaleido-diffusers[captures]', or save them as JPEG."
        ) from error
    pillow_heif.register_heif_opener()


def _is_panorama(image: PIL.Image.Image) -> bool:
    """Whether the XMP data say that the picture is a sphere or a cylinder."""
    written = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    return bool(_GPANO.search(written.encode() if isinstance(written, str) else written))


def unread_photo(name: object) -> str | None:
    """What to say of a photo that cameras write and Pillow does not read, by its suffix; `None` for other files.

    Args:
        name (`object`): path or name of the file.
    """
    suffix = os.path.splitext(str(name))[1].lower()
    if suffix not in UNREAD_SUFFIXES:
        return None
    return f"{name}: {suffix[1:].upper()} photos are not read: convert them to JPEG or PNG, upright, first."


def upright_turns(image: PIL.Image.Image) -> int:
    """Quarter turns, counter-clockwise, that the EXIF orientation asks for. Raises [`CaptureError`] for a mirrored
    photo: no camera sees that.

    Args:
        image (`PIL.Image.Image`): the photo.
    """
    if image.format == "PNG" and "exif" not in image.info:
        return 0  # getexif() would decode the whole image, to look behind the pixels
    orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    if image.format == "TIFF" and orientation != 1:
        raise CaptureError(f"{image.filename}: a TIFF photo with a rotation is not supported: save it upright.")
    if orientation in (2, 4, 5, 7):
        raise CaptureError(f"{image.filename}: the EXIF orientation {orientation} mirrors the photo.")
    return {3: 2, 6: 3, 8: 1}.get(orientation, 0)


def to_rgb(image: PIL.Image.Image, background: tuple[int, int, int] = (255, 255, 255)) -> PIL.Image.Image:
    """8-bit RGB of any PIL image; transparency is laid over `background`.

    Args:
        image (`PIL.Image.Image`): of any mode.
        background (`tuple[int, int, int]`, defaults to `(255, 255, 255)`): RGB that transparency is laid over.
    """
    image = _to_srgb(image)
    if image.mode.startswith("I;16") or image.mode == "I":  # 16-bit grey: PIL's own conversion clips it
        values = np.asarray(image).astype(np.int64)
        values = values if values.size and values.max() <= 255 and image.mode == "I" else values / 257
        image = PIL.Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point images are not supported: their range is not known")
    if "A" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = PIL.Image.new("RGBA", image.size, (*background, 255))
        image = PIL.Image.alpha_composite(canvas, image)
    return image.convert("RGB")


def _to_srgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image in sRGB, where it carries a profile of another colour space (phones write Display P3)."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "P", "L", "LA", "CMYK"):
        return image
    alpha = None
    if image.mode in ("RGBA", "LA", "P"):
        alpha = image.convert("RGBA").getchannel("A") if "A" in image.mode or "transparency" in image.info else None
        image = image.convert("L" if image.mode == "LA" else "RGB")
    try:
        source = PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = PIL.ImageCms.profileToProfile(image, source, _SRGB, outputMode="RGB")
    except (PIL.ImageCms.PyCMSError, OSError, ValueError) as error:
        warnings.warn(f"A colour profile cannot be applied ({error}): colours may be off.", stacklevel=2)
        converted = image.convert("RGB")
    if alpha is not None:
        converted.putalpha(alpha)
    converted.info.pop("icc_profile", None)
    return converted


def as_image_tensor(
    image: Any, name: str = "images", background: tuple[int, int, int] = (255, 255, 255), exif: bool = True
) -> torch.Tensor:
    """
    One image as a float32 tensor `[3, H, W]` in [0, 1], upright unless `exif` is false.

    Takes a path, a PIL image, an array `[H, W, 3]` or `[H, W]`, or a tensor `[3, H, W]` or `[1, H, W]`; arrays and
    tensors are uint8, or floating point in [0, 1]. Raises `ValueError` otherwise.

    Args:
        image (`Any`): path, PIL image, array or tensor.
        name (`str`, defaults to `"images"`): what errors call it.
        background (`tuple[int, int, int]`, defaults to `(255, 255, 255)`): RGB that transparency is laid over.
        exif (`bool`, defaults to `True`): whether the EXIF rotation is applied.
    """
    if isinstance(image, (str, os.PathLike)):
        image = load_image(image, background, exif)
    elif isinstance(image, PIL.Image.Image):
        try:
            image = to_rgb(PIL.ImageOps.exif_transpose(image) if exif else image, background)
        except OSError as error:
            raise CaptureError(f"`{name}`: the image is damaged or cut short ({error}).") from error
    if isinstance(image, PIL.Image.Image):
        array = torch.from_numpy(np.array(image))
        return array.permute(2, 0, 1).to(torch.float32) / 255
    if isinstance(image, np.ndarray):
        array = torch.from_numpy(np.ascontiguousarray(image))
        tensor = array.unsqueeze(0) if array.ndim == 2 else array.movedim(-1, 0)
    elif torch.is_tensor(image):
        tensor = image
    else:
        raise ValueError(
            f"`{name}` must hold PIL images, paths, numpy arrays or torch tensors, got {type(image).__name__}."
        )
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3):
        raise ValueError(
            f"`{name}` must hold arrays [H, W, 3] or tensors [3, H, W], got shape {list(image.shape)}"
            f" ({type(image).__name__})."
        )
    if tensor.dtype == torch.uint8:
        tensor = tensor.to(torch.float32) / 255
    if not tensor.is_floating_point():
        raise ValueError(f"`{name}` must be uint8 or floating point, got {tensor.dtype}.")
    tensor = tensor.to(torch.float32)
    low, high = tensor.min().item(), tensor.max().item()
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(f"`{name}` must lie in [0, 1] (or be uint8), got values from {low:.4g} to {high:.4g}.")
    return tensor.clamp(0, 1).expand(3, -1, -1)


def tensor_to_image(tensor: torch.Tensor) -> PIL.Image.Image:
    """A tensor `[3, H, W]` in [0, 1] as a PIL image.

    Args:
        tensor (`torch.Tensor`): `[3, H, W]` in [0, 1].
    """
    return PIL.Image.fromarray(to_uint8(tensor.detach()).permute(1, 2, 0).cpu().numpy())


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Images in [0, 1] as the nearest of 256 levels; what lies outside is cut off.

    Args:
        images (`torch.Tensor`): of any shape, floating point.
    """
    return (images.float().clamp(0, 1) * 255).round().to(torch.uint8)


def save_image(image: PIL.Image.Image, path: str | os.PathLike, **options) -> Path:
    """
    Saves an image, whole or not at all; what was there before stays till then.

    Args:
        image (`PIL.Image.Image`): to save.
        path (`str` or `Path`): its suffix says the format.
        options: of `PIL.Image.Image.save`.

    Returns:
        `Path`: `path`.
    """
    path = Path(path)
    with written_whole(path) as part:
        image.save(part, PIL.Image.registered_extensions()[path.suffix.lower()], **options)
    return path


def crop_and_resize(
    images: torch.Tensor,  # [..., C, H, W]
    cameras: Cameras | None,
    box: tuple[int, int, int, int],
    size: tuple[int, int],
) -> tuple[torch.Tensor, Cameras | None]:
    """
    Cuts `box` (top, left, height, width, in whole pixels) out of images and resizes it to `size` (height, width), and
    moves the cameras along. A box that reaches outside is padded with black. Bicubic, anti-aliased, clamped to the
    range of the input.

    Args:
        images (`torch.Tensor`): `[V, 3, H, W]`.
        cameras ([`Cameras`], *optional*): theirs, `[V]`.
        box (`tuple[int, int, int, int]`): (top, left, height, width) in whole pixels.
        size (`tuple[int, int]`): (height, width) of the result.
    """
    top, left, height, width = box
    full_height, full_width = images.shape[-2:]
    if height < 1 or width < 1 or min(size) < 1:
        raise ValueError(f"`box` and `size` must not be empty, got box {box} and size {size}.")
    padding = (-left, left + width - full_width, -top, top + height - full_height)
    images = F.pad(images, padding)  # negative padding crops
    if tuple(size) != (height, width):
        low, high = images.min(), images.max()
        flat = images.reshape(-1, *images.shape[-3:])
        flat = F.interpolate(flat, size=tuple(size), mode="bicubic", antialias=True, align_corners=False)
        images = flat.reshape(*images.shape[:-2], *size).clamp(low, high)
    if cameras is not None:
        cameras = cameras.cropped(top, left, height, width).resized(*size)
    return images, cameras


def fit_image(image: PIL.Image.Image, height: int, width: int) -> torch.Tensor:
    """
    What [`as_image_tensor`] and [`fit_views`] make of a photo, `[3, height, width]` in [0, 1]. Photos of more than
    `REDUCED_PIXELS` are first brought to four times the size by means, in 8 bits: as floating point
    they would take gigabytes.

    Args:
        image (`PIL.Image.Image`): the photo.
        height (`int`): rows wanted.
        width (`int`): columns wanted.
    """
    top, left, rows, columns = center_box(image.height, image.width, height, width)
    if image.width * image.height > REDUCED_PIXELS and min(rows / height, columns / width) > 8:
        box = (left, top, left + columns, top + rows)
        image = to_rgb(image).resize((4 * width, 4 * height), PIL.Image.Resampling.BOX, box)
    return fit_views(as_image_tensor(image), None, height, width)[0]


def fit_views(
    images: torch.Tensor,  # [..., C, H, W]
    cameras: Cameras | None,
    height: int,
    width: int,
) -> tuple[torch.Tensor, Cameras | None]:
    """The largest centred crop of the aspect `width` / `height`, resized to it, with the cameras.

    Args:
        images (`torch.Tensor`): `[V, 3, H, W]`.
        cameras ([`Cameras`], *optional*): theirs, `[V]`.
        height (`int`): of the result, in pixels.
        width (`int`): of the result, in pixels.
    """
    box = center_box(images.shape[-2], images.shape[-1], height, width)
    return crop_and_resize(images, cameras, box, (height, width))


def fit_cameras(cameras: Cameras, height: int, width: int) -> Cameras:
    """What [`fit_views`] does to the cameras, without images; image sizes may differ.

    Args:
        cameras ([`Cameras`]): `[V]`.
        height (`int`): of the result, in pixels.
        width (`int`): of the result, in pixels.
    """
    if not cameras.shape:
        full_height, full_width = cameras.image_sizes.tolist()
        return cameras.cropped(*center_box(full_height, full_width, height, width)).resized(height, width)
    return Cameras.stack([fit_cameras(camera, height, width) for camera in cameras])


def center_box(full_height: int, full_width: int, height: int, width: int) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the largest centred box with the aspect `width` / `height`, in whole pixels.

    Args:
        full_height (`int`): of the image, in pixels.
        full_width (`int`): of the image, in pixels.
        height (`int`): of the aspect.
        width (`int`): of the aspect.
    """
    scale = min(full_height / height, full_width / width)
    box_height, box_width = max(1, round(height * scale)), max(1, round(width * scale))
    return (full_height - box_height) // 2, (full_width - box_width) // 2, box_height, box_width


def rotate_views(
    images: torch.Tensor,  # [..., C, H, W]
    cameras: Cameras | None,
    quarter_turns: int,
) -> tuple[torch.Tensor, Cameras | None]:
    """Turns images counter-clockwise by quarter turns, and rolls the cameras along.

    Args:
        images (`torch.Tensor`): `[V, 3, H, W]`.
        cameras ([`Cameras`], *optional*): theirs, `[V]`.
        quarter_turns (`int`): how many.
    """
    return torch.rot90(images, quarter_turns, (-2, -1)), cameras and cameras.rolled(quarter_turns)
