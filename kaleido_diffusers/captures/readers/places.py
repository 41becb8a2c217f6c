"""Where the files of a capture lie: inside its folder, by the names that its lists have, or nearly."""

import os
import re
import unicodedata
import warnings
from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path

from ..images import CaptureError


__all__ = [
    "IMAGE_SUFFIXES",
    "as_on_disk",
    "clear_caches",
    "image_files",
    "inside",
    "is_file",
    "mask_of",
    "natural_order",
    "photo_in",
    "printable",
    "warn_of_unlisted_photos",
    "warn_of_unused_masks",
]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif")

_CACHED_REPOSITORY = re.compile(r"(datasets|models|spaces)--.+")


def natural_order(name: str) -> tuple:
    """What to sort names by so that `frame10` comes after `frame9`; the text decides between `01` and `1`.

    Args:
        name (`str`): of a file.
    """
    parts = []
    for part in re.findall("[0-9]+|[^0-9]+", name):
        digits = part.lstrip("0") if part[0] in "0123456789" else None
        parts.append((1, 0, part) if digits is None else (0, len(digits), digits))
    return parts, name


def inside(root: Path, name: str, where: str) -> Path:
    """The path `root` / `name`; raises [`CaptureError`] if it is none, or leads out of `root`, by links too. In a
    snapshot of the Hub's cache, links to the files of the same repository are inside.

    Args:
        root (`Path`): folder of the capture.
        name (`str`): what a file says, relative to the folder.
        where (`str`): what errors call it.
    """
    path = os.path.join(root, name.replace("\\", "/"))
    parent, base = os.path.split(path)
    try:
        is_link = os.path.islink(path)
        resolved = os.path.realpath(path) if is_link else os.path.join(_resolved(parent), base)
        is_inside = base not in ("", ".", "..") and resolved.startswith(os.path.join(_resolved(str(root)), ""))
        if not is_inside and is_link:  # a file of the Hub's cache, its own folder inside
            is_inside = os.path.dirname(resolved) == _blobs(str(root)) and os.path.join(
                _resolved(parent), ""
            ).startswith(os.path.join(_resolved(str(root)), ""))
    except (ValueError, OSError) as error:
        raise CaptureError(f"{where}: {printable(name)!r} is not a path ({error}).") from error
    if not is_inside:
        raise CaptureError(
            f"{where}: the path {printable(name)!r} leaves the folder of the capture. Pass `images` (--images), the"
            " folder of the photos, if they lie elsewhere; a link must be replaced by its file."
        )
    return Path(path)


@lru_cache(maxsize=4096)
def _resolved(folder: str) -> str:
    return os.path.realpath(folder)


@lru_cache(maxsize=64)
def _blobs(root: str) -> str | None:
    """The folder of the files that a snapshot in the Hub's cache links to: `<repository>/blobs` for a root in
    `<repository>/snapshots/<revision>`."""
    places = Path(os.path.abspath(root))
    for place in (places, *places.parents):
        repository = place.parent.parent
        if place.parent.name == "snapshots" and _CACHED_REPOSITORY.fullmatch(repository.name):
            blobs = os.path.join(os.path.realpath(repository), "blobs")
            return blobs if os.path.realpath(blobs) == blobs else None
    return None


@lru_cache(maxsize=256)
def _entries(folder: str) -> dict[str, list[str]]:
    """Names of a folder's entries by what they are without case and composition of accents."""
    entries: dict[str, list[str]] = {}
    try:
        for name in os.listdir(folder):
            entries.setdefault(_folded(name), []).append(name)
    except OSError:
        pass
    return entries


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def clear_caches() -> None:
    """Forgets where links led and what folders held: that may have changed by now."""
    for cached in (_resolved, _blobs, _entries):
        cached.cache_clear()


def is_file(path: Path) -> bool:
    """Whether there is such a file; false for what cannot be a path.

    Args:
        path (`Path`): to look for.
    """
    try:
        return path.is_file()
    except (ValueError, OSError):
        return False


def as_on_disk(root: Path, path: Path) -> Path:
    """The file that `path` names but for case and the composition of accents, as tools on Windows and macOS leave
    them; `path` itself where it is there, or where not exactly one fits.

    Args:
        root (`Path`): folder of the capture, whose own name is taken as it is.
        path (`Path`): a file in it.
    """
    if is_file(path):
        return path
    place = str(root)
    try:
        parts = path.relative_to(root).parts
    except ValueError:
        return path
    for part in parts:
        if part == "..":
            return path
        names = _entries(place).get(_folded(part), [])
        name = part if part in names else names[0] if len(names) == 1 else None
        if name is None:
            return path
        place = os.path.join(place, name)
    return Path(place) if is_file(Path(place)) else path


def photo_in(images: Path, name: str, names: Collection[str], suffixes: Sequence[str] = ("",)) -> Path:
    """The photo `name` in the folder that the user named: by as long an end of its path as is there. Where photos lie
    in several folders and `images` is one of them, those of the others are not taken from it.

    Args:
        images (`Path`): folder of the photos.
        name (`str`): path of the photo as a file lists it, of another computer maybe.
        names (`Collection[str]`): folders that photos of the capture lie in, when there are several.
        suffixes (`Sequence[str]`): what may have to be added to the name.
    """
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    whole = images.joinpath(*parts) if parts else images
    tails = []
    for start in range(len(parts)):
        is_another = start and images.name in names and parts[start - 1] != images.name
        if not is_another:
            tails += [images.joinpath(*parts[start:-1], parts[-1] + suffix) for suffix in suffixes]
    found = next((path for path in tails if is_file(path)), None)
    return found or next((there for path in tails if is_file(there := as_on_disk(images, path))), whole)


def image_files(folder: Path) -> list[Path]:
    """The images of a folder, by the text of their names; what begins with a dot is none.

    Args:
        folder (`Path`): where they lie.
    """
    files = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in files if not path.name.startswith(".") and path.is_file())


def mask_of(folders: Sequence[Path], name: str) -> Path | None:
    """The mask of a photo in the first of `folders` that has one: called as the photo, `.png` after it, or with
    another suffix.

    Args:
        folders (`Sequence[Path]`): where masks may lie.
        name (`str`): of the photo, relative to the folder of the photos.
    """
    stem = os.path.splitext(name)[0]
    for folder in folders:
        for candidate in (f"{name}.png", *(stem + suffix for suffix in IMAGE_SUFFIXES)):
            path = as_on_disk(folder, folder / candidate)
            if is_file(path):
                return path
    return None


def warn_of_unused_masks(where: Path, folders: Sequence[Path], masks: Sequence[Path | None]) -> None:
    """Warns of folders with masks of which none fits a photo.

    Args:
        where (`Path`): what the warning calls the capture.
        folders (`Sequence[Path]`): where masks were looked for.
        masks (`Sequence[Path | None]`): what was found for each photo.
    """
    if any(masks):
        return
    for folder in folders:
        count = sum(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.rglob("[!.]*")) if folder.is_dir() else 0
        if count:
            warnings.warn(
                f"{where}: none of the {count} masks in {folder} is called as a photo (NAME.jpg.png or NAME.png):"
                " none are used.",
                stacklevel=4,
            )
            return


def warn_of_unlisted_photos(where: Path, root: Path, photos: Collection[Path]) -> None:
    """Warns of photos beside those of a capture that it does not list, as COLMAP leaves out those it cannot place.

    Args:
        where (`Path`): what the warning calls the capture.
        root (`Path`): the folder of the photos.
        photos (`Collection[Path]`): those that are listed.
    """
    known = {_folded(str(path)) for path in photos}
    found = (path for folder in {path.parent for path in photos} if folder.is_dir() for path in image_files(folder))
    left = sorted(path.relative_to(root).as_posix() for path in found if _folded(str(path)) not in known)
    if left:
        names = ", ".join(printable(name) for name in left[:5]) + ", ..." * (len(left) > 5)
        which = "1 photo" if len(left) == 1 else f"{len(left)} photos"
        warnings.warn(f"{where}: {which} in {root} without a camera: left out ({names}).", stacklevel=4)


def printable(text: str) -> str:
    """Names of files need not be UTF-8; what is printed must be.

    Args:
        text (`str`): any name.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
