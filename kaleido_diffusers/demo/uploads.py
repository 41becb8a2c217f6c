"""From what visitors upload to a small capture that the app keeps."""

import shutil
import stat
import threading
import warnings
import zipfile
import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath

import PIL.ExifTags

from ..captures.images import CaptureError, load_image, open_image, save_image, unread_photo
from ..captures.readers import READERS, load_scene
from ..captures.readers.assembly import IMAGE_SUFFIXES, printable
from ..captures.readers.single_photo import UnknownLensError, photo_scene
from ..pipelines.inputs import DEFAULT_FOV
from .captures import Capture, small_capture
from .limits import Limits, Progress, Stopped
from .posing import pose_photos


__all__ = ["UPLOADED", "load_uploads", "unpack"]

_VIDEOS = (".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi")
UPLOADED = (*IMAGE_SUFFIXES, *_VIDEOS, ".zip")
_PACKED = {*IMAGE_SUFFIXES, ".json", ".txt", ".bin", ".npy", ".ply"}  # of a capture; other files stay packed
_ENTRIES = 20  # most entries of a zip for each photo that is allowed
_LONG_SIDE = 1600  # pixels of the photos that are kept: as many as cameras are found with
_FRAMES = 40  # most frames that are taken of a video
_CHUNK = 1 << 20
_IS_UTF8 = 0x800  # flag of a zip's entry
_NOTHING = f"There are no photos ({', '.join(IMAGE_SUFFIXES)}) and no capture in a known format."
_ONE_LISTENS = threading.Lock()  # warnings are the process's: one visitor's capture is read at a time


def load_uploads(
    files: Sequence[str | Path], folder: Path, size: int, limits: Limits, cancelled: threading.Event
) -> Iterator[Progress]:
    """
    Makes a capture of what a visitor uploaded; the last thing yielded has it for its `news`.

    Args:
        files (`Sequence` of paths): photos, a video, or one zip of photos or of a capture. Photos that cannot be read
            are left out, and named in the notes of the capture.
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
            yield Progress("Reading the capture")
            with _told(folder) as notes:
                scene = load_scene(root, "skip")
            _check_count(len(scene), limits)
            name = files[0].stem if root == given else root.name
            capture = replace(small_capture(scene, size, notes), name=printable(name))
            yield Progress("The capture is read", news=capture)
            return
        names, files = _names(files[0]), sorted(p for p in given.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise ValueError(next((told for name in names if (told := unread_photo(name))), _NOTHING))
    if len(files) == 1 and files[0].suffix.lower() in _VIDEOS:
        video = folder / files[0].name
        shutil.copyfile(files[0], video)
        yield from _posed(video, "Your video", folder, [], size, limits, cancelled)
        return
    photos, notes = yield from _gather(files, folder / "photos", limits, cancelled)
    if len(photos) == 1:
        yield Progress("The photo is read", news=_one_photo(photos[0], size, notes))
        return
    if len(photos) == 2:
        few = (
            "Two photos are too few to find out where they were taken from: give at least three that overlap, or one."
        )
        raise ValueError(" ".join([few, *notes]))
    yield from _posed(photos[0].parent, "Your photos", folder, notes, size, limits, cancelled)


def _posed(
    source: Path, name: str, folder: Path, notes: list[str], size: int, limits: Limits, cancelled
) -> Iterator[Progress]:
    """The capture of a folder of photos, or of a video, whose cameras are found first."""
    frames = min(_FRAMES, limits.photos)
    said = yield from pose_photos(source, folder / "posed", limits.pose_minutes * 60, cancelled, frames)
    yield Progress("Reading the cameras")
    notes = [_without_folders(note, folder) for note in (*notes, *said)]
    capture = replace(small_capture(load_scene(folder / "posed"), size, notes), name=name)
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
    except (zipfile.BadZipFile, NotImplementedError, EOFError, FileExistsError, RuntimeError, zlib.error) as error:
        raise ValueError("The zip cannot be read: it is damaged, encrypted, or holds a file twice.") from error
    folder.mkdir(parents=True, exist_ok=True)


def _names(file: Path) -> list[str]:
    """Names of what a zip holds."""
    with zipfile.ZipFile(file) as archive:
        return [printable(_readable(entry)) for entry in archive.infolist() if not entry.is_dir()]


@contextmanager
def _told(folder: Path) -> Iterator[list[str]]:
    """Collects what is said of files in a folder while the block runs, for the visitor to read."""
    notes: list[str] = []
    with _ONE_LISTENS, warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        yield notes
    texts = (str(warning.message) for warning in heard)
    notes += [_without_folders(text, folder) for text in texts if str(folder) in text]  # those of others are not ours


def _readable(entry: zipfile.ZipInfo) -> str:
    """The name of an entry. Zips that do not say so hold UTF-8 as well, or what Windows has in China (GBK)."""
    if entry.flag_bits & _IS_UTF8 or entry.filename.isascii():
        return entry.filename
    raw = entry.filename.encode("cp437")
    for encoding in ("utf-8", "gb18030"):
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    return entry.filename


def _checked_name(entry: zipfile.ZipInfo, folder: Path) -> Path | None:
    """Where an entry belongs; none for what is no part of a capture."""
    written = _readable(entry).replace("\\", "/")
    name = PurePosixPath(written)
    if name.is_absolute() or ".." in name.parts or ":" in written or "\0" in written:
        raise ValueError(f"The zip holds a name that leads out of its folder: {printable(written)}.")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise ValueError(f"The zip holds a link, which is not followed: {printable(written)}.")
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


def _gather(files: list[Path], folder: Path, limits: Limits, cancelled) -> Generator[Progress, None, tuple]:
    """Copies photos into one folder, under names that differ, and reduces the large ones. Returns them in their order,
    and a sentence for each file that was left out; raises `ValueError` where none is left."""
    if not files:
        raise ValueError(_NOTHING)
    _check_count(len(files), limits)
    folder.mkdir(parents=True)
    photos, notes = [], []
    for number, path in enumerate(files):
        yield Progress(f"Looking at photo {number + 1} of {len(files)}", number, len(files))
        if cancelled.is_set():
            raise Stopped
        try:
            photos.append(_reduced(path, folder, number, limits))
        except CaptureError as error:
            notes.append(f"Left out: {error}")
    if not photos:
        raise ValueError(" ".join(notes))
    return photos, notes


def _reduced(file: Path, folder: Path, number: int, limits: Limits) -> Path:
    """A copy of a photo, at most `_LONG_SIDE` pixels wide and high, upright, and with what EXIF tells of its lens."""
    name = printable(file.name)
    if file.suffix.lower() in (*_VIDEOS, ".zip"):
        raise CaptureError(f"{name} is no photo: give a video or a zip alone.")
    if (told := unread_photo(name)) is not None:
        raise CaptureError(told)
    if file.suffix.lower() not in IMAGE_SUFFIXES:
        raise CaptureError(f"{name} is not a photo ({', '.join(IMAGE_SUFFIXES)}).")
    with open_image(file, name) as header:
        (width, height), exif = header.size, header.getexif()
        exif.get_ifd(PIL.ExifTags.IFD.Exif)  # read now, or it would not be saved
        is_ready = header.format == "JPEG" and header.mode == "RGB" and max(width, height) <= _LONG_SIDE
    if width * height > limits.megapixels * 1e6:
        most = f"at most {limits.megapixels:g} megapixels are taken"
        raise CaptureError(f"{name} has {width} x {height} pixels: {most}.")
    image = load_image(file, name=name, long_side=_LONG_SIDE)
    is_upright = exif.pop(PIL.ExifTags.Base.Orientation, 1) == 1
    copy = folder / f"{file.stem}.jpg"
    if copy.exists():
        copy = folder / f"{file.stem}_{number}.jpg"
    if is_ready and is_upright:  # compressed once more it would lose what cameras are found by
        return Path(shutil.copyfile(file, copy))
    return save_image(image, copy, exif=exif, quality=95, subsampling=0)


def _check_count(count: int, limits: Limits) -> None:
    if count > limits.photos:
        raise ValueError(f"These are {count} photos: at most {limits.photos} are taken. Choose some of them.")


def _one_photo(photo: Path, size: int, notes: list[str]) -> Capture:
    """A photo alone, with the lens that its EXIF data tell, or else a usual one."""
    try:
        scene = photo_scene(photo)
    except UnknownLensError:
        scene = photo_scene(photo, DEFAULT_FOV)
        notes = [*notes, f"The photo does not tell its lens: a field of view of {DEFAULT_FOV:g} degrees is assumed."]
    return replace(small_capture(scene, size, notes), name="Your photo")


def _without_folders(message: str, folder: Path) -> str:
    """A message that names files as the visitor knows them."""
    for place in (folder / "given", folder / "photos", folder / "posed" / "images", folder):
        message = message.replace(f"{place}/", "").replace(str(place), "the upload")
    return message
