"""Serving the viewer's page to those who may see it."""

import inspect
import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from http import HTTPStatus

from ..web.origins import OriginRule


__all__ = ["serve"]


def serve(host: str, port: int, rule: OriginRule):
    """A server of viser's that answers allowed pages alone.

    Args:
        host (`str`): address to serve on.
        port (`int`): likewise; 0 takes a free one.
        rule ([`OriginRule`]): whose requests are answered.
    """
    try:
        import viser
    except ImportError as error:
        raise ImportError("The viewer needs viser: pip install 'kaleido-diffusers[demo]'.") from error

    class Server(viser.ViserServer):
        """Without the tunnel to a public server that any browser could ask for, and silent: viser prints its address
        and its end although it is told not to."""

        def __init__(self, **options):
            with redirect_stdout(io.StringIO()):
                super().__init__(**options)

        def stop(self) -> None:
            with redirect_stdout(io.StringIO()):
                super().stop()

        def request_share_url(self, *_args, **_options) -> None:
            return None

    with _only_own_pages(rule):
        return Server(host=host, port=port, label="Kaleido", verbose=False)


@contextmanager
def _only_own_pages(rule: OriginRule) -> Iterator[None]:
    """Servers that are started meanwhile refuse other requests. viser has no setting for it, and its pictures are on
    their way before it says that a browser has come."""
    import websockets.asyncio.server as library

    serve = library.serve

    def guarded(*arguments, process_request, **options):
        async def checked(connection, request):
            refusal = rule.refusal(request.headers.get("Host"), request.headers.get("Origin"))
            if refusal is not None:
                return connection.respond(HTTPStatus.FORBIDDEN, refusal)
            answer = process_request(connection, request)
            return await answer if inspect.isawaitable(answer) else answer

        return serve(*arguments, process_request=checked, **options)

    library.serve = guarded
    try:
        yield
    finally:
        library.serve = serve
