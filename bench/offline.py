"""The guarantee behind `--offline`: no byte leaves this machine, and a try to send one is an error that says so."""

from __future__ import annotations

import os
import socket
import sys
import threading
import urllib.request
from urllib.parse import urlsplit

from bench.errors import UserError

PROBED_HOST = ("github.com", 443)  # the host that the Inception weights come from
GUARDED_EVENTS = frozenset(
    {
        "socket.connect",
        "socket.getaddrinfo",
        "socket.gethostbyaddr",
        "socket.gethostbyname",
        "socket.sendmsg",
        "socket.sendto",
    }
)
OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


class _Guard:
    """Whether the network is forbidden; audit hooks can't be removed, so the one hook asks this flag."""

    forbidden = False
    hooked = False


def _refuse_network(event: str, arguments: tuple[object, ...]) -> None:
    if not _Guard.forbidden or event not in GUARDED_EVENTS:
        return
    first = arguments[0]
    if isinstance(first, socket.socket) and first.family not in (socket.AF_INET, socket.AF_INET6):
        return
    # Loopback is refused too: a proxy that listens on this machine would carry the bytes out.
    target = arguments[1] if isinstance(first, socket.socket) else first
    raise UserError(
        f"network use was forbidden with --offline, but something tried {event} to {target!r}. "
        "Get the file first with `python -m bench fetch`, or leave --offline out."
    )


def forbid_network() -> None:
    """Make every use of an internet socket in this process a `UserError`, and switch the model hubs' clients offline.

    Sockets between processes of this machine (AF_UNIX) still work. The hook sees sockets that Python opens; the hub
    clients' compiled downloaders are stopped by the variables `HF_HUB_OFFLINE` and `TRANSFORMERS_OFFLINE`, which child
    processes inherit. The hook they don't inherit: a worker that is spawned has to call this too.
    """
    for variable in OFFLINE_VARIABLES:
        os.environ[variable] = "1"
    hub = sys.modules.get("huggingface_hub.constants")
    if hub is not None:  # it read the variable when it was imported
        hub.__dict__["HF_HUB_OFFLINE"] = True
    _Guard.forbidden = True
    if not _Guard.hooked:
        sys.addaudithook(_refuse_network)
        _Guard.hooked = True


def permit_network() -> None:
    """Let sockets work again; the environment variables stay as they are."""
    _Guard.forbidden = False


def _probed_address() -> tuple[str, int]:
    proxy = urllib.request.getproxies().get("https")
    parts = urlsplit(proxy if "//" in proxy else f"//{proxy}") if proxy else None
    return (parts.hostname, parts.port or 80) if parts and parts.hostname else PROBED_HOST


def network_available(timeout_s: float = 2.0) -> bool:
    """Whether one TCP connection to the weights' host, or to the proxy that is set, opens in time; never raises."""
    if _Guard.forbidden:
        return False
    opened = threading.Event()

    def probe() -> None:
        try:
            socket.create_connection(_probed_address(), timeout=timeout_s).close()
        except (OSError, ValueError):
            return
        opened.set()

    # In a thread, since the time that a name look-up takes can't be limited.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return opened.is_set()
