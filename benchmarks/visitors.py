"""Many visitors at once: what they are answered, how long they wait, and what they leave on the server.

    mkdir /tmp/demo; TMPDIR=/tmp/demo kaleido demo --keep-minutes 1 &
    python benchmarks/visitors.py --url http://127.0.0.1:7860 --pid $! --folder /tmp/demo

Each visitor opens the page, takes the sample capture or uploads a photo, asks for views, watches their place in line,
fetches the files, and comes again; some close the page in the middle. Who is told to come back later does so.
"""

import asyncio
import json
import random
import re
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import tyro

from kaleido_diffusers import sample_capture


@dataclass
class Seen:
    """What visitors met with."""

    statuses: Counter = field(default_factory=Counter)
    pages: list[float] = field(default_factory=list)  # seconds till the page was there
    waits: list[float] = field(default_factory=list)  # seconds in line
    served: int = 0
    refused: int = 0
    left: int = 0
    failed: Counter = field(default_factory=Counter)
    places: int = 0  # times that place and time were told
    ahead: int = 0  # most that were said to wait before one
    longest: int = 0  # seconds that were told


@dataclass
class Visitor:
    url: str
    seen: Seen
    client: httpx.AsyncClient
    functions: dict[str, int]
    dice: random.Random

    async def stay(self, until: float) -> None:
        """Comes again and again."""
        await asyncio.sleep(10 * self.dice.random())
        while time.monotonic() < until:
            self.key = f"visitor{self.dice.getrandbits(60):x}"
            try:
                await self._visit()
            except httpx.HTTPError as error:
                self.seen.failed[type(error).__name__] += 1
            await asyncio.sleep(1 + 4 * self.dice.random())

    async def _visit(self) -> None:
        started = time.monotonic()
        await self._answer("GET", "/")
        self.seen.pages.append(time.monotonic() - started)
        references = 3
        if self.dice.random() < 0.2:
            references = 1
            photo = sorted(Path(sample_capture("skull"), "images").iterdir())[0]
            sent = {"files": (photo.name, photo.read_bytes(), "image/jpeg")}
            uploaded = await self._answer("POST", "/gradio_api/upload", files=sent)
            if uploaded.status_code != 200:
                return
            given = [{"path": path, "meta": {"_type": "gradio.FileData"}} for path in uploaded.json()]
            if await self._ask("upload", given) is None:
                return
        elif await self._ask("sample", "sample") is None:
            return
        wish = [
            "orbit",
            self.dice.randint(2, 8),
            0,
            30,
            1,
            1,
            references,
            self.dice.randint(2, 8),
            1,
            self.dice.randint(0, 99),
        ]
        leaves = self.dice.random() < 0.1
        output = await self._ask("generate", *wish, leaves=leaves)
        if output is None:
            return
        self.seen.served += 1
        for path in {file["path"] for file in _files(output)}:
            await self._answer("GET", f"/gradio_api/file={path}")

    async def _answer(self, method: str, path: str, **options) -> httpx.Response:
        answer = await self.client.request(method, self.url + path, **options)
        self.seen.statuses[answer.status_code] += 1
        return answer

    async def _ask(self, name: str, *values, leaves: bool = False) -> list | None:
        """What a function gives; nothing when it is refused, or the visitor leaves."""
        body = {"data": values, "fn_index": self.functions[name], "session_hash": self.key}
        joined = await self._answer("POST", "/gradio_api/queue/join", json=body)
        if joined.status_code != 200:
            return None
        started = waited = time.monotonic()
        data = self.client.stream("GET", f"{self.url}/gradio_api/queue/data?session_hash={self.key}")
        async with data as stream:
            self.seen.statuses[stream.status_code] += 1
            async for line in stream.aiter_lines():
                message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
                kind = message.get("msg")
                if place := re.search(r"Waiting: (One|\d+) others? (?:is|are) before you, about (\d+) s", line):
                    self.seen.places += 1
                    self.seen.ahead = max(self.seen.ahead, 1 if place[1] == "One" else int(place[1]))
                    self.seen.longest = max(self.seen.longest, int(place[2]))
                    waited = time.monotonic()
                elif kind == "process_generating" and leaves and name == "generate":
                    self.seen.left += 1
                    return None
                if kind == "process_completed":
                    if name == "generate":
                        self.seen.waits.append(waited - started)
                    return await self._completed(message)
        return None

    async def _completed(self, message: dict) -> list | None:
        """What a message brings; who is told that the line is full waits as long as they are told."""
        if message["success"]:
            return message["output"]["data"]
        error = str(message["output"].get("error"))
        if full := re.search(r"please come back in (\d+) seconds", error):
            self.seen.refused += 1
            await asyncio.sleep(int(full[1]))
        else:
            self.seen.failed[error[:60]] += 1
        return None


def _files(content) -> list[dict]:
    """All files in what a function gave."""
    if isinstance(content, dict):
        inside = [file for value in content.values() for file in _files(value)]
        return [content, *inside] if isinstance(content.get("path"), str) else inside
    return [file for value in content for file in _files(value)] if isinstance(content, list) else []


def _resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def _stored(folder: Path | None) -> int:
    return 0 if folder is None else sum(path.is_file() for path in folder.rglob("*"))


async def visit(url: str, visitors: int, minutes: float, pid: int | None, folder: Path | None, seed: int) -> None:
    """Sends visitors and prints what they met with."""
    seen, memory, files = Seen(), [], []
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=600, limits=limits) as client:
        config = (await client.get(f"{url}/config")).json()
        functions = {entry["api_name"]: entry["id"] for entry in config["dependencies"] if entry["api_name"]}
        until = time.monotonic() + 60 * minutes

        async def watch() -> None:
            while time.monotonic() < until:
                if pid is not None:
                    memory.append(_resident_mb(pid))
                files.append(_stored(folder))
                await asyncio.sleep(2)

        crowd = [Visitor(url, seen, client, functions, random.Random(seed + number)) for number in range(visitors)]
        await asyncio.gather(watch(), *(visitor.stay(until) for visitor in crowd))
    emptied, started = None, time.monotonic()
    while folder is not None and time.monotonic() - started < 1800:
        if not _stored(folder):
            emptied = time.monotonic() - started
            break
        await asyncio.sleep(2)
    rows = {
        "answers by status": ", ".join(f"{count} x {status}" for status, count in sorted(seen.statuses.items())),
        "served": seen.served,
        "told to come back, as the line was full": seen.refused,
        "left in the middle": seen.left,
        "failed": dict(seen.failed) or "none",
        "seconds till the page is there, median and longest": _median_and_most(seen.pages),
        "seconds in line, median and longest": _median_and_most(seen.waits),
        "times that a place in line and the seconds were told": seen.places,
        "most before one in line, longest time told": f"{seen.ahead}, {seen.longest} s",
        "MB resident at the beginning and at most": f"{memory[0]:.0f}, {max(memory):.0f}" if memory else "-",
        "files on the disk at most": max(files),
        "seconds after which none is left": "-" if emptied is None else f"{emptied:.0f}",
    }
    print("| | |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value} |")


def _median_and_most(values: list[float]) -> str:
    return f"{statistics.median(values):.2f}, {max(values):.1f}" if values else "-"


def main(
    url: str,
    visitors: int = 50,
    minutes: float = 5.0,
    pid: int | None = None,
    folder: Path | None = None,
    seed: int = 0,
) -> None:
    """Sends visitors to a running app.

    Args:
        url: where it serves.
        visitors: how many at once.
        minutes: for how long.
        pid: its process, whose memory is looked at.
        folder: its temporary folder, whose files are counted, also after the last visitor till there are none.
        seed: decides what they do.
    """
    asyncio.run(visit(url.rstrip("/"), visitors, minutes, pid, folder, seed))


if __name__ == "__main__":
    tyro.cli(main)
