"""Serving the page: in a folder of its own, to browsers that are told to ask nobody else."""

import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

from ..pipelines.pipeline_kaleido import KaleidoViewSynthesisPipeline
from .app import AUTO, DemoApp
from .limits import Limits
from .texts import SCRIPT, STYLE


__all__ = ["Guard", "serve"]

_FONTS = ("system-ui", "sans-serif")
_POLICY = (  # what a page of ours may load, and from where: from here alone
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' data: blob:; object-src 'none'"
)


class Guard:
    """
    ASGI middleware around Gradio's routes: forbids browsers to load anything from elsewhere, refuses to fetch or pass
    on what lies elsewhere, and uploads that are larger than allowed or that the disk has no room for.

    Args:
        app (`Callable`): the ASGI application.
        folder (`Path`): where uploads and results lie.
        limits (`Limits`): what is allowed.
    """

    def __init__(self, app: Callable, folder: Path, limits: Limits):
        self.app, self.folder, self.limits = app, folder, limits

    async def __call__(self, scope, receive, send) -> None:
        """Answers a request, as ASGI has it: its `scope`, and how to `receive` and `send` messages."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        refusal = self._refusal(scope)
        if refusal is not None:
            code, text = refusal
            headers = [(b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": code, "headers": headers})
            return await send({"type": "http.response.body", "body": text.encode()})

        async def guarded(message) -> None:
            if message["type"] == "http.response.start":
                extra = [(b"content-security-policy", _POLICY.encode()), (b"x-content-type-options", b"nosniff")]
                extra += [(b"referrer-policy", b"no-referrer")]
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        return await self.app(scope, receive, guarded)

    def _refusal(self, scope) -> tuple[int, str] | None:
        path = unquote(scope["path"])
        if "/proxy=" in path or "/file=http" in path.lower():
            return 403, "This app fetches nothing from elsewhere."
        if scope["method"] != "POST" or not path.rstrip("/").endswith("/upload"):
            return None
        size = dict(scope["headers"]).get(b"content-length", b"")
        if not size.isdigit():
            return 411, "An upload must say how large it is."
        if int(size) > self.limits.upload_mb * 1_000_000 + 100_000:  # with what the form adds
            return 413, f"At most {self.limits.upload_mb} MB can be uploaded at once."
        stored = sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())
        if stored + int(size) > self.limits.stored_mb * 1_000_000:
            return 503, "There is no room for uploads at the moment: try again later."
        return None


def serve(
    load: Callable[[str], KaleidoViewSynthesisPipeline],
    checkpoint: str = AUTO,
    host: str = "127.0.0.1",
    port: int = 7860,
    limits: Limits | None = None,
) -> None:
    """
    Serves the page until it is interrupted. Needs `pip install kaleido-diffusers[demo]`.

    Args:
        load (`Callable`): makes the pipeline of a checkpoint's name, folder or Hub id.
        checkpoint (`str`, defaults to `"auto"`): the one to run; `auto` takes what knows the capture best.
        host (`str`, defaults to `"127.0.0.1"`): address to listen on; `0.0.0.0` for all.
        port (`int`, defaults to 7860): port to listen on.
        limits (`Limits`, *optional*): what visitors may ask.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
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

        page = build_page(DemoApp(load, Path(root), checkpoint, limits))
        page.launch(
            prevent_thread_lock=True,
            server_name=host,
            server_port=port,
            share=False,
            show_error=False,
            quiet=True,
            ssr_mode=False,
            pwa=False,
            run_history=False,
            enable_monitoring=False,
            footer_links=[],
            allowed_paths=[],
            max_file_size=limits.upload_mb * 1_000_000,
            theme=gr.themes.Default(font=_FONTS, font_mono=("ui-monospace", "monospace")),
            css=STYLE,
            head=SCRIPT,
            app_kwargs={"middleware": [Middleware(Guard, folder=Path(root), limits=limits)], "docs_url": None},
        )
        print(f"serving on http://{host}:{port} (Ctrl-C ends it)", flush=True)
        page.block_thread()
