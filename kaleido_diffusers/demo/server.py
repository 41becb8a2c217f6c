"""Serving the page: in a folder of its own, to browsers that are told to ask nobody else."""

import base64
import hashlib
import json
import os
import re
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ..pipelines.pipeline_kaleido import KaleidoViewSynthesisPipeline
from ..web.origins import OriginRule
from .app import WORK, DemoApp
from .icons import path_styles
from .limits import Limits
from .texts import SCRIPT, STYLE


__all__ = ["Guard", "serve", "sweep"]

_FONTS = ("system-ui", "sans-serif")
_POLICY = (  # what a page of ours may load, and from where: from here alone
    # Gradio writes its settings into the page as scripts, which are let in one by one by their digests. Its `gr.HTML`
    # evaluates templates (`unsafe-eval`); it sets styles in attributes, and plotly by script (`unsafe-inline`, for
    # styles alone); both draw with blobs.
    "default-src 'self' data: blob:; script-src 'self' blob: 'unsafe-eval'{scripts}; style-src 'self' 'unsafe-inline';"
    " connect-src 'self' data: blob:; object-src 'none'; base-uri 'self'; form-action 'self'"
)
_SCRIPTS = re.compile(rb"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL | re.IGNORECASE)
_BODY_MB = 1  # of what is not an upload: the settings of a request take a few kilobytes
_ROOM_MB = 20  # that the disk must keep free beyond an upload
_STALE_SECONDS = 120  # after which what an upload has written last is taken for broken off
_THREADS = 20  # beside those in which visitors wait for their turn
_SESSION = re.compile(r"[\w-]{1,64}")
_CALL = re.compile(r"/(run|api|call)/(?:v2/)?([^/]+)/?$")  # a function by its name in the path


class Guard:
    """
    ASGI middleware around Gradio's routes: answers the pages of allowed origins alone, forbids browsers to load
    anything from elsewhere, refuses to fetch or pass on what lies elsewhere, bodies that are larger than allowed,
    uploads that the disk has no room for, and requests that Gradio would fail at.

    Args:
        app (`Callable`): the ASGI application.
        folder (`Path`): where uploads and results lie.
        limits (`Limits`): what is allowed.
        rule (`OriginRule`): whose requests are answered.
        functions (`Mapping`): what the page can do, by the numbers that Gradio has given; they have a name
            (`api_name`) and `inputs`.
    """

    def __init__(self, app: Callable, folder: Path, limits: Limits, rule: OriginRule, functions: Mapping[int, Any]):
        self.app, self.folder, self.limits, self.rule, self.functions = app, folder, limits, rule, functions
        self._named = {function.api_name: function for function in functions.values() if function.api_name}
        self._uploading = 0
        from starlette.exceptions import HTTPException
        from starlette.requests import ClientDisconnect

        self._gone, self._said = ClientDisconnect, HTTPException

    async def __call__(self, scope, receive, send) -> None:
        """Answers a request, as ASGI has it: its `scope`, and how to `receive` and `send` messages."""
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        refusal = self._refusal(scope)
        is_upload = _is_upload(scope)
        if refusal is None and scope["type"] == "http" and scope["method"] in ("POST", "PUT", "PATCH"):
            most = self.limits.upload_mb * 1_000_000 + 100_000 if is_upload else _BODY_MB * 1_000_000
            if not is_upload:
                receive, refusal = await self._checked_body(receive, most, scope["path"])
        if refusal is not None:
            return await _refuse(send, *refusal)
        self._uploading += is_upload
        try:
            return await self.app(scope, receive, _Answer(send))
        except self._gone:
            return None  # nobody is there to hear of it, and it is no fault of ours
        except RuntimeError as error:
            if not isinstance(error.__cause__, self._said):
                raise
            await send({"type": "http.response.body", "body": b""})  # the stream has said it, and ends
        finally:
            self._uploading -= is_upload
            if is_upload and not self._uploading:
                self._remove_broken_uploads()

    async def _checked_body(self, receive, most: int, path: str) -> tuple[Callable, tuple[int, str] | None]:
        """The body to be received again, and what is wrong with it."""
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                break
            body, more = body + message.get("body", b""), message.get("more_body", False)
            if len(body) > most:
                return receive, (413, f"A request may hold {most // 1_000_000} MB.")
        given = [{"type": "http.request", "body": body, "more_body": False}]

        async def again():
            return given.pop() if given else await receive()

        return again, self._wrong_with(body, path)

    def _wrong_with(self, body: bytes, path: str) -> tuple[int, str] | None:
        try:
            content = json.loads(body) if body else {}
            json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError):
            return 400, "The body of a request must be JSON, without NaN and halves of characters."
        if not isinstance(content, dict):
            return None
        if any(re.match(r"\s*([a-z][a-z0-9+.-]*:|//)", file, re.IGNORECASE) for file in _paths(content)):
            return 403, "Files are taken from uploads alone: this app fetches nothing from elsewhere."
        return self._wrong_call(content, path)

    def _wrong_call(self, content: dict, path: str) -> tuple[int, str] | None:
        """Whether a function is called, by a number in the content or a name in the path, as it cannot be."""
        called = _CALL.search(path)
        session = content.get("session_hash")
        needs_session = called is not None and called[1] != "call"
        if (session is not None or needs_session) and not (isinstance(session, str) and _SESSION.fullmatch(session)):
            return 422, "`session_hash` must be the name of a page: letters and digits."
        number = content.get("fn_index")
        if called is not None and (number is None or called[1] == "call"):
            function = self._named.get(called[2])
        elif number is not None:
            function = self.functions.get(number) if type(number) is int else None
        else:
            return None
        if function is None:
            return 404, "There is no such function."
        least = sum(type(component).__name__ != "State" for component in function.inputs)
        if isinstance(content.get("data"), list) and len(content["data"]) < least:
            return 422, f"This function takes {least} values in `data`."
        return None

    def _remove_broken_uploads(self) -> None:
        """Gradio moves what has arrived to a folder of its own; what is left at the place where it arrives was broken
        off."""
        for file in self.folder.glob("gradio/tmp*"):
            if file.is_file():
                file.unlink(missing_ok=True)

    def _refusal(self, scope) -> tuple[int, str] | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        foreign = self.rule.refusal(headers.get(b"host"), headers.get(b"origin"))
        if foreign is not None:
            return 403, foreign
        path = unquote(scope["path"])
        if "/proxy=" in path or "/file=http" in path.lower():
            return 403, "This app fetches nothing from elsewhere."
        size = headers.get(b"content-length", "")
        if not _is_upload(scope):
            too_large = size.isdigit() and int(size) > _BODY_MB * 1_000_000
            return (413, f"A request may hold {_BODY_MB} MB.") if too_large else None
        if not size.isdigit():
            return 411, "An upload must say how large it is."
        if int(size) > self.limits.upload_mb * 1_000_000 + 100_000:  # with what the form adds
            return 413, f"At most {self.limits.upload_mb} MB can be uploaded at once."
        stored = _stored_bytes(self.folder)
        free = shutil.disk_usage(self.folder).free - _ROOM_MB * 1_000_000
        if stored + int(size) > self.limits.stored_mb * 1_000_000 or int(size) > free:
            minutes = max(1, round(self.limits.keep_minutes))
            return 503, f"There is no room for uploads at the moment: try again in {minutes} minutes at the latest."
        return None


def _below(folder: Path) -> list[Path]:
    """Files and folders in a folder, before the folders that hold them; what others remove meanwhile is left out."""
    walked = os.walk(folder, topdown=False)
    return [Path(place, name) for place, folders, files in walked for name in [*files, *folders]]


def _stored_bytes(folder: Path) -> int:
    total = 0
    for path in _below(folder):
        with suppress(FileNotFoundError):
            total += 0 if path.is_dir() else path.stat().st_size
    return total


def _is_upload(scope) -> bool:
    return scope["type"] == "http" and scope["method"] == "POST" and scope["path"].rstrip("/").endswith("/upload")


def _paths(content) -> Iterator[str]:
    """All entries called `path`, which is where Gradio looks for files."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if isinstance(value.get("path"), str):
                yield value["path"]
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


async def _refuse(send, code: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    if code == 503:
        headers.append((b"retry-after", b"60"))
    await send({"type": "http.response.start", "status": code, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


class _Answer:
    """Sends an answer on with the headers of a guarded page. HTML is held back till it is complete: the policy names
    its scripts."""

    def __init__(self, send: Callable):
        self._send, self._start, self._html = send, None, b""

    async def __call__(self, message) -> None:
        if message["type"] == "http.response.start":
            kind = dict(message.get("headers", ())).get(b"content-type", b"")
            if kind.startswith(b"text/html"):
                self._start = message
                return
            message = _with_headers(message, b"")
        elif message["type"] == "http.response.body" and self._start is not None:
            self._html += message.get("body", b"")
            if message.get("more_body"):
                return
            await self._send(_with_headers(self._start, self._html))
            message = {**message, "body": self._html}
        await self._send(message)


def _with_headers(message: dict, html: bytes) -> dict:
    digests = [
        base64.b64encode(hashlib.sha256(script).digest()).decode()
        for script in _SCRIPTS.findall(html + SCRIPT.encode())
    ]
    policy = _POLICY.format(scripts="".join(f" 'sha256-{digest}'" for digest in digests))
    extra = [(b"content-security-policy", policy.encode()), (b"x-content-type-options", b"nosniff")]
    extra += [(b"referrer-policy", b"no-referrer")]
    return {**message, "headers": [*message.get("headers", ()), *extra]}


def sweep(folder: Path, seconds: float, now: float | None = None) -> None:
    """
    Deletes what lies in a folder for too long, of whoever it is: uploads, pictures and results. Uploads that were
    broken off go sooner.

    Args:
        folder (`Path`): of the app.
        seconds (`float`): how long files are kept.
        now (`float`, *optional*): the time, in seconds since the epoch.
    """
    now = time.time() if now is None else now
    for path in _below(folder):
        if path.relative_to(folder).parts[0].startswith(WORK):
            continue  # goes when the work is done
        try:
            is_part = path.parent == folder / "gradio" and path.name.startswith("tmp")
            age = now - path.stat().st_mtime
            if path.is_dir():
                if age > seconds and path.parent != folder:
                    path.rmdir()
            elif age > (min(_STALE_SECONDS, seconds) if is_part else seconds):
                path.unlink()
        except OSError:  # somebody else was faster, or the folder is not empty
            continue


def _keep_swept(folder: Path, app: DemoApp, ended: threading.Event) -> None:
    seconds = 60 * app.limits.keep_minutes
    while not ended.wait(max(1.0, min(60.0, seconds / 4))):
        sweep(folder, seconds)
        app.sessions.sweep()


def serve(
    load: Callable[[str], KaleidoViewSynthesisPipeline],
    checkpoint: str = "bundled",
    host: str = "127.0.0.1",
    port: int = 7860,
    limits: Limits | None = None,
    allow_origin: Sequence[str] = (),
) -> None:
    """
    Serves the page until it is interrupted. Needs `pip install kaleido-diffusers[demo]`.

    Args:
        load (`Callable`): makes the pipeline of a checkpoint's name, folder or Hub id.
        checkpoint (`str`, defaults to `"bundled"`): the one to run.
        host (`str`, defaults to `"127.0.0.1"`): address to listen on; `0.0.0.0` for all.
        port (`int`, defaults to 7860): port to listen on.
        limits (`Limits`, *optional*): what visitors may ask.
        allow_origin (`Sequence[str]`): origins under which browsers know the page, see [`OriginRule`].
    """
    rule = OriginRule(allow_origin)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # of onnxruntime, which diffusers imports where it is installed
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the folder is removed then, too
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="kaleido-demo-", ignore_cleanup_errors=True) as root:
        cache = Path(root) / "gradio"
        cache.mkdir()
        os.environ["GRADIO_TEMP_DIR"] = str(cache)
        os.environ["GRADIO_EXAMPLES_CACHE"] = str(cache / "examples")
        try:
            import gradio as gr
            import plotly  # noqa: F401
            from starlette.middleware import Middleware
        except ImportError as error:
            raise ImportError("The app needs Gradio and plotly: pip install 'kaleido-diffusers[demo]'.") from error
        from .page import build_page

        app, ended = DemoApp(load, Path(root), checkpoint, limits), threading.Event()
        page = build_page(app)
        guard = Middleware(Guard, folder=Path(root), limits=limits, rule=rule, functions=page.fns)
        threading.Thread(target=_keep_swept, args=(Path(root), app, ended), daemon=True).start()
        page.launch(
            prevent_thread_lock=True,
            server_name=host,
            server_port=port,
            share=False,
            show_error=False,
            quiet=True,
            ssr_mode=False,
            pwa=False,
            max_threads=limits.waiting + _THREADS,
            run_history=False,
            enable_monitoring=False,
            footer_links=[],
            allowed_paths=[],
            max_file_size=limits.upload_mb * 1_000_000,
            theme=gr.themes.Default(font=_FONTS, font_mono=("ui-monospace", "monospace")),
            css=STYLE + path_styles(),
            head=SCRIPT,
            app_kwargs={"middleware": [guard], "docs_url": None},
        )
        try:
            print(f"serving on http://{host}:{port} (Ctrl-C ends it)", flush=True)
            page.block_thread()
        except KeyboardInterrupt:  # between the two
            page.close(verbose=False)
        finally:
            ended.set()
