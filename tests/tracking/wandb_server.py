"""A stand-in for W&B's server: says yes to an upload, and keeps what comes."""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Received:
    """What clients sent. runs: variables of each creation of a run; history: by run, each part
    with its offset; files: contents by the path under which they were put."""

    def __init__(self) -> None:
        self.runs: list[dict[str, Any]] = []
        self.history: dict[str, list[tuple[int, list[str]]]] = {}
        self.artifacts: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}

    def answer(self, operation: str, given: dict[str, Any], url: str) -> dict[str, Any]:
        """Of a GraphQL request, as far as `wandb sync` reads it."""
        if operation == "UpsertBucket":
            self.runs.append(given)
            project = {"id": "p", "name": given["project"], "entity": {"id": "e", "name": "team"}}
            bucket = {"id": "r", "name": given["name"], "historyLineCount": 0, "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if operation == "CreateRunFiles":
            files = [{"name": f, "uploadUrl": f"{url}/{given['run']}/{f}"} for f in given["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        if operation == "CreateArtifact":
            self.artifacts.append(given["input"])
            name = given["input"]["artifactCollectionName"]
            return {
                "createArtifact": {
                    "artifact": {
                        "id": name,
                        "state": "PENDING",
                        "artifactSequence": {"latestArtifact": None},
                    }
                }
            }
        if operation == "CreateArtifactManifest":
            file = {"id": "f", "uploadUrl": f"{url}/{given['artifactID']}/", "uploadHeaders": []}
            return {"createArtifactManifest": {"artifactManifest": {"id": "m", "file": file}}}
        if operation == "CreateArtifactFiles":
            nodes = [
                {
                    "storagePath": file["name"],
                    "uploadUrl": f"{url}/{file['artifactID']}/{file['name']}",
                    "uploadHeaders": [],
                    "uploadMultipartUrls": None,
                    "artifact": {"id": file["artifactID"]},
                }
                for file in given["input"]["artifactFiles"]
            ]
            edges = [{"node": node} for node in nodes]
            return {"createArtifactFiles": {"files": {"edges": edges}}}
        if operation == "CommitArtifact":
            return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": "d"}}}
        return {}


@contextmanager
def wandb_server() -> Iterator[tuple[str, Received]]:
    """Its address and what it receives, while it runs."""
    received = Received()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            return

        def do_PUT(self) -> None:
            received.files[self.path] = self._body()
            self._reply({})

        def do_POST(self) -> None:
            body = self._body()
            answer: dict[str, Any] = {}
            if self.path == "/graphql":
                asked = json.loads(body)
                given = asked.get("variables") or {}
                operation = re.search(r"(?:mutation|query)\s+(\w+)", asked["query"])
                answer = {"data": received.answer(operation[1] if operation else "", given, url)}
            elif self.path.endswith("/file_stream"):
                run = self.path.split("/")[-2]
                part = json.loads(body).get("files", {}).get("wandb-history.jsonl")
                if part:
                    history = received.history.setdefault(run, [])
                    history.append((part["offset"], part["content"]))
            self._reply(answer)

        def _body(self) -> bytes:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

        def _reply(self, value: dict[str, Any]) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield url, received
        finally:
            server.shutdown()
            thread.join()
