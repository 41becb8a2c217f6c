"""COLMAP's steps from photos to cameras, through pycolmap, each of which goes on where it was stopped."""

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm.auto import tqdm

from ...files import check_room
from ..images import CaptureError
from ..readers.assembly import listed


__all__ = ["StructureFromMotion", "import_pycolmap"]

_PART = "sparse.part"  # where models are written till one is chosen
_OVERLAP = 10  # neighbours in the order, and look-alikes, that a photo of a sequence is matched with
_FEATURE_CHUNK, _PAIR_CHUNK = 8, 50  # photos and pairs between two steps of a progress bar
_ROOM = 16_000_000  # bytes that a step may take; with less, COLMAP says anything, or ends the process
_WORDS = 64  # of the vocabulary by which photos look alike
_FEATURE_BYTES = 128 + 4 * 6  # of a descriptor and where it is
_FEW_FEATURES, _FEW_MATCHES = 100, 15


def import_pycolmap():
    """The module, or an `ImportError` that says how to get it."""
    try:
        import pycolmap
    except ImportError as error:
        raise ImportError("Posing photos needs pycolmap: pip install 'kaleido-diffusers[captures]'.") from error
    return pycolmap


@dataclass(frozen=True)
class StructureFromMotion:
    """
    A folder with photos in `images/`, from which `database.db` and `sparse/0` are made.

    Attributes:
        folder (`Path`): the folder.
        names (`list[str]`): the photos, in their order.
        threads (`int`): CPU threads; -1 for all.
        seed (`int`): of COLMAP's random draws.

    Raises [`CaptureError`] with what to do about it when a step fails.
    """

    folder: Path
    names: list[str]
    threads: int = -1
    seed: int = 0

    @property
    def database(self) -> Path:
        return self.folder / "database.db"

    @property
    def images(self) -> Path:
        return self.folder / "images"

    @property
    def model(self) -> Path:
        return self.folder / "sparse" / "0"

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Keeps COLMAP's log silent, and turns what it raises into a [`CaptureError`]."""
        pycolmap = import_pycolmap()
        level = pycolmap.logging.minloglevel
        pycolmap.logging.minloglevel = int(pycolmap.logging.FATAL)
        try:
            yield
        except CaptureError:
            raise
        except (RuntimeError, ValueError) as error:
            check_room(self.folder, _ROOM)  # it does not say so itself
            message = " ".join(str(error).split())
            raise CaptureError(
                f"{self.folder}: COLMAP stopped ({message}). Remove the folder and start again."
            ) from error
        finally:
            pycolmap.logging.minloglevel = level

    def extract(self, one_camera: bool, max_image_size: int, max_features: int) -> None:
        """Finds SIFT features in the photos that have none in the database.

        Args:
            one_camera (`bool`): whether all photos were taken by one.
            max_image_size (`int`): pixels of the longer side that features are found at.
            max_features (`int`): most features of a photo.
        """
        pycolmap = import_pycolmap()
        if not self.database.exists():
            self._create_database(one_camera)
        ids = self._ids()
        with pycolmap.Database.open(self.database) as database:
            todo = [
                name
                for name, image in zip(self.names, ids)
                if not (database.exists_keypoints(image) and database.exists_descriptors(image))
            ]
        options = pycolmap.FeatureExtractionOptions()
        options.max_image_size, options.sift.max_num_features = max_image_size, max_features
        options.num_threads, options.use_gpu = self.threads, False
        room = max(_ROOM, _FEATURE_CHUNK * max_features * _FEATURE_BYTES)
        for names in _progress("finding features", "photo", todo, _FEATURE_CHUNK, len(ids)):
            check_room(self.folder, room)
            pycolmap.extract_features(
                self.database, self.images, names, extraction_options=options, device=pycolmap.Device.cpu
            )

    def match(self, matching: Literal["exhaustive", "sequential"]) -> None:
        """Matches and verifies the pairs of photos that are not matched in the database.

        Args:
            matching (`Literal[exhaustive, sequential]`): every pair, or neighbours in a sequence.
        """
        pycolmap = import_pycolmap()
        ids = self._ids()
        with pycolmap.Database.open(self.database) as database:
            pairs = self._sequential_pairs(database, ids) if matching == "sequential" else _all_pairs(len(ids))
            todo = [
                (first, second)
                for first, second in pairs
                if not database.exists_matches(ids[first], ids[second])
                or not database.exists_two_view_geometry(ids[first], ids[second])
            ]
        options, verification = pycolmap.FeatureMatchingOptions(), pycolmap.TwoViewGeometryOptions()
        options.num_threads, options.use_gpu = self.threads, False
        verification.ransac.random_seed = self.seed
        with tempfile.TemporaryDirectory() as scratch:
            pairing = pycolmap.ImportedPairingOptions()
            pairing.match_list_path = Path(scratch) / "pairs.txt"
            for chunk in _progress("matching pairs", "pair", todo, _PAIR_CHUNK, len(pairs)):
                check_room(self.folder, _ROOM)
                lines = [f"{self.names[first]} {self.names[second]}\n" for first, second in chunk]
                pairing.match_list_path.write_text("".join(lines), encoding="utf-8")
                pycolmap.match_image_pairs(self.database, options, pairing, verification, pycolmap.Device.cpu)

    def map(self) -> list[str]:
        """Finds the cameras and keeps the largest model; returns the photos that are placed in another one only."""
        pycolmap = import_pycolmap()
        part = self.folder / _PART
        self.tidy()
        part.mkdir()
        check_room(self.folder, _ROOM + self.database.stat().st_size)  # a model refers to what the database holds
        options = pycolmap.IncrementalPipelineOptions()
        options.min_model_size = 3
        options.num_threads = options.mapper.num_threads = self.threads
        options.random_seed = options.mapper.random_seed = options.triangulation.random_seed = self.seed
        with tqdm(total=len(self.names), desc="placing photos", unit="photo") as bar:

            def advance(count: int) -> None:
                bar.update(min(count, bar.total - bar.n))  # a second model counts some photos again

            models = pycolmap.incremental_mapping(
                self.database, self.images, part, options, "", lambda: advance(2), lambda: advance(1)
            )
        models = sorted(models.values(), key=lambda model: -model.num_reg_images())
        if not models or models[0].num_reg_images() < 3:
            raise CaptureError(f"No cameras were found: {self._diagnosis()}")
        chosen = part / "chosen"
        chosen.mkdir()
        models[0].write(chosen)
        self.model.parent.mkdir(exist_ok=True)
        os.replace(chosen, self.model)
        largest, *others = ({image.name for image in model.images.values() if image.has_pose} for model in models)
        return sorted(set().union(*others) - largest)

    def tidy(self) -> None:
        """Removes what mapping, or one that was killed, leaves beside the model, and puts into the database what a run
        that was killed left beside it."""
        shutil.rmtree(self.folder / _PART, ignore_errors=True)
        if any(self.folder.glob(f"{self.database.name}-*")):
            with closing(sqlite3.connect(self.database)) as database:
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # and closing it removes them

    def _create_database(self, one_camera: bool) -> None:
        pycolmap = import_pycolmap()
        part = self.folder / "database.part.db"
        for rest in self.folder.glob(f"{part.name}*"):
            rest.unlink()
        pycolmap.Database.open(part).close()
        mode = pycolmap.CameraMode.SINGLE if one_camera else pycolmap.CameraMode.AUTO
        pycolmap.import_images(part, self.images, mode, self.names)
        os.replace(part, self.database)

    def _ids(self) -> list[int]:
        """Numbers of the photos in the database."""
        with import_pycolmap().Database.open(self.database) as database:
            numbers = {image.name: image.image_id for image in database.read_all_images()}
        missing = [name for name in self.names if name not in numbers]
        if missing:
            raise CaptureError(f"COLMAP cannot read {listed(missing)}: save them again as JPEG or PNG.")
        return [numbers[name] for name in self.names]

    def _sequential_pairs(self, database, ids: list[int]) -> list[tuple[int, int]]:
        """Each photo with the next ones, with ones further and further on, and with those that look like it."""
        count = len(ids)
        steps = [*range(1, _OVERLAP + 1), *(2**power for power in range(4, count.bit_length()))]
        pairs = {(first, first + step) for step in steps for first in range(count - step)}
        signatures = _signatures(lambda number: database.read_descriptors(ids[number]).data, count, self.seed)
        alike = signatures @ signatures.T
        apart = np.abs(np.subtract.outer(np.arange(count), np.arange(count))) > _OVERLAP
        for first, row in enumerate(np.where(apart, alike, -np.inf)):
            nearest = [second for second in np.argsort(-row)[:_OVERLAP].tolist() if np.isfinite(row[second])]
            pairs.update((min(first, second), max(first, second)) for second in nearest)
        return sorted(pairs)

    def _diagnosis(self) -> str:
        """Why there are no cameras, and what to do about it."""
        with import_pycolmap().Database.open(self.database) as database:
            features = np.median([database.num_keypoints_for_image(image) for image in self._ids()])
            _, geometries = database.read_two_view_geometries()
        linked = sum(len(geometry.inlier_matches) >= _FEW_MATCHES for geometry in geometries)
        if features < _FEW_FEATURES:
            return (
                f"half of the photos show {features:.0f} details or fewer. Blank, dark or blurred photos cannot be"
                " placed: take sharp ones of something with texture."
            )
        if linked < len(self.names) - 1:
            return (
                f"too few photos show the same things ({linked} pairs among {len(self.names)} photos). Take more of"
                " them, each overlapping the one before by more than half."
            )
        return (
            "the photos overlap, but seem to be taken from one spot, or show one flat surface. Move the camera"
            " sideways between photos; turning or zooming it shows no depth."
        )


def _all_pairs(count: int) -> list[tuple[int, int]]:
    return [(first, second) for first in range(count) for second in range(first + 1, count)]


def _progress(title: str, unit: str, items: list, chunk: int, total: int) -> Iterator[list]:
    """The items in chunks, under a progress bar that begins with what is done of `total` already."""
    with tqdm(total=total, initial=total - len(items), desc=title, unit=unit) as bar:
        for start in range(0, len(items), chunk):
            yield items[start : start + chunk]
            bar.update(len(items[start : start + chunk]))


def _signatures(descriptors: Callable[[int], np.ndarray], count: int, seed: int) -> np.ndarray:
    """One vector `[count, W * 128]` of length 1 for each photo, alike where the photos show the same things: sums of
    what sets its descriptors (`[F, 128]` of a photo) apart from the nearest words of a small vocabulary (VLAD: Jegou
    et al., "Aggregating local descriptors into a compact image representation", CVPR 2010)."""
    generator = np.random.default_rng(seed)
    sample = [generator.permutation(descriptors(number))[:200] for number in range(count)]
    sample = np.concatenate(sample).astype(np.float32)
    if not len(sample):  # blank photos look like nothing
        return np.zeros((count, 1), np.float32)
    words = generator.permutation(sample)[:_WORDS]
    for _ in range(10):
        nearest = _nearest(sample, words)
        used = np.unique(nearest)
        words[used] = [sample[nearest == word].mean(0) for word in used]
    signatures = np.zeros((count, *words.shape), np.float32)
    for number in range(count):
        own = descriptors(number).astype(np.float32)
        nearest = _nearest(own, words) if len(own) else []
        for word in np.unique(nearest):
            residual = (own[nearest == word] - words[word]).sum(0)
            signatures[number, word] = residual / max(np.linalg.norm(residual), 1e-6)
    signatures = signatures.reshape(count, -1)
    return signatures / np.maximum(np.linalg.norm(signatures, axis=1, keepdims=True), 1e-6)


def _nearest(values: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Number of the nearest of `words` `[W, 128]` for each of `values` `[F, 128]`."""
    return ((words**2).sum(1) - 2 * values @ words.T).argmin(1)
