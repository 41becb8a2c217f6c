"""Where shards lie: in a folder, or wherever fsspec reaches (`s3://`, `hf://`, `http://`), read piece by piece, with a
cache on the disk."""

import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from ..images import CaptureError
from .shard_index import HEADER, INDEX, index_path


__all__ = ["ShardCache", "ShardFiles", "is_remote"]

_TRIES, _PAUSE = 3, 0.5  # attempts, and seconds before the second; twice as many before each further one
_SECONDS = 60  # after which a server that does not answer counts as gone
_WHOLE = 1 << 62  # an end behind every file


def is_remote(where: str | os.PathLike) -> bool:
    """Whether `where` is an address and no path."""
    return "://" in str(where)


class ShardCache:
    """
    Pieces of remote files in a folder, which several processes may share. Those that were asked for last stay.

    Args:
        folder (`Path`): made if missing.
        limit (`int`): most bytes of them, give or take what is written between two clearings.
    """

    def __init__(self, folder: Path, limit: int):
        self.folder, self.limit = folder, limit
        self._written = limit  # whatever an earlier run has left is looked at with the first piece

    def get(self, key: str, fetch: Callable[[], bytes]) -> bytes:
        """The piece called `key`, which `fetch` gets where it is not there."""
        name = hashlib.sha256(key.encode()).hexdigest()
        path = self.folder / name[:2] / name
        with suppress(OSError):
            content = path.read_bytes()
            os.utime(path)
            return content
        content = fetch()
        path.parent.mkdir(parents=True, exist_ok=True)
        part, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(part, "wb") as stream:
            stream.write(content)
        os.replace(name, path)
        self._written += len(content)
        if self._written > self.limit // 20:
            self._clear()
        return content

    def _clear(self) -> None:
        """Removes the oldest pieces. Another process may do so as well: what is gone is gone."""
        self._written, found, total = 0, [], 0
        for path in self.folder.glob("??/*"):
            with suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
                total += status.st_size
        for _, size, path in sorted(found):
            if total <= 0.9 * self.limit:
                break
            path.unlink(missing_ok=True)
            total -= size


class ShardFiles:
    """
    The shards of a place.

    Args:
        where (`str` or `Path`): a folder of `*.tar` or one of them, or an address of either; in an address
            `{000..099}` stands for so many numbers, for servers that list no folders.
        cache ([`ShardCache`], *optional*): keeps what came over the network.

    Attributes:
        names (`list[str]`): paths or addresses of the shards, in their order.
        counts (`list[int]` or `None` for each): scenes of a shard by the size of its index, `None` without one.

    Raises:
        `CaptureError`: if there are none, or the place cannot be reached.
    """

    def __init__(self, where: str | os.PathLike, cache: ShardCache | None = None):
        self.where, self.cache, self._systems = str(where), cache, {}
        self.is_remote = is_remote(where)
        self._root = ""
        sizes = self._listed()
        # An index whose shard is gone counts: whoever reads the shard is told so, and the numbers of scenes stay
        tars = (name.removesuffix(INDEX) + ".tar" if name.endswith(INDEX) else name for name in sizes)
        self.names = sorted({name for name in tars if name.endswith(".tar")})
        if not self.names:
            raise CaptureError(f"{where}: holds no *.tar shards.")
        self.sizes = sizes
        self.counts = [self._count(sizes.get(index_path(name), -1)) for name in self.names]

    def read(self, name: str, start: int = 0, end: int = _WHOLE) -> bytes:
        """
        Bytes of a file.

        Args:
            name (`str`): of a shard, or of its index.
            start (`int`, defaults to `0`): first of them.
            end (`int`): the one behind the last.

        Raises:
            `CaptureError`: if it is gone, or cannot be read after three tries.
        """
        if not self.is_remote:
            try:
                with open(name, "rb") as stream:
                    stream.seek(start)
                    return stream.read(end - start if end < _WHOLE else -1)
            except OSError as error:
                raise CaptureError(f"{name}: cannot be read ({error}).") from error
        if self.cache is None:
            return self._fetch(name, start, end)
        return self.cache.get(f"{name}:{start}:{end}", lambda: self._fetch(name, start, end))

    def _listed(self) -> dict[str, int]:
        """Sizes of what is there, by name; -1 where the place does not say."""
        if not self.is_remote:
            path = Path(self.where)
            found = os.scandir(path) if path.is_dir() else []
            sizes = {entry.path: entry.stat().st_size for entry in found if entry.name.endswith((".tar", INDEX))}
            if not path.is_dir() and path.is_file():
                beside = Path(index_path(self.where))
                sizes = {self.where: path.stat().st_size}
                sizes |= {str(beside): beside.stat().st_size} if beside.is_file() else {}
            return sizes
        if self.where.endswith(".tar"):
            tars = list(_numbered(self.where))
            return dict.fromkeys([*tars, *map(index_path, tars)], -1)
        prefix = self.where.rstrip("/")
        entries = self._tried(prefix, lambda system: system.ls(prefix + "/", detail=True, refresh=True))
        sizes = {f"{prefix}/{PurePosixPath(entry['name']).name}": entry.get("size") for entry in entries}
        return {name: -1 if size is None else int(size) for name, size in sizes.items()}

    def _count(self, size: int) -> int | None:
        return size // HEADER.itemsize - 1 if size >= HEADER.itemsize else None

    def _fetch(self, name: str, start: int, end: int) -> bytes:
        span: dict[str, Any] = {} if end == _WHOLE else {"start": start, "end": end}
        if span and name.startswith("hf://"):
            span["cache_type"] = "none"  # which reads megabytes ahead
        return self._tried(name, lambda system: system.cat_file(name, **span))

    def _tried(self, name: str, ask: Callable[[Any], Any]) -> Any:
        """What a remote place answers, asked again where it fails, but not where it says that nothing is there."""
        for attempt in range(_TRIES):
            try:
                return ask(self._system())
            except FileNotFoundError as error:
                raise CaptureError(f"{name}: is not there.") from error
            except ImportError as error:
                raise CaptureError(f"{name}: {error} Or pip install 'kaleido-diffusers[streaming]'.") from error
            except Exception as error:  # every file system has errors of its own
                if attempt + 1 == _TRIES:
                    said = f"{type(error).__name__}: {error}".rstrip(": ")
                    raise CaptureError(f"{name}: cannot be read, in {_TRIES} tries ({said}).") from error
                time.sleep(_PAUSE * 2**attempt)

    def _system(self) -> Any:
        """fsspec's file system: one for each process, as its threads do not live on in a fork."""
        import fsspec

        if os.getpid() not in self._systems:
            scheme = self.where.partition("://")[0]
            options: dict[str, Any] = {"skip_instance_cache": True}
            if scheme in ("http", "https"):
                import aiohttp

                options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(total=_SECONDS)}
            elif scheme == "s3":
                options["config_kwargs"] = {"connect_timeout": _SECONDS, "read_timeout": _SECONDS}
            self._systems = {os.getpid(): fsspec.filesystem(scheme, **options)}
        return self._systems[os.getpid()]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_systems": {}}


def _numbered(address: str) -> Iterator[str]:
    """The addresses that `{000..099}` stands for; the address itself without one."""
    span = re.search(r"\{(\d+)\.\.(\d+)\}", address)
    if span is None:
        yield address
        return
    first, last = span.groups()
    for number in range(int(first), int(last) + 1):
        yield f"{address[: span.start()]}{number:0{len(first)}d}{address[span.end() :]}"
