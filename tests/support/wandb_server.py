"""As much of W&B's server as a run needs, on loopback; and servers that fail it in every way."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar


class Backend(BaseHTTPRequestHandler):
    """A server that takes no artifacts."""

    uploads: ClassVar[dict[str, bytes]] = {}

    def log_message(self, *_: Any) -> None:
        pass

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.answer({})

    def do_PUT(self) -> None:
        self.uploads[self.path.removeprefix("/upload/")] = self.body()
        self.answer({})

    def do_POST(self) -> None:
        body = self.body()
        if self.path != "/graphql":
            name = self.path.rpartition("/")[2]
            self.uploads[name] = self.uploads.get(name, b"") + body
            return self.answer({})
        query, variables = (json.loads(body).get(name) or {} for name in ("query", "variables"))
        if "upsertBucket" in query:
            project = {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": "me"}}
            bucket = {
                "id": "b",
                "name": variables["name"],
                "displayName": "",
                "config": "{}",
                "project": project,
            }
            return self.answer({"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}})
        if "createRunFiles" in query:
            url = f"http://{self.headers['Host']}/upload/"
            files = [{"name": name, "uploadUrl": url + name} for name in variables["files"]]
            return self.answer(
                {"data": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}}
            )
        if "viewer" in query:
            viewer = {"id": "1", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
            return self.answer({"data": {"viewer": viewer, "serverInfo": {}}})
        if "rtifact" in query:
            return self.answer({"errors": [{"message": "no artifacts here"}]})
        return self.answer({"data": {"model": None, "serverInfo": None}})


class Broken(Backend):
    """A server that answers everything with a failure of its own."""

    def do_GET(self) -> None:
        self.send_error(500)

    def do_POST(self) -> None:
        self.body()
        self.send_error(500)

    do_PUT = do_POST


class Mortal(Backend):
    """A server that lets a run begin, and is gone once it was sent the first points."""

    def do_POST(self) -> None:
        if self.path == "/graphql":
            return super().do_POST()
        self.server.socket.close()
        threading.Thread(target=self.server.shutdown).start()
        return self.connection.close()


@contextmanager
def serving(handler: type[Backend]) -> Iterator[str]:
    """The address of a server of this kind."""
    handler.uploads.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def _silent() -> Iterator[str]:
    """One that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextmanager
def _nothing() -> Iterator[str]:
    """Where no connection is taken."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    yield address


FAULTS = ("no key", "refused", "hanging", "failing", "killed half-way")


@contextmanager
def faulty(fault: str) -> Iterator[dict[str, str]]:
    """The environment of somebody whose W&B fails in this way; with ``none``, does not."""
    key = {} if fault == "no key" else {"WANDB_API_KEY": "a" * 40}
    server = {
        "none": lambda: serving(Backend),
        "no key": lambda: serving(Backend),
        "refused": _nothing,
        "hanging": _silent,
        "failing": lambda: serving(Broken),
        "killed half-way": lambda: serving(Mortal),
    }[fault]
    with server() as address:
        yield {"WANDB_BASE_URL": address, **key}
