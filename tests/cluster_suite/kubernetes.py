"""The part of Kubernetes' REST API that `kubectl` asks for here, served on loopback: an API server of our own, not a cluster. Nothing
runs; a test says what an operator would have written.

It keeps objects in memory, refuses a RayJob with fields that the CRD of KubeRay 1.5.1 does not have (tests/data/rayjob-fields.yaml),
deletes as finalizers do (marked first, gone a moment later), and answers `kubectl exec` by WebSocket (kubectl 1.31 on) with what the
command says of a folder that stands for the pod's disk.
"""

import base64
import contextlib
import hashlib
import json
import struct
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.conftest import ROOT
from tests.launch.test_rayjob import strange

GROUPS = {
    "v1": {"configmaps": "ConfigMap", "pods": "Pod", "namespaces": "Namespace"},
    "ray.io/v1": {"rayjobs": "RayJob"},
}
VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]
LINGER = 0.5  # seconds between the mark of a deletion and the end of what is deleted
RAY = "/tmp/ray"  # in a pod
_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Api:
    """Context: the server; `config` is what kubectl needs to find it.

    Attributes:
        objects: (resource, namespace, name) -> object.
        forbidden: (verb, resource) that nobody may.
        installed: Whether it knows RayJobs.
        disk: Folder that stands for /tmp/ray of every pod.
    """

    def __init__(self, folder: Path):
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.forbidden: set[tuple[str, str]] = set()
        self.installed, self.version = True, 0
        self.disk, self.config = folder / "disk", folder / "config"
        self.fields = yaml.safe_load((ROOT / "tests/data/rayjob-fields.yaml").read_text())
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"api": self}))
        self.server.daemon_threads = True
        for name in ("default", "speech"):
            self.put("namespaces", "", {"metadata": {"name": name}})

    def __enter__(self) -> "Api":
        self.disk.mkdir(parents=True)
        port = self.server.server_address[1]
        made = {
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
            "users": [{"name": "me", "user": {}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
        }  # fmt: skip
        self.config.write_text(yaml.safe_dump(made))
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def put(self, resource: str, namespace: str, found: dict[str, Any]) -> dict[str, Any]:
        """Store an object, new or changed."""
        group = next(group for group, names in GROUPS.items() if resource in names)
        self.version += 1
        meta = found.setdefault("metadata", {}) | {"resourceVersion": str(self.version)}
        meta.setdefault("uid", f"uid-{self.version}")
        meta |= {"namespace": namespace} if namespace else {}
        found |= {"apiVersion": group, "kind": GROUPS[group][resource], "metadata": meta}
        self.objects[resource, namespace, meta["name"]] = found
        return found

    def say(self, name: str, namespace: str = "speech", **status: str) -> None:
        """What the operator writes of a RayJob."""
        with self.lock:
            self.put("rayjobs", namespace, self.objects["rayjobs", namespace, name] | {"status": status})

    def delete(self, key: tuple[str, str, str]) -> None:
        """Mark an object; it goes a moment later."""
        self.objects[key]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        threading.Timer(LINGER, lambda: self.objects.pop(key, None)).start()


class _Refused(Exception):
    """Args: HTTP code, reason, message."""


class _Handler(BaseHTTPRequestHandler):
    api: Api
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PATCH = do_DELETE = do_GET

    def _answer(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size) if size else b""
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        try:
            parts = url.path.strip("/").split("/")
            found = self._discovery(url.path) if len(parts) < 4 else self._object(parts, body)
            if found is not None:
                self._send(200, found)
        except _Refused as refusal:
            code, reason, message = refusal.args
            self._send(code, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": reason, "code": code})  # fmt: skip

    def _send(self, code: int, found: dict[str, Any] | bytes) -> None:
        data = found if isinstance(found, bytes) else json.dumps(found).encode()
        kind = "application/json" if isinstance(found, dict) else "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"  # fmt: skip
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _discovery(self, path: str) -> dict[str, Any] | bytes:
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            one = {"groupVersion": "ray.io/v1", "version": "v1"}
            groups = [{"name": "ray.io", "versions": [one], "preferredVersion": one}]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups if self.api.installed else []}  # fmt: skip
        if path == "/openapi/v2":
            return b""  # a schema without types: kubectl leaves their fields to the server
        group = path.removeprefix("/apis/").removeprefix("/api/")
        if group not in GROUPS or (group == "ray.io/v1" and not self.api.installed):
            raise _Refused(404, "NotFound", "the server could not find the requested resource")
        resources = [
            {"name": name, "singularName": kind.lower(), "namespaced": name != "namespaces", "kind": kind, "verbs": VERBS}
            for name, kind in GROUPS[group].items()
        ]  # fmt: skip
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group, "resources": resources}

    def _object(self, parts: list[str], body: bytes) -> dict[str, Any] | None:
        """/api/v1/namespaces/NS/RESOURCE[/NAME[/exec]] or /apis/ray.io/v1/namespaces/..."""
        rest = parts[2:] if parts[0] == "api" else parts[3:]
        if rest[0] != "namespaces" or len(rest) < 3:
            raise _Refused(404, "NotFound", "the server could not find the requested resource")
        namespace, resource, name = rest[1], rest[2], rest[3] if len(rest) > 3 else ""
        verb = {"POST": "create", "PATCH": "patch", "DELETE": "delete", "GET": "get" if name else "list"}[self.command]  # fmt: skip
        shown = f'{resource}{".ray.io" if resource == "rayjobs" else ""} "{name}"'
        if (verb, resource) in self.api.forbidden:
            raise _Refused(403, "Forbidden", f'{shown} is forbidden: User "me" cannot {verb} resource "{resource}" in API group')  # fmt: skip
        if rest[4:] == ["exec"]:
            return self._exec()
        with self.api.lock:
            key, known = (resource, namespace, name), self.api.objects
            if ("namespaces", "", namespace) not in known and verb == "create":
                raise _Refused(404, "NotFound", f'namespaces "{namespace}" not found')
            if name and key not in known:
                raise _Refused(404, "NotFound", f"{shown} not found")
            if verb == "create":
                return self.api.put(resource, namespace, self._checked(resource, json.loads(body)))
            if verb == "patch":
                return self.api.put(resource, namespace, self._checked(resource, _merged(known[key], json.loads(body))))  # fmt: skip
            if verb == "delete":
                self.api.delete(key)
                return known[key]
            if verb == "get":
                return known[key]
        if "watch" in self.query:
            return self._watch(resource, namespace)
        kind = GROUPS["v1"].get(resource) or GROUPS["ray.io/v1"][resource]
        return {
            "kind": f"{kind}List", "apiVersion": "ray.io/v1" if resource == "rayjobs" else "v1",
            "metadata": {"resourceVersion": str(self.api.version)}, "items": self._listed(resource, namespace),
        }  # fmt: skip

    def _listed(self, resource: str, namespace: str) -> list[dict[str, Any]]:
        wanted = dict(
            pair.split("=") for text in self.query.get("labelSelector", []) for pair in text.split(",")
        )
        names = [text.removeprefix("metadata.name=") for text in self.query.get("fieldSelector", [])]
        return [
            found
            for (kind, where, name), found in list(self.api.objects.items())
            if (kind, where) == (resource, namespace)
            and (not names or name in names)
            and wanted.items() <= found["metadata"].get("labels", {}).items()
        ]

    def _watch(self, resource: str, namespace: str) -> None:
        """Until what is watched is gone."""
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        last: list[dict[str, Any]] = self._listed(resource, namespace)
        while self._listed(resource, namespace):
            time.sleep(0.05)  # a watch stays open until they are gone
        for found in last:
            self.wfile.write(json.dumps({"type": "DELETED", "object": found}).encode() + b"\n")

    def _checked(self, resource: str, found: dict[str, Any]) -> dict[str, Any]:
        wrong = strange(found, self.api.fields) if resource == "rayjobs" else []
        if wrong and not found.get("status"):
            raise _Refused(400, "BadRequest", f'RayJob in version "v1" cannot be handled: strict decoding error: unknown field "{wrong[0]}"')  # fmt: skip
        return found

    def _exec(self) -> None:
        """Channels of v5.channel.k8s.io: 1 output, 2 errors, 3 how it ended."""
        if self.headers.get("Upgrade", "").lower() != "websocket":
            raise _Refused(400, "BadRequest", "this server speaks WebSocket alone (kubectl 1.31 on)")
        self.close_connection = True
        key = hashlib.sha1(self.headers["Sec-WebSocket-Key"].encode() + _MAGIC).digest()
        self.send_response(101)
        for name, value in (("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Protocol", "v5.channel.k8s.io"), ("Sec-WebSocket-Accept", base64.b64encode(key).decode())):  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        command = [word.replace(RAY, str(self.api.disk)) for word in self.query["command"]]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        threading.Thread(target=self._until_closed, args=(process,), daemon=True).start()
        assert process.stdout is not None and process.stderr is not None
        with contextlib.suppress(OSError):
            while piece := process.stdout.read1(4096):
                self._frame(2, b"\1" + piece)
            if errors := process.stderr.read():
                self._frame(2, b"\2" + errors)
            code = process.wait()
            cause = {
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
            }
            said = (
                {"status": "Success"}
                if code == 0
                else {"status": "Failure", "message": f"command terminated with exit code {code}", **cause}
            )
            self._frame(2, b"\3" + json.dumps({"metadata": {}, **said}).encode())
            self._frame(8, struct.pack("!H", 1000))

    def _until_closed(self, process: subprocess.Popen) -> None:
        with contextlib.suppress(OSError, ValueError):
            while head := self.rfile.read(2):
                size = head[1] & 127
                size = struct.unpack("!H", self.rfile.read(2))[0] if size == 126 else size
                self.rfile.read(4 + size)  # masked: nothing of it is needed
                if head[0] & 15 == 8:
                    break
        process.terminate()

    def _frame(self, kind: int, data: bytes) -> None:
        size = bytes([len(data)]) if len(data) < 126 else struct.pack("!BH", 126, len(data))
        self.wfile.write(bytes([128 | kind]) + size + data)
        self.wfile.flush()


def _merged(old: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """RFC 7386."""
    made = dict(old)
    for key, value in patch.items():
        if value is None:
            made.pop(key, None)
        else:
            made[key] = _merged(made.get(key) or {}, value) if isinstance(value, dict) else value
    return made
