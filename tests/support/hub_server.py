"""A local Hugging Face hub: enough of the HTTP interface for the real client, and a log of downloads."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves folders as repositories.

    Args:
        repositories: folders by repository name.
        gated: names of repositories that list their files but refuse to send them.

    ``sent`` lists the downloaded files, relative to their repository.
    """

    def __init__(self, repositories: dict[str, Path], gated: tuple[str, ...] = ()) -> None:
        self.repositories, self.gated = repositories, gated
        self.sent: list[str] = []
        self.endpoint = ""

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a path."""
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/?]+).*", path):
            return self._api(match[1], match[2], match[3])
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(match[1], match[2], match[3])
        return self._refuse(404, "RepoNotFound")

    def _api(self, repo: str, endpoint: str, revision: str) -> tuple[int, dict[str, str], bytes]:
        if repo not in self.repositories:
            return self._refuse(404, "RepoNotFound")
        if revision not in ("main", COMMIT):
            return self._refuse(404, "RevisionNotFound")
        siblings = [{"rfilename": name} for name, _ in self._files(repo)]
        content: Any = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings}
        if endpoint == "tree":
            content = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self._files(repo)
            ]
        return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()

    def _file(self, repo: str, revision: str, name: str) -> tuple[int, dict[str, str], bytes]:
        if repo in self.gated:
            return self._refuse(403, "GatedRepo")
        data = dict(self._files(repo)).get(name)
        if data is None:
            return self._refuse(404, "EntryNotFound")
        return 200, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}, data

    def _files(self, repo: str) -> Iterator[tuple[str, bytes]]:
        root = self.repositories[repo]
        for path in sorted(root.rglob("*")):
            if path.is_file():
                yield path.relative_to(root).as_posix(), path.read_bytes()

    @staticmethod
    def _refuse(status: int, code: str) -> tuple[int, dict[str, str], bytes]:
        return status, {"X-Error-Code": code}, b""


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Run the server on a free local port inside the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._reply(send_body=False)

        def do_GET(self) -> None:
            self._reply(send_body=True)

        def _reply(self, *, send_body: bool) -> None:
            path = unquote(self.path)
            status, headers, body = hub.answer(path)
            if send_body and status == 200 and "/resolve/" in path:
                hub.sent.append(path.split("/", 5)[5])
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if send_body:
                self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
