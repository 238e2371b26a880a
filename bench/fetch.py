"""One file over HTTP, once: resumed after a break, locked against a second process, held to its SHA-256."""

from __future__ import annotations

import errno
import functools
import hashlib
import http.client
import io
import json
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from filelock import FileLock, Timeout
from tqdm import tqdm

from bench.errors import UserError

ATTEMPTS = 6
BACKOFF_S = 1.0  # doubles from one attempt to the next
STALL_S = 30.0  # a server that sends nothing for so long has broken off
CHUNK_BYTES = 1 << 20
TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file to fetch; `sha256` is the whole digest, or its first digits, or empty where the publisher gives none."""

    url: str
    filename: str  # in the cache
    sha256: str
    size_bytes: int  # 0 where it is not known
    licence: str
    serves: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{0,64}", self.sha256) or Path(self.filename).name != self.filename:
            raise ValueError(
                f"{self.url}: sha256 must be up to 64 small hex digits and filename a bare name, got {self}"
            )


class UnreachableError(UserError):
    """The file is not in the cache and can't be had now; a later try may get it."""


class _BrokenOffError(Exception):
    """The body ended early, or the server is busy: worth another attempt."""


def cache_dir() -> Path:
    """Where downloads are kept: `STYLEBENCH_CACHE`, else `stylebench` in `XDG_CACHE_HOME` or `~/.cache`."""
    if chosen := os.environ.get("STYLEBENCH_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "stylebench"


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, 64 hex digits; computed again only if size or time of the file change."""
    status = path.stat()
    return _content_sha256(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _content_sha256(path: Path, _size_bytes: int, _mtime_ns: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def cached(spec: RemoteFile, cache: Path) -> Path | None:
    """The file in the cache if it is there with the pinned SHA-256; asks no network."""
    target, expected = cache / spec.filename, _expected_sha256(spec, cache)
    return target if expected and target.is_file() and file_sha256(target).startswith(expected) else None


def fetch(spec: RemoteFile, cache: Path, *, offline: bool, progress: bool = True) -> Path:
    """Return the cached file, downloading it if it is not there whole; its content always has the pinned SHA-256.

    Where no whole digest is known, that of the first download is recorded in `pins.json` in the cache, and other
    content is refused from then on. Raises `UnreachableError` if the file can't be had now, and `UserError` for what a
    later try would not mend: wrong content, a refused address, a full disk, a folder that can't be written.
    """
    if found := cached(spec, cache):
        return found
    target = cache / spec.filename
    if offline:
        state = "is there, but without the pinned SHA-256" if target.is_file() else "is not there"
        raise UnreachableError(f"{target} {state}, and the network is not to be asked for {spec.url}.")
    with _locked(cache):
        if cached(spec, cache) is None:  # the process that held the lock may have got it
            _download(spec, target, progress)
    return target


def _expected_sha256(spec: RemoteFile, cache: Path) -> str:
    pinned = "" if len(spec.sha256) == 64 else str(_read_pins(cache).get(spec.url, ""))
    return pinned if pinned.startswith(spec.sha256) else spec.sha256


def _read_pins(cache: Path) -> dict[str, str]:
    path = cache / "pins.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not a JSON object ({error}). Mend it, or remove it to pin anew.") from error


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}. What came so far is kept. "
            "Free some space, or set STYLEBENCH_CACHE to a folder that you can write."
        ) from error


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    lock = FileLock(cache / ".lock")
    with _disk_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"another process downloads into {cache}; waiting for it", file=sys.stderr)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _download(spec: RemoteFile, target: Path, progress: bool) -> None:
    part = target.with_name(f"{target.name}.part")
    for attempt in range(ATTEMPTS):
        try:
            _continue(spec, part, progress)
        except (_BrokenOffError, http.client.HTTPException, OSError) as error:
            unconnected = attempt == 0 and isinstance(error, urllib.error.URLError)
            if unconnected or attempt == ATTEMPTS - 1:  # without a network there is nothing to wait for
                raise UnreachableError(
                    f"cannot get {spec.url}: {error}, in attempt {attempt + 1}. Try again, it goes on from what came; "
                    f"or put the file at {target}."
                ) from error
            time.sleep(BACKOFF_S * 2**attempt)
        else:
            _accept(spec, part, target)
            return


def _continue(spec: RemoteFile, part: Path, progress: bool) -> None:
    had_bytes = part.stat().st_size if part.exists() else 0
    if had_bytes and had_bytes == spec.size_bytes:
        return
    headers = {"User-Agent": "stylebench", "Accept-Encoding": "identity"} | _resume_headers(spec, part, had_bytes)
    try:
        response = urllib.request.urlopen(urllib.request.Request(spec.url, headers=headers), timeout=STALL_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{had_bytes}":
            return  # all of it had come when an earlier process was killed
        _refused(spec, part, error.code)
    with response:
        if response.status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {had_bytes}-"):
            part.unlink(missing_ok=True)
            raise _BrokenOffError("the server sent another range than was asked for")
        _store(spec, part, response, progress)


def _resume_headers(spec: RemoteFile, part: Path, had_bytes: int) -> dict[str, str]:
    """Ask for the rest only where two versions of a file can't be joined: a digest or the server's validator tells."""
    validator = _validator_path(part)
    if had_bytes and validator.is_file():
        return {"Range": f"bytes={had_bytes}-", "If-Range": validator.read_text(encoding="utf-8")}
    return {"Range": f"bytes={had_bytes}-"} if had_bytes and spec.sha256 else {}


def _validator_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _remember_validator(part: Path, response: http.client.HTTPResponse) -> None:
    etag = response.headers.get("ETag", "")
    if etag.startswith('"'):  # a weak one (W/"...") may stand for other bytes
        _validator_path(part).write_text(etag, encoding="utf-8")
    else:
        _validator_path(part).unlink(missing_ok=True)


def _refused(spec: RemoteFile, part: Path, status: int) -> NoReturn:
    if status == 416:  # the kept part is longer than the file, so it is of another one
        part.unlink(missing_ok=True)
    if status == 416 or status in TRY_AGAIN:
        raise _BrokenOffError(f"HTTP status {status}")
    raise UserError(
        f"{spec.url}: HTTP status {status} ({http.client.responses.get(status, 'unknown')}). "
        f"If the file has moved, get it from its publisher and put it at {part.with_suffix('')}."
    )


def _store(spec: RemoteFile, part: Path, response: http.client.HTTPResponse, progress: bool) -> None:
    had_bytes = part.stat().st_size if response.status == 206 and part.exists() else 0
    length = response.headers.get("Content-Length")
    total_bytes = had_bytes + int(length) if length else spec.size_bytes or None
    if spec.size_bytes and total_bytes != spec.size_bytes:
        part.unlink(missing_ok=True)
        raise UserError(f"{spec.url}: the server offers {total_bytes} bytes, the pinned file has {spec.size_bytes}")
    with _disk_errors(part):
        free_bytes = shutil.disk_usage(part.parent).free
        if total_bytes is not None and free_bytes < total_bytes - had_bytes:
            raise OSError(errno.ENOSPC, f"{free_bytes} bytes are free, {total_bytes - had_bytes} are needed")
        _remember_validator(part, response)
        stream = io.FileIO(part, "ab" if had_bytes else "wb")
    disable = None if progress else True  # None: no bar where stderr is not a terminal
    bar = tqdm(total=total_bytes, initial=had_bytes, desc=spec.filename, unit="B", unit_scale=True, disable=disable)
    with stream, bar:
        while chunk := response.read1(CHUNK_BYTES):
            _append(stream, chunk, part)
            bar.update(len(chunk))
            if total_bytes is not None and stream.tell() > total_bytes:
                part.unlink()
                raise UserError(f"{spec.url}: the server sends more than the {total_bytes} bytes of the pinned file")
    if total_bytes is not None and part.stat().st_size < total_bytes:
        raise _BrokenOffError(f"the server broke off after {part.stat().st_size} of {total_bytes} bytes")


def _append(stream: io.FileIO, chunk: bytes, part: Path) -> None:
    rest = memoryview(chunk)
    with _disk_errors(part):
        while rest:
            rest = rest[stream.write(rest) :]


def _refuse_web_page(spec: RemoteFile, part: Path) -> None:
    with part.open("rb") as stream:
        start = stream.read(64).lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        part.unlink()
        raise UserError(
            f"{spec.url}: the server sent a web page instead of the file; it may want a visit in a browser. Get the "
            f"file from its publisher and put it at {part.with_suffix('')}."
        )


def _accept(spec: RemoteFile, part: Path, target: Path) -> None:
    _validator_path(part).unlink(missing_ok=True)
    _refuse_web_page(spec, part)
    digest, expected = file_sha256(part), _expected_sha256(spec, part.parent)
    if not digest.startswith(expected):
        part.unlink()
        raise UserError(
            f"{spec.url}: wrong content, SHA-256 {digest}, expected {expected}. The download was removed; try again. "
            f"If the publisher has changed the file on purpose, its pin is in {target.parent / 'pins.json'} or in the "
            "table of this program."
        )
    with _disk_errors(target):
        if len(expected) < 64:
            _pin(spec, digest, target.parent)
        part.replace(target)


def _pin(spec: RemoteFile, digest: str, cache: Path) -> None:
    path = cache / "pins.json"
    path.with_suffix(".part").write_text(json.dumps(_read_pins(cache) | {spec.url: digest}, indent=1), encoding="utf-8")
    path.with_suffix(".part").replace(path)
    print(f"{spec.url}: no whole SHA-256 is known; from now on only {digest} is accepted", file=sys.stderr)
