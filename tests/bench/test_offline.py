from __future__ import annotations

import os
import socket
import sys
import threading
import time
import types
import urllib.request
from collections.abc import Iterator

import pytest

import bench.offline
from bench.errors import UserError
from bench.offline import forbid_network, network_available, permit_network


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for variable in bench.offline.OFFLINE_VARIABLES:
        monkeypatch.setenv(variable, "0")
    hub = types.ModuleType("huggingface_hub.constants")
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", hub)
    forbid_network()
    yield
    permit_network()


def test_forbid_network_refuses_a_connection(forbidden: None, listener: socket.socket) -> None:
    with socket.socket() as client, pytest.raises(UserError, match=r"--offline.*socket.connect to \('127.0.0.1'"):
        client.connect(listener.getsockname())
    with socket.socket() as client, pytest.raises(UserError, match="--offline"):
        client.connect_ex(listener.getsockname())


def test_forbid_network_refuses_a_datagram(forbidden: None) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client, pytest.raises(UserError, match=r"socket\.sendto"):
        client.sendto(b"x", ("127.0.0.1", 9))


def test_forbid_network_refuses_a_name_look_up(forbidden: None) -> None:
    with pytest.raises(UserError, match=r"socket\.getaddrinfo to 'weights\.invalid'"):
        socket.getaddrinfo("weights.invalid", 443)


def test_forbid_network_stops_urllib_with_its_own_message(forbidden: None) -> None:
    with pytest.raises(UserError, match="python -m bench fetch"):
        urllib.request.urlopen("http://weights.invalid/x", timeout=1)


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs sockets of this machine only")
def test_forbid_network_leaves_sockets_of_this_machine(forbidden: None) -> None:
    first, second = socket.socketpair()
    with first, second:
        first.send(b"x")
        assert second.recv(1) == b"x"


def test_forbid_network_switches_the_hub_clients_offline(forbidden: None) -> None:
    assert os.environ["HF_HUB_OFFLINE"] == os.environ["TRANSFORMERS_OFFLINE"] == "1"
    assert sys.modules["huggingface_hub.constants"].HF_HUB_OFFLINE is True


def test_permit_network_lets_sockets_work_again(forbidden: None, listener: socket.socket) -> None:
    permit_network()
    socket.create_connection(listener.getsockname()).close()


def probe(monkeypatch: pytest.MonkeyPatch, address: tuple[str, int]) -> bool:
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    monkeypatch.setattr(bench.offline, "PROBED_HOST", address)
    return network_available(timeout_s=1.0)


def test_network_available_is_true_where_the_host_answers(
    monkeypatch: pytest.MonkeyPatch, listener: socket.socket
) -> None:
    assert probe(monkeypatch, listener.getsockname())


def test_network_available_is_false_where_the_host_refuses(
    monkeypatch: pytest.MonkeyPatch, listener: socket.socket
) -> None:
    address = listener.getsockname()
    listener.close()
    assert not probe(monkeypatch, address)


def test_network_available_is_false_in_time_where_the_name_look_up_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def hang(*_: object, **__: object) -> socket.socket:
        released.wait(20)
        raise OSError("released")

    monkeypatch.setattr(socket, "create_connection", hang)
    start_s = time.monotonic()
    assert not probe(monkeypatch, ("weights.invalid", 443))
    assert time.monotonic() - start_s < 10
    released.set()


def test_network_available_is_false_without_asking_when_forbidden(
    forbidden: None, monkeypatch: pytest.MonkeyPatch, listener: socket.socket
) -> None:
    assert not probe(monkeypatch, listener.getsockname())


@pytest.mark.parametrize("scheme", ["http://", ""])
def test_network_available_asks_the_proxy_that_is_set(
    monkeypatch: pytest.MonkeyPatch, listener: socket.socket, scheme: str
) -> None:
    host, port = listener.getsockname()
    monkeypatch.setattr(urllib.request, "getproxies", lambda: {"https": f"{scheme}{host}:{port}"})
    monkeypatch.setattr(bench.offline, "PROBED_HOST", ("weights.invalid", 443))
    assert network_available(timeout_s=1.0)
