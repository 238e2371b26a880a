from __future__ import annotations

import errno
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typing_extensions import Buffer

import bench.fetch
from bench.errors import UserError
from bench.fetch import RemoteFile, UnreachableError, cache_dir, fetch

BODY = bytes(range(256)) * 1200
SHA256 = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        if self.headers.get("If-Range", self.server.etag) != self.server.etag:
            asked = None
        behaviour = self.server.script.pop(0) if len(self.server.script) > 1 else self.server.script[0]
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if isinstance(behaviour, int):
            self.answer(behaviour, b"", {})
        elif behaviour == "ignore range" or not asked:
            self.answer(200, self.server.body, {}, behaviour)
        elif start >= len(self.server.body):
            self.answer(416, b"", {"Content-Range": f"bytes */{len(self.server.body)}"})
        else:
            first = 0 if behaviour == "wrong range" else start
            span = f"bytes {first}-{len(self.server.body) - 1}/{len(self.server.body)}"
            self.answer(206, self.server.body[first:], {"Content-Range": span}, behaviour)

    def answer(self, status: int, body: bytes, headers: dict[str, str], behaviour: str | int = "") -> None:
        if behaviour == "slow":
            time.sleep(1.0)
        self.send_response(status)
        if self.server.etag:
            self.send_header("ETag", self.server.etag)
        for name, value in headers.items():
            self.send_header(name, value)
        if behaviour == "chunked, too long":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for piece in (body, b"more", b""):
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            return
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:100_000] if behaviour in ("break off", "stall") else body)
        self.wfile.flush()
        if behaviour == "stall":
            self.server.released.wait(10)
        if behaviour in ("break off", "stall"):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002, the name that http.server gives it
        pass


class Server(ThreadingHTTPServer):
    """Answers its first request as the first word of `script` says, and so on; the last word goes on for ever."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = BODY
        self.script: list[str | int] = ["whole"]
        self.ranges: list[str | None] = []
        self.etag: str | None = None
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/weights.pth"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(bench.fetch, "BACKOFF_S", 0.0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.released.set()
        running.shutdown()
        thread.join()


def spec_for(server: Server, sha256: str = SHA256, size_bytes: int = len(BODY)) -> RemoteFile:
    return RemoteFile(server.url, "weights.pth", sha256, size_bytes, "none", "tests")


def test_fetch_downloads_once_and_then_asks_nobody(server: Server, tmp_path: Path) -> None:
    path = fetch(spec_for(server), tmp_path / "made" / "for it", offline=False)
    assert path.read_bytes() == BODY
    assert fetch(spec_for(server), tmp_path / "made" / "for it", offline=False) == path
    assert server.ranges == [None]
    assert not list(path.parent.glob("*.part"))


def test_fetch_resumes_after_the_server_breaks_off(server: Server, tmp_path: Path) -> None:
    server.script = ["break off", "break off", "whole"]
    assert fetch(spec_for(server), tmp_path, offline=False).read_bytes() == BODY
    assert server.ranges == [None, "bytes=100000-", "bytes=200000-"]


def test_fetch_resumes_what_an_earlier_process_left(server: Server, tmp_path: Path) -> None:
    (tmp_path / "weights.pth.part").write_bytes(BODY[:777])
    assert fetch(spec_for(server, size_bytes=0), tmp_path, offline=False).read_bytes() == BODY
    assert server.ranges == ["bytes=777-"]


def test_fetch_gives_up_after_bounded_attempts(server: Server, tmp_path: Path) -> None:
    server.script = [503]
    with pytest.raises(UnreachableError, match="HTTP status 503, in attempt 6"):
        fetch(spec_for(server), tmp_path, offline=False)
    assert len(server.ranges) == 6


def test_fetch_keeps_what_came_for_the_next_call(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.fetch, "ATTEMPTS", 2)
    server.script = ["break off", "break off", "whole"]
    with pytest.raises(UnreachableError, match=f"broke off after 200000 of {len(BODY)} bytes"):
        fetch(spec_for(server), tmp_path, offline=False)
    assert fetch(spec_for(server), tmp_path, offline=False).read_bytes() == BODY
    assert server.ranges[-1] == "bytes=200000-"


def test_fetch_goes_on_after_a_stall(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.fetch, "STALL_S", 0.2)
    server.script = ["stall", "whole"]
    start_s = time.monotonic()
    assert fetch(spec_for(server), tmp_path, offline=False).read_bytes() == BODY
    assert time.monotonic() - start_s < 5
    assert server.ranges == [None, "bytes=100000-"]


def test_fetch_reports_a_missing_page_at_once(server: Server, tmp_path: Path) -> None:
    server.script = [404]
    with pytest.raises(UserError, match=r"404 \(Not Found\)") as caught:
        fetch(spec_for(server), tmp_path, offline=False)
    assert not isinstance(caught.value, UnreachableError)
    assert str(tmp_path / "weights.pth") in str(caught.value)
    assert len(server.ranges) == 1


def test_fetch_starts_anew_when_the_range_is_refused(server: Server, tmp_path: Path) -> None:
    (tmp_path / "weights.pth.part").write_bytes(BODY + b"too much")
    assert fetch(spec_for(server, size_bytes=0), tmp_path, offline=False).read_bytes() == BODY
    assert server.ranges == [f"bytes={len(BODY) + 8}-", None]


@pytest.mark.parametrize("behaviour", ["ignore range", "wrong range"])
def test_fetch_starts_anew_when_another_range_comes(server: Server, tmp_path: Path, behaviour: str) -> None:
    (tmp_path / "weights.pth.part").write_bytes(b"x" * 500)
    server.script = [behaviour, "whole"]
    assert fetch(spec_for(server), tmp_path, offline=False).read_bytes() == BODY


@pytest.mark.parametrize("pinned", ["0" * 64, "0123abcd"])
def test_fetch_refuses_wrong_content_and_tells_both_hashes(server: Server, tmp_path: Path, pinned: str) -> None:
    with pytest.raises(UserError, match=f"SHA-256 {SHA256}, expected {pinned}"):
        fetch(spec_for(server, pinned), tmp_path, offline=False)
    assert not list(tmp_path.glob("weights*"))


@pytest.mark.parametrize("difference", [-1, 1])
def test_fetch_refuses_a_body_of_another_length_before_it_comes(
    server: Server, tmp_path: Path, difference: int
) -> None:
    size_bytes = len(BODY) + difference
    with pytest.raises(UserError, match=f"offers {len(BODY)} bytes, the pinned file has {size_bytes}"):
        fetch(spec_for(server, size_bytes=size_bytes), tmp_path, offline=False)
    assert not list(tmp_path.glob("weights*"))


def test_fetch_stops_a_body_that_goes_on_too_long(server: Server, tmp_path: Path) -> None:
    server.script = ["chunked, too long"]
    with pytest.raises(UserError, match="sends more than"):
        fetch(spec_for(server), tmp_path, offline=False)
    assert not list(tmp_path.glob("weights*"))


def test_fetch_checks_a_pinned_prefix(server: Server, tmp_path: Path) -> None:
    assert fetch(spec_for(server, SHA256[:8]), tmp_path, offline=False).read_bytes() == BODY


def test_fetch_pins_at_first_use_and_then_refuses_other_content(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fetch(spec_for(server, "", 0), tmp_path, offline=False)
    assert json.loads((tmp_path / "pins.json").read_text()) == {server.url: SHA256}
    assert f"from now on only {SHA256} is accepted" in capsys.readouterr().err
    assert fetch(spec_for(server, "", 0), tmp_path, offline=True) == path
    path.unlink()
    server.body = BODY[::-1]
    with pytest.raises(UserError, match=f"expected {SHA256}.*pins.json"):
        fetch(spec_for(server, "", 0), tmp_path, offline=False)


def test_fetch_never_joins_two_versions_of_a_file_without_a_known_hash(server: Server, tmp_path: Path) -> None:
    (tmp_path / "weights.pth.part").write_bytes(b"of an older version")
    assert fetch(spec_for(server, "", 0), tmp_path, offline=False).read_bytes() == BODY
    assert server.ranges == [None]


def test_fetch_resumes_an_unpinned_file_under_the_servers_validator(server: Server, tmp_path: Path) -> None:
    server.etag, server.script = '"v1"', ["break off", "whole"]
    assert fetch(spec_for(server, "", 0), tmp_path, offline=False).read_bytes() == BODY
    assert server.ranges == [None, "bytes=100000-"]
    assert not list(tmp_path.glob("*.etag"))


@pytest.mark.parametrize("etag", ['"v2"', 'W/"v1"', None])
def test_fetch_starts_anew_where_the_validator_has_changed_or_is_weak(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, etag: str | None
) -> None:
    monkeypatch.setattr(bench.fetch, "ATTEMPTS", 1)
    server.etag, server.script = '"v1"' if etag == '"v2"' else etag, ["break off", "whole"]
    with pytest.raises(UnreachableError, match="broke off"):
        fetch(spec_for(server, "", 0), tmp_path, offline=False)
    server.etag, server.body = etag, BODY[::-1]
    assert fetch(spec_for(server, "", 0), tmp_path, offline=False).read_bytes() == BODY[::-1]


def test_fetch_knows_a_part_that_is_whole(server: Server, tmp_path: Path) -> None:
    server.etag = '"v1"'
    (tmp_path / "weights.pth.part").write_bytes(BODY)
    (tmp_path / "weights.pth.part.etag").write_text('"v1"')
    assert fetch(spec_for(server, "", 0), tmp_path, offline=False).read_bytes() == BODY
    assert server.ranges == [f"bytes={len(BODY)}-"]


def test_fetch_refuses_a_web_page_instead_of_an_unpinned_file(server: Server, tmp_path: Path) -> None:
    server.body = b"\n<!DOCTYPE html><html><title>Virus scan warning</title>"
    with pytest.raises(UserError, match="web page instead of the file"):
        fetch(spec_for(server, "", 0), tmp_path, offline=False)
    assert not list(tmp_path.glob("weights*"))
    assert not (tmp_path / "pins.json").exists()


def test_fetch_replaces_a_damaged_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(BODY[:-1])
    assert fetch(spec_for(server), tmp_path, offline=False).read_bytes() == BODY


@pytest.mark.parametrize(("content", "state"), [(None, "is not there"), (b"damaged", "without the pinned SHA-256")])
def test_fetch_offline_never_asks_the_server(server: Server, tmp_path: Path, content: bytes | None, state: str) -> None:
    if content is not None:
        (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(UnreachableError, match=state):
        fetch(spec_for(server), tmp_path, offline=True)
    assert server.ranges == []


def test_fetch_needs_no_write_permission_for_a_cached_file(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights.pth").write_bytes(BODY)
    monkeypatch.setattr(bench.fetch, "FileLock", None)
    assert fetch(spec_for(server), tmp_path, offline=False).read_bytes() == BODY


def test_fetch_reports_a_cache_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="STYLEBENCH_CACHE"):
        fetch(spec_for(server), tmp_path / "file" / "cache", offline=False)


def test_append_writes_all_where_the_disk_takes_a_part(tmp_path: Path) -> None:
    class Sluggish(io.FileIO):
        def write(self, b: Buffer, /) -> int:
            return super().write(bytes(b)[:1000])

    with Sluggish(tmp_path / "x", "wb") as stream:
        bench.fetch._append(stream, BODY, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == BODY


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device /dev/full")
def test_fetch_reports_a_disk_that_gets_full(server: Server, tmp_path: Path) -> None:
    (tmp_path / "weights.pth.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match=os.strerror(errno.ENOSPC)):
        fetch(spec_for(server), tmp_path, offline=False)
    assert len(server.ranges) == 1


def test_fetch_asks_for_space_before_it_starts(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match=f"1000 bytes are free, {len(BODY)} are needed"):
        fetch(spec_for(server), tmp_path, offline=False)


def test_fetch_reports_a_server_that_is_not_there_at_once(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        spec = RemoteFile(f"http://127.0.0.1:{closed.getsockname()[1]}/x", "x", SHA256, 0, "none", "tests")
        with pytest.raises(UnreachableError, match=r"refused.*in attempt 1"):
            fetch(spec, tmp_path, offline=False)


def test_fetch_downloads_once_for_two_processes(server: Server, tmp_path: Path) -> None:
    server.script = ["slow"]
    context = multiprocessing.get_context("spawn")
    arguments = (spec_for(server), tmp_path)
    processes = [context.Process(target=fetch, args=arguments, kwargs={"offline": False}) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    assert server.ranges == [None]
    assert (tmp_path / "weights.pth").read_bytes() == BODY


def test_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STYLEBENCH_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "stylebench"
    monkeypatch.setenv("STYLEBENCH_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("STYLEBENCH_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "stylebench"


@pytest.mark.parametrize(("sha256", "filename"), [("ABCD", "x"), ("0" * 65, "x"), ("", "../x")])
def test_remote_file_refuses_a_bad_pin_or_name(sha256: str, filename: str) -> None:
    with pytest.raises(ValueError, match="up to 64 small hex digits"):
        RemoteFile("https://x.invalid/x", filename, sha256, 0, "none", "tests")
