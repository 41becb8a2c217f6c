"""Cameras of plain photos: structure from motion by COLMAP, through pycolmap."""

import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import PIL.ExifTags
import PIL.Image
from tqdm.auto import tqdm

from ...files import OR_OVERWRITE, file_digest, remove_written, write_json, written_whole
from ..images import CaptureError, load_image, open_image, save_image, upright_turns
from ..pictures import camera_picture
from ..readers import load_scene
from ..readers.assembly import IMAGE_SUFFIXES, listed, load_json
from ..readers.places import natural_order
from .photo_checks import blurred, grey, same_pictures, sharpness, thumbnail
from .structure_from_motion import StructureFromMotion, import_pycolmap


__all__ = ["PoseReport", "estimate_poses", "find_photos", "remove_run"]

_EXHAUSTIVE = 80  # photos up to which every pair is matched: 3160 pairs
_LOW_PARALLAX = 6.0  # degrees; a camera that only turns gives 4 or 5, one that walks round something 15 to 50
_FORMATS = {".jpg": ("JPEG", "MPO"), ".jpeg": ("JPEG", "MPO"), ".png": ("PNG",)}  # copied as they are


@dataclass(frozen=True)
class PoseReport:
    """
    How well the cameras of photos were found.

    Attributes:
        photos (`int`): different photos that were given.
        registered (`int`): photos whose camera was found.
        not_registered (`list[str]`): names of the others.
        points (`int`): sparse points.
        mean_track_length (`float`): photos in which a point is seen, on average.
        mean_reprojection_error (`float`): distance in pixels between a point in a photo and where the cameras say.
        identical (`list[str]`): photos that are left out because another is the same file.
        blurred (`list[str]`): photos that are far less sharp than the others.
        parallax (`float`): degrees between the directions from which a point is seen, at most, in the median.
        minutes (`float`): time that the run took; that of its last part, when it was interrupted.
    """

    photos: int
    registered: int
    not_registered: list[str]
    points: int
    mean_track_length: float
    mean_reprojection_error: float
    identical: list[str]
    blurred: list[str]
    parallax: float
    minutes: float

    def __str__(self) -> str:
        lines = [
            f"photos registered        {self.registered} of {self.photos}",
            f"mean reprojection error  {self.mean_reprojection_error:.2f} px",
            f"points                   {self.points}",
            f"mean track length        {self.mean_track_length:.1f} photos",
            f"parallax                 {self.parallax:.1f} degrees",
            f"minutes                  {self.minutes:.1f}",
        ]
        if self.not_registered:
            lines.append(f"not registered           {', '.join(self.not_registered)}")
        return "\n".join(lines)


def find_photos(folder: str | os.PathLike) -> list[Path]:
    """
    The photos in a folder, in the order of their names (`2.jpg` before `10.jpg`). Other files are left out with a
    warning, hidden ones without. Raises [`CaptureError`] when there is no photo.

    Args:
        folder (`str` or `os.PathLike`): where they lie.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CaptureError(f"{folder}: no such folder.")
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    photos = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    others = sorted(path.name for path in files if path not in photos)
    if not photos:
        inside = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir())[:10])
        hint = f" It holds folders ({inside}): name the one with the photos." if inside else ""
        hint = f" It holds {listed(others)}: convert them first." if others else hint
        raise CaptureError(f"{folder}: no photos ({', '.join(IMAGE_SUFFIXES)}).{hint}")
    if others:
        warnings.warn(f"{folder}: ignored what is not a photo: {listed(others)}.", stacklevel=2)
    return sorted(photos, key=lambda path: natural_order(path.name))


def estimate_poses(
    photos: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    matching: Literal["auto", "exhaustive", "sequential"] = "auto",
    max_image_size: int = 1600,
    max_features: int = 8192,
    threads: int = -1,
    seed: int = 0,
    overwrite: bool = False,
    on_checked: Callable[[], object] = lambda: None,
) -> PoseReport:
    """
    Makes a capture of plain photos of something that stands still: SIFT features, matches, and incremental mapping by
    COLMAP. Needs `pip install kaleido-diffusers[captures]`.

    Writes to `output` what [`load_scene`] and other tools read: `images/` (upright copies; JPEG and PNG files that are
    upright already stay as they are), `sparse/0/*.bin` (the largest model that was found), `database.db`, and
    `cameras.png` and `report.json` to look at. The photos share one SIMPLE_RADIAL camera when they have one size,
    camera and focal length; otherwise those share one that do, as far as EXIF tells.

    A run that was stopped goes on where it was when it is called again: features and matches are kept, mapping starts
    anew. After a finished run it returns the report and does nothing.

    Args:
        photos (`Sequence` of paths):
            At least three photos, each overlapping its neighbours by more than half, taken from different places.
            Copies of a file are left out with a warning; the blurred and those that look the same are kept and named.
        output (`str` or `Path`):
            Folder of the capture, new or of an earlier run on the same photos. The photos may lie in its `images/`.
        matching (`str`, defaults to `"auto"`):
            `"exhaustive"` matches every pair. `"sequential"` matches each photo with the next ten in the order of
            `photos`, with ones 16, 32, 64, ... further on, and with the ten that look most like it, which closes
            loops. `"auto"` is exhaustive for up to 80 photos.
        max_image_size (`int`, defaults to 1600):
            Longer side, in pixels, of the photos in which features are found.
        max_features (`int`, defaults to 8192):
            Most features in a photo.
        threads (`int`, defaults to -1):
            CPU threads; -1 for all. With 1, the same photos give the same cameras to the bit.
        seed (`int`, defaults to 0):
            Seed of COLMAP's random draws.
        overwrite (`bool`, defaults to `False`):
            Start anew where a run is, which is removed once the photos are known to be good.
        on_checked (`Callable`, *optional*):
            Called when photos and output have been looked at, before warnings about them and before the work.

    Returns:
        [`PoseReport`]

    Raises:
        [`CaptureError`]: when a photo is damaged, `output` holds something else, or no cameras can be found; the
        message says what to do.
    """
    start = time.monotonic()
    pycolmap = import_pycolmap()
    if matching not in ("auto", "exhaustive", "sequential"):
        raise ValueError(f"`matching` must be 'auto', 'exhaustive' or 'sequential', got {matching!r}.")
    if min(max_image_size, max_features) < 1:
        raise ValueError(f"`max_image_size` and `max_features` must be positive: {max_image_size}, {max_features}.")
    output = Path(output)
    files, identical = _distinct([Path(photo) for photo in photos])
    if matching == "auto":
        matching = "exhaustive" if len(files) <= _EXHAUSTIVE else "sequential"
    settings = {"matching": matching, "max_image_size": max_image_size, "max_features": max_features, "seed": seed}
    if overwrite:
        _refuse_strangers(output, files)
    has_begun = not overwrite and _is_begun(output, files, settings)
    if not overwrite and (output / "report.json").is_file():
        on_checked()
        try:
            return PoseReport(**load_json(output / "report.json"))
        except TypeError as error:
            raise CaptureError(f"{output / 'report.json'}: not a report of a run ({error}).") from error
    given, photos = [Path(photo) for photo in photos], _inspect(files)
    if overwrite:
        remove_run(output, given)
    on_checked()
    unsharp = _judge(photos, identical)
    if not has_begun:
        output.mkdir(parents=True, exist_ok=True)
        digests = {file.name: file.digest for file in files}
        write_json(output / "photos.json", {"photos": digests, "settings": settings})
    _copy(photos, output / "images")
    motion = StructureFromMotion(output, [file.name for file in files], threads, seed)
    with motion.quiet():
        if not motion.model.is_dir():
            motion.extract(len({photo.lens for photo in photos}) == 1, max_image_size, max_features)
            motion.match(matching)
            apart = motion.map()
            if apart:
                message = f"Photos that fit together, but not with the others: {listed(apart)}"
                warnings.warn(f"{message}. Photos from in between would join them.", stacklevel=2)
        motion.tidy()
        model = pycolmap.Reconstruction(motion.model)
    report = _report(model, motion.names, identical, unsharp, start)
    _draw(output)
    write_json(output / "report.json", asdict(report))
    return report


def _report(model, names: list[str], identical: list[str], unsharp: list[str], start: float) -> PoseReport:
    found = {image.name for image in model.images.values() if image.has_pose}
    report = PoseReport(
        photos=len(names),
        registered=len(found),
        not_registered=[name for name in names if name not in found],
        points=model.num_points3D(),
        mean_track_length=model.compute_mean_track_length(),
        mean_reprojection_error=model.compute_mean_reprojection_error(),
        identical=identical,
        blurred=unsharp,
        parallax=_parallax(model),
        minutes=(time.monotonic() - start) / 60,
    )
    if report.parallax < _LOW_PARALLAX:
        warnings.warn(
            f"Points are seen from directions that differ by only {report.parallax:.1f} degrees. Depth is uncertain,"
            " and all of it wrong if the camera was only turned or zoomed: move it sideways between photos.",
            stacklevel=3,
        )
    return report


def _parallax(model) -> float:
    """The widest angle between rays to a point, in degrees: its median over points."""
    angles = []
    for point in list(model.points3D.values())[:: -(-model.num_points3D() // 2000) or 1]:
        views = [model.images[element.image_id] for element in point.track.elements]
        rays = np.stack([view.projection_center() for view in views]) - point.xyz
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        angles.append(np.arccos(np.clip((rays @ rays.T).min(), -1, 1)))
    return float(np.degrees(np.median(angles))) if angles else 0.0


def _draw(output: Path) -> None:
    """The picture of the cameras, from what other parts will read."""
    scene = load_scene(output)
    names = [path.name for path in scene.image_paths]
    camera_picture(scene.cameras, output / "cameras.png", scene.points, names)


# Photos


class _File(NamedTuple):
    path: Path
    name: str  # of the copy
    digest: str


class _Photo(NamedTuple):
    file: _File
    is_kept: bool  # whether the copy has the same bytes
    lens: tuple  # what photos of one camera share
    sharpness: float
    thumbnail: np.ndarray


def _distinct(paths: list[Path]) -> tuple[list[_File], list[str]]:
    """The photos without copies of the same file, and the names of those."""
    files, identical = {}, []
    for path in paths:
        if not path.is_file():
            raise CaptureError(f"{path}: no such photo.")
        name = re.sub(r"[\s#]", "_", path.name)  # in COLMAP's list of pairs these have a meaning
        if path.suffix.lower() not in _FORMATS:
            name = f"{Path(name).stem}.png"
        file = _File(path, name, file_digest(path))
        if file.digest in files:
            identical.append(path.name)
        files.setdefault(file.digest, file)
    files = list(files.values())
    names = [file.name for file in files]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise CaptureError(f"Two photos would both be called {listed(twice)}: rename one of them.")
    if len(files) < 3:
        given = f"{len(files)} photo" + "s" * (len(files) != 1) + (" (the others are copies)" if identical else "")
        raise CaptureError(
            f"Got {given}; finding cameras takes at least 3 from different places. One photo needs no pose:"
            " kaleido render photo.jpg --trajectory orbit --fov 60."
        )
    return files, identical


def remove_run(output: Path, photos: Sequence[Path]) -> None:
    """Removes what [`estimate_poses`] (and [`sharp_frames`], into `images`) wrote into a folder, and nothing else.

    Args:
        output (`Path`): the folder.
        photos (`Sequence[Path]`): those that are to stay, as they may lie in its `images/`: with the record of whence
            they came, if they are frames.
    """
    kept = {path.resolve() for path in photos}
    has_kept = any(path.parent == (output / "images").resolve() for path in kept)
    if (output / "photos.json").is_file() or (output / "images.json").is_file():
        for copy in (output / "images").glob("*"):
            if copy.resolve() not in kept:
                copy.unlink()
        with suppress(OSError):  # photos of others are in it, or there is none
            (output / "images").rmdir()
        names = ("database.db", "database.db-*", "cameras.png", "report.json", "photos.json")
        remove_written(output, "sparse", *names, *(() if has_kept else ("images.json",)))


def _refuse_strangers(output: Path, files: list[_File]) -> None:
    """Raises [`CaptureError`] when `output` holds what neither is to be posed nor comes of an earlier run."""
    names = ["transforms.json", "transforms_train.json"]
    strangers = []
    if not (output / "photos.json").is_file():
        inputs = {file.path.resolve() for file in files}
        images = output / "images"
        there = [path for path in images.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES] if images.is_dir() else []
        strangers = [path.name for path in there if path.resolve() not in inputs]
        names = ["sparse", "database.db", "report.json", *names]
    strangers += [name for name in names if (output / name).exists()]
    if strangers:
        raise CaptureError(f"{output} holds something else already ({listed(strangers)}): name another.")


def _is_begun(output: Path, files: list[_File], settings: dict[str, Any]) -> bool:
    """Whether `output` holds a run on these photos; raises [`CaptureError`] when it holds something else."""
    record = output / "photos.json"
    if not record.is_file():
        _refuse_strangers(output, files)
        return False
    begun = load_json(record)
    now = {file.name: file.digest for file in files}
    if list(begun.get("photos", {}).items()) != list(now.items()):
        raise CaptureError(f"{output} holds a run on other photos: {OR_OVERWRITE}")
    if begun.get("settings") != settings:
        raise CaptureError(
            f"{output} holds a run with other settings ({begun.get('settings')}, now {settings}): {OR_OVERWRITE}"
        )
    return True


def _inspect(files: list[_File]) -> list[_Photo]:
    """Decodes every photo once; raises a [`CaptureError`] that names all that are damaged."""
    photos, damaged = [], []
    for file in tqdm(files, desc="looking at photos", unit="photo"):
        try:
            with open_image(file.path) as header:
                turns, form, exif = upright_turns(header), header.format, header.getexif()
            image = load_image(file.path)
        except CaptureError as error:
            damaged.append(str(error))
            continue
        details = exif.get_ifd(PIL.ExifTags.IFD.Exif)
        tags = [exif.get(PIL.ExifTags.Base.Make), exif.get(PIL.ExifTags.Base.Model)]
        tags += [details.get(tag) for tag in (PIL.ExifTags.Base.FocalLength, PIL.ExifTags.Base.FocalLengthIn35mmFilm)]
        is_kept = not turns and form in _FORMATS.get(file.path.suffix.lower(), ())
        lens = (image.size, *map(str, tags))
        photos.append(_Photo(file, is_kept, lens, sharpness(grey(image)), thumbnail(image)))
    if damaged:
        raise CaptureError(f"{len(damaged)} of {len(files)} photos cannot be used: {' '.join(damaged[:10])}")
    return photos


def _judge(photos: list[_Photo], identical: list[str]) -> list[str]:
    """Warns about copies, look-alikes and blur; returns the names of the blurred photos."""
    names = [photo.file.name for photo in photos]
    unsharp = [names[number] for number in blurred([photo.sharpness for photo in photos])]
    same = same_pictures([photo.thumbnail for photo in photos])
    same = [f"{names[number]} like {names[earlier]}" for number, earlier in same.items()]
    messages = {
        "Left out as copies of the same file": identical,
        "Photos that show almost the same, which adds nothing": same,
        "Far less sharp than the others, better taken again or removed": unsharp,
    }
    for message, found in messages.items():
        if found:
            warnings.warn(f"{message}: {listed(found)}.", stacklevel=3)
    return unsharp


def _copy(photos: list[_Photo], folder: Path) -> None:
    """Writes upright copies; those that are there already stay."""
    folder.mkdir(exist_ok=True)
    for photo in tqdm(photos, desc="copying photos", unit="photo"):
        copy = folder / photo.file.name
        if copy.exists():
            if photo.is_kept or copy.resolve() != photo.file.path.resolve():
                continue
            raise CaptureError(f"{copy} is not upright and is not changed in place: choose another output folder.")
        if photo.is_kept:
            with written_whole(copy) as part:
                shutil.copyfile(photo.file.path, part)
        else:
            _save_upright(photo.file.path, copy)


def _save_upright(path: Path, copy: Path) -> None:
    with open_image(path) as header:
        exif = header.getexif()
    exif.pop(PIL.ExifTags.Base.Orientation, None)
    save_image(load_image(path), copy, exif=exif, quality=95, subsampling=0)
