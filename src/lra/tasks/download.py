"""Fetching a file over HTTP: goes on where it stopped, and gives up at once without a network."""

import queue
import threading
import urllib.request
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError

RESPONSE_SECONDS = 4.0
"""How long a server may take to answer."""

STALL_SECONDS = 60.0
"""How long it may then pause."""

CHUNK_BYTES = 1 << 20


def fetch(url: str, path: Path, progress: Callable[[int], object]) -> Path:
    """`path`, downloaded from `url` unless it is there.

    What has arrived stays in `<path>.part`, from which the next call goes on. `progress` is told
    the bytes as they arrive. Raises `ConnectionError`, in less than 5 seconds where no server
    answers; the message says what to place where.
    """
    if path.exists():
        return path
    part = path.with_name(f"{path.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        _download(url, part, progress)
    except (OSError, HTTPException) as error:
        raise ConnectionError(
            f"{path} is not there, and downloading {url} failed ({error}); place the file there, "
            "or say where it is with prepare.source=PATH"
        ) from error
    part.rename(path)
    return path


def _download(url: str, part: Path, progress: Callable[[int], object]) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    try:
        response = _open(urllib.request.Request(url, headers=headers))
    except HTTPError as error:
        if error.code == 416 and error.headers["Content-Range"] == f"bytes */{have}":
            return  # all of it had arrived
        raise
    with response:
        resumes = response.status == 206
        length, received = response.headers["Content-Length"], 0
        progress(have if resumes else 0)
        with part.open("ab" if resumes else "wb") as file:
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                received += len(chunk)
                progress(len(chunk))
    if length is not None and received < int(length):
        missing = int(length) - received
        raise ConnectionError(f"{missing:,} bytes are missing; the same command goes on from there")


def _open(request: urllib.request.Request) -> HTTPResponse:
    """The response; `TimeoutError` if there is none in time, whatever it is that hangs."""
    answers: queue.SimpleQueue[HTTPResponse | Exception] = queue.SimpleQueue()
    threading.Thread(target=_ask, args=(request, answers), daemon=True).start()
    try:
        answer = answers.get(timeout=RESPONSE_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"no answer within {RESPONSE_SECONDS:g} seconds") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _ask(
    request: urllib.request.Request, answers: "queue.SimpleQueue[HTTPResponse | Exception]"
) -> None:
    try:
        answers.put(urllib.request.urlopen(request, timeout=STALL_SECONDS))
    except (OSError, HTTPException) as error:
        answers.put(error)
