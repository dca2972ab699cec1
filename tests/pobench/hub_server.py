"""A small stand-in for the Hugging Face hub on loopback: it makes repositories, takes commits, and keeps the files.

with HubServer(token="hf_…") as hub:
    …  # with hub.environment
    hub.files["me/model"]["README.md"]
"""

from __future__ import annotations

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


class HubServer:
    """token: the only one that may write. files: repository → path → bytes, as committed. commits: (repository, revision,
    message). private: the repositories made so."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.files: dict[str, dict[str, bytes]] = {}
        self.commits: list[tuple[str, str, str]] = []
        self.private: set[str] = set()
        self.branches: set[tuple[str, str]] = set()
        self.blobs: dict[str, bytes] = {}

    def __enter__(self) -> HubServer:
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def take_the_place_of_the_hub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """For huggingface_hub in this process. Large files take the plain way, not that of chunks."""
        from huggingface_hub import constants

        for name, value in {"ENDPOINT": self.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
            monkeypatch.setattr(constants, name, value)

    # -- replies, by path
    def _post(self, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if found := re.fullmatch(r"/api/models/(.+)/branch/(.+)", path):
            self.branches.add((found[1], found[2]))
            return 200, {}
        if found := re.fullmatch(r"/api/models/(.+)/preupload/(.+)", path):
            modes = {True: "lfs", False: "regular"}
            asked = json.loads(body)["files"]
            return 200, {
                "files": [
                    {"path": f["path"], "uploadMode": modes[f["path"].endswith(".safetensors")], "shouldIgnore": False}
                    for f in asked
                ]
            }
        if re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            return 200, {"transfer": "basic", "objects": [self._place(o) for o in json.loads(body)["objects"]]}
        if found := re.fullmatch(r"/api/models/(.+)/commit/(.+)", path):
            return self._commit(found[1], found[2], [json.loads(line) for line in body.splitlines()])
        return 404, {"error": f"no {path}"}

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
        if name in self.files:
            return 409, {"error": "it exists", "url": f"{self.url}/{name}"}
        self.files[name] = {}
        if asked.get("private") or asked.get("visibility") == "private":
            self.private.add(name)
        return 200, {"url": f"{self.url}/{name}", "name": name, "id": name}

    def _place(self, blob: dict[str, Any]) -> dict[str, Any]:
        return {**blob, "actions": {"upload": {"href": f"{self.url}/blob/{blob['oid']}", "header": {}}}}

    def _commit(self, repo: str, revision: str, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.commits.append((repo, revision, value["summary"]))
            elif line["key"] == "file":
                self.files[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[repo][value["path"]] = self.blobs[value["oid"]]
        return 200, {"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.url}/{repo}/commit/{'0' * 40}"}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def _reply(self, status: int, answer: Any) -> None:
                text = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                if status >= 400:
                    self.send_header("X-Error-Message", answer["error"])
                self.end_headers()
                self.wfile.write(text)

            def _body(self) -> bytes:
                if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            def do_POST(self) -> None:
                body = self._body()
                if self.headers.get("Authorization") != f"Bearer {hub.token}":
                    self._reply(401, {"error": "Invalid credentials in Authorization header"})
                else:
                    self._reply(*hub._post(self.path, body))

            def do_PUT(self) -> None:
                hub.blobs[self.path.rpartition("/")[2]] = self._body()
                self._reply(200, {})

            def do_GET(self) -> None:
                self._reply(404, {"error": "not found"})

            do_HEAD = do_GET

        return Handler
