"""From what visitors upload to a small capture that the app keeps."""

import shutil
import stat
import threading
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import torch

from ..bundled import sample_capture
from ..captures.images import CaptureError, load_image, open_image, to_uint8
from ..captures.pictures import points_near
from ..captures.posing.reconstruction import find_photos
from ..captures.readers import READERS, load_scene
from ..captures.readers.assembly import IMAGE_SUFFIXES, printable
from ..captures.readers.single_photo import photo_scene
from ..captures.scene import Scene
from ..geometry.cameras import Cameras
from ..geometry.choosing import split_views
from ..geometry.views import ViewGeometry, Views
from ..pipelines.inputs import DEFAULT_FOV
from .limits import Limits, Progress, Stopped
from .posing import pose_photos


__all__ = ["Capture", "load_sample", "load_uploads", "small_capture", "unpack"]

UPLOADED = (*IMAGE_SUFFIXES, ".zip")
_PACKED = {*IMAGE_SUFFIXES, ".json", ".txt", ".bin", ".npy"}  # what a capture is made of; other files stay packed
_ENTRIES = 20  # most entries of a zip for each photo that is allowed
_POINTS = 4000  # sparse points that are kept to be drawn
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Capture:
    """
    What the app keeps of a capture: photos as small as the model takes them.

    Attributes:
        name (`str`): what to call it.
        views (`Views` of shape `[V]`): the photos, uint8, cropped square, and where they were taken.
        held_out (`list[int]`): photos to compare with, which are no references then.
        points (`torch.Tensor` of shape `[P, 3]`, *optional*): sparse points.
        notes (`list[str]`): what a visitor should know, a sentence each.
    """

    name: str
    views: Views
    held_out: list[int]
    points: torch.Tensor | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.views)

    @property
    def pixels(self) -> torch.Tensor:
        """The photos, `[V, 3, size, size]`, uint8."""
        return self.views.pixels

    @property
    def cameras(self) -> Cameras:
        """Cameras of the photos."""
        return self.views.cameras


def small_capture(scene: Scene, size: int, notes: Sequence[str] = ()) -> Capture:
    """A scene as the app keeps it, its photos `size` pixels wide and high.

    Args:
        scene ([`Scene`]): the capture.
        size (`int`): pixels a side.
        notes (`Sequence[str]`, defaults to `()`): what the visitor should know of it.
    """
    fitted, cameras = scene.fitted(range(len(scene)), size, size)
    views = [split_views(len(scene), scene.splits, split, order=scene.text_order) for split in ("test", "train")]
    points = None
    if scene.points is not None and len(scene.points):
        points = points_near(scene.points[:: -(-len(scene.points) // _POINTS)].to(cameras.centers), cameras.centers)
    return Capture(
        name=scene.name,
        views=Views.seen(to_uint8(fitted), ViewGeometry.of(cameras)),
        held_out=views[0] if all(views) else [],
        points=points,
        notes=tuple(notes),
    )


def load_sample(size: int) -> Capture:
    """The capture that ships with the package.

    Args:
        size (`int`): pixels a side.
    """
    return replace(small_capture(load_scene(sample_capture()), size), name="Sample capture")


def load_uploads(
    files: Sequence[str | Path], folder: Path, size: int, limits: Limits, cancelled: threading.Event
) -> Iterator[Progress]:
    """
    Makes a capture of what a visitor uploaded; the last thing yielded has it for its `news`.

    Args:
        files (`Sequence` of paths): photos, or one zip of photos or of a capture.
        folder (`Path`): an empty folder to work in, for the caller to remove.
        size (`int`): pixels a side of the photos that are kept.
        limits (`Limits`): what is allowed.
        cancelled (`threading.Event`): ends the work when it is set.

    Raises `ValueError` with a sentence for the visitor.
    """
    try:
        yield from _load([Path(file) for file in files], folder, size, limits, cancelled)
    except (ValueError, OSError) as error:
        raise ValueError(_without_folders(str(error), folder)) from error


def _load(files: list[Path], folder: Path, size: int, limits: Limits, cancelled) -> Iterator[Progress]:
    yield Progress("Looking at the files")
    if cancelled.is_set():
        raise Stopped
    given = folder / "given"
    if len(files) == 1 and files[0].suffix.lower() == ".zip":
        unpack(files[0], given, limits)
        root = _capture_folder(given)
        if root is not None:
            _check_photos([path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES], limits)
            yield Progress("Reading the capture")
            scene = load_scene(root, "skip")
            _check_count(len(scene), limits)
            name = files[0].stem if root == given else root.name
            capture = replace(small_capture(scene, size), name=printable(name))
            yield Progress("The capture is read", news=capture)
            return
        photos = [path for path in sorted(given.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES]
    else:
        photos = files
    plain = _gather(photos, folder / "photos")
    _check_count(len(plain), limits)
    _check_photos(plain, limits)
    for number, photo in enumerate(plain):
        yield Progress(f"Looking at photo {number + 1} of {len(plain)}", number, len(plain))
        if cancelled.is_set():
            raise Stopped
        load_image(photo)
    if len(plain) == 1:
        yield Progress("The photo is read", news=_one_photo(plain[0], size))
        return
    if len(plain) == 2:
        raise ValueError(
            "Two photos are too few to find out where they were taken from: give at least three that overlap, or one."
        )
    notes = yield from pose_photos(plain[0].parent, folder / "posed", limits.pose_minutes * 60, cancelled)
    yield Progress("Reading the cameras")
    capture = replace(small_capture(load_scene(folder / "posed"), size, notes), name="Your photos")
    yield Progress("The cameras are found", news=capture)


def unpack(file: Path, folder: Path, limits: Limits) -> None:
    """Unpacks what a capture is made of, and nothing else; raises `ValueError` for names that lead out of the folder,
    links, and zips that hold more than is allowed, whatever they claim.

    Args:
        file (`Path`): the zip.
        folder (`Path`): where its content goes.
        limits (`Limits`): what is allowed.
    """
    budget = limits.upload_mb * 1_000_000
    try:
        with zipfile.ZipFile(file) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            if len(entries) > _ENTRIES * limits.photos:
                raise ValueError(f"The zip holds {len(entries)} files: at most {_ENTRIES * limits.photos} are taken.")
            if sum(entry.file_size for entry in entries) > budget:
                raise ValueError(f"The zip unpacks to more than {limits.upload_mb} MB.")
            for entry in entries:
                target = _checked_name(entry, folder)
                if target is None:
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as source, open(target, "xb") as copy:
                    while block := source.read(_CHUNK):
                        budget -= len(block)
                        if budget < 0:
                            raise ValueError(f"The zip unpacks to more than {limits.upload_mb} MB.")
                        copy.write(block)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, FileExistsError, RuntimeError) as error:
        raise ValueError("The zip cannot be read: it is damaged, encrypted, or holds a file twice.") from error
    folder.mkdir(parents=True, exist_ok=True)


def _checked_name(entry: zipfile.ZipInfo, folder: Path) -> Path | None:
    """Where an entry belongs; none for what is no part of a capture."""
    name = PurePosixPath(entry.filename.replace("\\", "/"))
    if name.is_absolute() or ".." in name.parts or ":" in entry.filename or "\0" in entry.filename:
        raise ValueError(f"The zip holds a name that leads out of its folder: {printable(entry.filename)}.")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise ValueError(f"The zip holds a link, which is not followed: {printable(entry.filename)}.")
    is_hidden = any(part.startswith((".", "__MACOSX")) for part in name.parts)
    return None if is_hidden or name.suffix.lower() not in _PACKED else folder / name


def _capture_folder(folder: Path) -> Path | None:
    """Where the capture begins in what was unpacked, which is often one folder deep."""
    for _ in range(3):
        if any(reader.find(folder) is not None for reader in READERS):
            return folder
        inside = list(folder.iterdir())
        if len(inside) != 1 or not inside[0].is_dir():
            return None
        folder = inside[0]
    return None


def _gather(files: list[Path], folder: Path) -> list[Path]:
    """Copies photos into one folder, under names that differ; returns them in their order."""
    others = [path.name for path in files if path.suffix.lower() not in IMAGE_SUFFIXES]
    if others:
        raise ValueError(
            f"{printable(others[0])} is not a photo ({', '.join(IMAGE_SUFFIXES)}): give photos, or one zip of a"
            " capture."
        )
    if not files:
        raise ValueError(f"There are no photos ({', '.join(IMAGE_SUFFIXES)}) and no capture in a known format.")
    folder.mkdir(parents=True)
    for number, path in enumerate(files):
        name = path.name if not (folder / path.name).exists() else f"{path.stem}_{number}{path.suffix}"
        shutil.copyfile(path, folder / name)
    return find_photos(folder)


def _check_count(count: int, limits: Limits) -> None:
    if count > limits.photos:
        raise ValueError(f"These are {count} photos: at most {limits.photos} are taken. Choose some of them.")


def _check_photos(photos: Sequence[Path], limits: Limits) -> None:
    """Refuses photos that are too large, from their headers."""
    for photo in photos:
        with open_image(photo) as header:
            width, height = header.size
        if width * height > limits.megapixels * 1e6:
            raise ValueError(
                f"{printable(photo.name)} has {width} x {height} pixels: at most {limits.megapixels:g} megapixels are"
                " taken. Make it smaller first."
            )


def _one_photo(photo: Path, size: int) -> Capture:
    """A photo alone, with the lens that its EXIF data tell, or else a usual one."""
    try:
        scene, notes = photo_scene(photo), []
    except CaptureError:
        scene = photo_scene(photo, DEFAULT_FOV)
        notes = [f"The photo does not tell its lens: a field of view of {DEFAULT_FOV:g} degrees is assumed."]
    return small_capture(scene, size, notes)


def _without_folders(message: str, folder: Path) -> str:
    """A message that names files as the visitor knows them."""
    for place in (folder / "given", folder / "photos", folder / "posed" / "images", folder):
        message = message.replace(f"{place}/", "").replace(str(place), "the upload")
    return message
