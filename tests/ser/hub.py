"""A hub on loopback: the few addresses that huggingface_hub asks for a model, over files of the test's own."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Hub:
    """A running server.

    Attributes:
        url: For HF_ENDPOINT.
        commits: (name, branch, tag or commit) -> commit.
        files: (name, commit) -> file -> bytes.
        asked: "METHOD path" of every request.
    """

    url: str = ""
    commits: dict[tuple[str, str], str] = field(default_factory=dict)
    files: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def put(self, name: str, folder: Path, branch: str = "main") -> str:
        """Serve a folder's files as a new commit of `branch`; returns the commit."""
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
        told = json.dumps({n: hashlib.sha256(b).hexdigest() for n, b in files.items()})
        commit = hashlib.sha1(f"{name} {branch} {told}".encode()).hexdigest()
        self.files[name, commit] = files
        self.commits |= {(name, branch): commit, (name, commit): commit}
        return commit


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub while the context lasts."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = self.path.split("?")[0].strip("/")
            hub.asked.append(f"{self.command} /{path}")
            status, headers, content = self._content(path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def _content(self, path: str) -> tuple[int, dict[str, str], bytes]:
            """/api/models/NAME[/revision/REV] and /NAME/resolve/REV/FILE; names are OWNER/MODEL."""
            api = path.startswith("api/models/")
            owner, model, *rest = path.removeprefix("api/models/").split("/")
            name, asked = f"{owner}/{model}", rest[1] if len(rest) > 1 else "main"
            if not any(known == name for known, _ in hub.commits):
                return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
            commit = hub.commits.get((name, asked))
            if commit is None:
                return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
            files = hub.files[name, commit]
            if api:
                told = {"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in files]}
                return 200, {"Content-Type": "application/json"}, json.dumps(told).encode()
            content = files.get("/".join(rest[2:]))
            if content is None:
                return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
            sha = hashlib.sha256(content).hexdigest()
            return 200, {"ETag": f'"{sha}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}, content

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    return Handler
