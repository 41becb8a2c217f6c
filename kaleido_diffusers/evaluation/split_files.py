"""Splits from files: those that ship with the package, and the user's own."""

import gzip
import hashlib
import json
from functools import cache
from pathlib import Path

import numpy as np

from ..files import file_digest


__all__ = ["bundled_split", "path_split", "split_digest"]

FOLDER = Path(__file__).parent / "splits"


@cache
def _bundled(name: str):
    return json.loads(gzip.decompress((FOLDER / f"{name}.json.gz").read_bytes()))


def bundled_split(protocol: str, num_references: int) -> dict[str, tuple[list[int], list[int] | None]]:
    """
    References and targets of each scene, in the order of the file; targets `None` for every 8th frame from 0.

    Args:
        protocol (`str`): its name.
        num_references (`int`): which of the protocol's numbers.
    """
    if protocol.endswith("-pixelsplat"):
        index = _bundled(protocol.replace("-", "_"))
    elif protocol == "dl3dv-depthsplat":
        index = _bundled(f"dl3dv_depthsplat_{num_references}")
    elif protocol == "dtu-mvsplat":
        index = _bundled(f"dtu_mvsplat_{num_references}")
    elif protocol in ("dl3dv-longlrm", "tnt-longlrm"):
        rows = _bundled(protocol.replace("-", "_"))
        return {row["scene_name"]: (row[f"fold_8_kmeans_{num_references}_input"], None) for row in rows}
    else:
        raise ValueError(f"No split of {protocol} ships with the package.")
    return {scene: (entry["context"], entry["target"]) for scene, entry in index.items() if entry is not None}


def _split_file(path: Path, scene: str, num_references: int) -> Path | None:
    if path.is_file():
        return path
    names = (f"train_test_split_{num_references}.json", f"train_N{num_references}M20_*.npy")
    for pattern in names:
        found = sorted(path.glob(f"{scene}/{pattern}")) or sorted(path.glob(f"*/{scene}/{pattern}"))
        if len(found) > 1:
            raise ValueError(f"--splits: {scene} has {len(found)} splits of {num_references} references below {path}.")
        if found:
            return found[0]
    return None


def path_split(path: Path, scene: str, num_references: int) -> tuple[list[int], list[int] | None]:
    """
    References and targets of one scene from the user's files: `SCENE/train_test_split_N.json` (ReconFusion, SEVA),
    `SCENE/train_NnM20_*.npy` (EscherNet: references alone, targets `None`), or one JSON file of
    `{scene: {"context": [...], "target": [...]}}` (pixelSplat).

    Args:
        path (`Path`): the folder, or the file.
        scene (`str`): its name.
        num_references (`int`): how many references.
    """
    file = _split_file(path, scene, num_references)
    if file is None:
        raise ValueError(f"--splits: {path} has no split of {num_references} references for {scene}.")
    if file.suffix == ".npy":
        return [int(frame) for frame in np.load(file, allow_pickle=False).reshape(-1)[:num_references]], None
    data = json.loads(file.read_text(encoding="utf-8"))
    entry, names = (data.get(scene), ("context", "target")) if path.is_file() else (data, ("train_ids", "test_ids"))
    if not isinstance(entry, dict) or not all(isinstance(entry.get(name), list) for name in names):
        raise ValueError(f"{file}: must hold lists {names[0]!r} and {names[1]!r} for {scene}.")
    references, targets = ([int(frame) for frame in entry[name]] for name in names)
    if len(references) != num_references:
        raise ValueError(f"{file}: {scene} has {len(references)} references, {num_references} are asked for.")
    return references, targets


def split_digest(path: Path) -> str:
    """SHA-256 over the split files of a folder, names and contents, or of the one file."""
    if path.is_file():
        return file_digest(path)
    digest = hashlib.sha256()
    for file in sorted(f for f in path.rglob("*") if f.suffix in (".json", ".npy")):
        if file.name.startswith(("train_test_split_", "train_N")):
            digest.update(f"{file.relative_to(path).as_posix()} {file_digest(file)}\n".encode())
    return digest.hexdigest()
