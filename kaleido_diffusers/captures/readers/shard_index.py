"""The index of a shard, `NAME.index` beside `NAME.tar`: where its scenes lie, so that opening many millions of scenes
takes neither time nor memory.

Records of 64 bytes: first one of the shard, then one for each scene. So a listing of files tells how many scenes there
are. An index is no more than what can be read off its tar: it may be made again at any time.
"""

import io
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...files import written_whole
from ..images import CaptureError


__all__ = [
    "HEADER",
    "INDEX",
    "LATENTS",
    "RECORD",
    "SceneRecord",
    "check_header",
    "index_path",
    "read_tar",
    "scan_tar",
    "write_index",
]

INDEX = ".index"  # in place of .tar
LATENTS = "latents.npy"  # in place of pictures
_MAGIC = b"KALEIDO1"

# Of the shard: bytes of the tar (another size is another tar), its scenes, views of the scene that has the fewest
HEADER = np.dtype([("magic", "S8"), ("size", "<u8"), ("scenes", "<u8"), ("fewest_views", "<u4"), ("rest", "S36")])
# Of a scene: the bytes of the tar that hold it, their CRC-32 (0 if nobody has read them), its views and its name
RECORD = np.dtype([("start", "<u8"), ("end", "<u8"), ("checksum", "<u4"), ("views", "<u4"), ("name", "S40")])
SceneRecord = np.void  # an entry of an array of `RECORD`


def index_path(tar: str) -> str:
    """Where the index of a `tar` lies: its path or address with another ending."""
    return tar.removesuffix(".tar") + INDEX


def write_index(tar: Path) -> np.ndarray:
    """
    Reads a shard as a whole and writes its index beside it.

    Args:
        tar (`Path`): the shard.

    Returns:
        `np.ndarray` of `RECORD`: its scenes.
    """
    scenes = scan_tar(tar)
    with open(tar, "rb") as stream:
        for scene in scenes:
            stream.seek(int(scene["start"]))
            scene["checksum"] = zlib.crc32(stream.read(int(scene["end"] - scene["start"])))
    header = np.zeros(1, HEADER)
    header[0] = (_MAGIC, tar.stat().st_size, len(scenes), scenes["views"].min(), b"")
    with written_whole(Path(index_path(str(tar)))) as part:
        part.write_bytes(header.tobytes() + scenes.tobytes())
    return scenes


def check_header(content: bytes, where: str, size: int | None = None) -> np.void:
    """
    The first record of an index.

    Args:
        content (`bytes`): of the index, or its first 64 bytes.
        where (`str`): what it is called in messages.
        size (`int`, *optional*): bytes of the tar beside it, where known.

    Raises:
        `CaptureError`: if it is none, or that of another tar.
    """
    if len(content) < HEADER.itemsize or content[:8] != _MAGIC:
        raise CaptureError(f"{where}: not an index of a shard; remove it, and `kaleido shard --index` makes it anew.")
    header = np.frombuffer(content[: HEADER.itemsize], HEADER)[0]
    if size is not None and (expected := int(header["size"])) != size:
        raise CaptureError(
            f"{where}: is the index of a shard of {expected} bytes, and the one beside it has {size}: it was cut short"
            " or changed. Fetch the shard again, or remove the index and run `kaleido shard --index`."
        )
    return header


def scan_tar(tar: Path) -> np.ndarray:
    """
    The scenes of a shard by the headers of its members, without checksums.

    Args:
        tar (`Path`): the shard.

    Raises:
        `CaptureError`: if it cannot be read, or holds no scene.
    """
    found: dict[str, list] = {}
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                scene, _, name = member.name.rpartition("/")
                if member.isfile() and _belongs(name):
                    start, end = member.offset, member.offset_data + -(-member.size // 512) * 512
                    entry = found.setdefault(scene, [start, end, set()])
                    entry[0], entry[1] = min(entry[0], start), max(entry[1], end)
                    entry[2].add((name, member.offset_data))
    except (tarfile.TarError, OSError) as error:
        raise CaptureError(f"{tar}: not a shard that can be read ({error}).") from error
    complete = []
    for scene, (start, end, members) in found.items():
        names = dict(members)
        if "scene.json" in names and len(names) > 1:
            views = len(names) - 1 if LATENTS not in names else _count_latents(tar, names[LATENTS])
            complete.append((start, end, 0, views, scene.encode()[: RECORD["name"].itemsize]))
    if not complete:
        raise CaptureError(f"{tar}: holds no scene (`<scene>/scene.json` and images beside it).")
    return np.array(complete, RECORD)


def read_tar(content: bytes, where: str) -> Iterator[tuple[str, str, bytes]]:
    """
    Scene, name and content of each member in a piece of a shard.

    Args:
        content (`bytes`): whole members.
        where (`str`): what it is called in messages.

    Raises:
        `CaptureError`: if that is not what it holds.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            for member in archive:
                scene, _, name = member.name.rpartition("/")
                if member.isfile() and _belongs(name):
                    content_of = archive.extractfile(member)
                    yield scene, name, content_of.read() if content_of else b""
    except (tarfile.TarError, OSError, EOFError) as error:
        raise CaptureError(f"{where}: cannot be read ({error}).") from error


def _belongs(name: str) -> bool:
    return name == "scene.json" or name == LATENTS or name.endswith((".jpg", ".png"))


def _count_latents(tar: Path, offset: int) -> int:
    """Views of a scene of latents, by the header of their array."""
    with open(tar, "rb") as stream:
        stream.seek(offset)
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return read(stream)[0][0]
