"""Which browsers a server on this machine answers: those that show its own page."""

import ipaddress
import os
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit


__all__ = ["OriginRule"]

_DEFAULT_PORTS = {"http": "80", "https": "443"}


class OriginRule:
    """
    What a request must say of itself. Any web page may send requests to `localhost`, but browsers add the page's
    `Origin`; and a foreign name may be made to lead to this machine (DNS rebinding), but browsers keep it as `Host`.
    So `Host` must be an address (which nobody can rebind), `localhost`, this machine's name or a name that was
    allowed, and `Origin` the very same place, or an allowed one. Programs that are no browsers send no `Origin`.

    Args:
        allowed (`Sequence[str]`, *optional*):
            Further origins, such as `https://views.example.org`: where a proxy serves the page. A Hugging Face Space
            allows its own. `ValueError` for what is no origin.
    """

    def __init__(self, allowed: Sequence[str] = ()):
        self._origins = set()
        space = os.environ.get("SPACE_HOST")
        for origin in (*allowed, *([f"https://{space}"] if space else [])):
            parts = urlsplit(origin)
            if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or parts.path not in ("", "/"):
                raise ValueError(f"An allowed origin looks like https://views.example.org, got {origin!r}.")
            self._origins.add(_place(origin))
        self._names = {"localhost", socket.gethostname().lower(), socket.getfqdn().lower()}
        self._names |= {host for host, _ in self._origins}

    def refusal(self, host: str | None, origin: str | None) -> str | None:
        """
        Why a request is refused, if it is.

        Args:
            host (`str`, *optional*): its header `Host`.
            origin (`str`, *optional*): its header `Origin`.
        """
        try:
            name, port = _place(f"http://{host}")
            if not (name in self._names or name.endswith(".localhost") or _is_address(name)):
                return f"This server is not {name}. If it should be, start it with --allow-origin https://{name}."
            if origin is None:
                return None
            there = _place(origin)
        except ValueError:
            return "The headers Host and Origin of this request cannot be read."
        ports = {port, "443"} if port == "80" else {port}  # behind a proxy that speaks TLS, Host tells no port
        if there in self._origins or there[0] == name and there[1] in ports:
            return None
        return "Pages of other sites may not use this server. If this one may, start it with --allow-origin."


def _place(origin: str) -> tuple[str, str]:
    """Name and port; `ValueError` if there is none."""
    parts = urlsplit(origin)
    if not parts.hostname or parts.scheme not in _DEFAULT_PORTS:
        raise ValueError(f"{origin!r} is no origin.")
    return parts.hostname.lower(), str(parts.port or _DEFAULT_PORTS[parts.scheme])


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
