"""As much of a W&B server as a run needs, on this machine, with the ways in which one fails."""

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WandbServer:
    """Answers, hangs, or rejects every key, until `drop()`; from then on it refuses.

    Attributes:
        url: for WANDB_BASE_URL.
        rows: history rows it was sent, by run id, in the order they came.
        runs: what each run said of itself at its start, by run id.
        artifacts: what it was asked to keep.
    """

    def __init__(self, *, hangs: bool = False, rejects: bool = False) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.artifacts: list[dict[str, Any]] = []
        self.started = threading.Event()  # a run has begun
        self.release = threading.Event()
        self._dropped = False
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def answer(self) -> None:
                if hangs:
                    owner.release.wait(60)
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                reply = json.dumps(owner._reply(self.path, body)).encode()
                self.send_response(401 if rejects and self.command == "POST" else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(reply)

            do_GET = do_HEAD = do_PUT = do_POST = answer

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that gave up

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def drop(self) -> None:
        """Refuse every connection from now on."""
        self.release.set()
        if self._dropped:
            return
        self._dropped = True
        self._server.shutdown()
        self._server.server_close()

    def _reply(self, path: str, body: bytes) -> dict[str, Any]:
        if path.endswith("/file_stream"):
            history = json.loads(body).get("files", {}).get("wandb-history.jsonl", {})
            run_id = path.split("/")[-2]
            self.rows.setdefault(run_id, []).extend(map(json.loads, history.get("content", [])))
            return {}
        if path != "/graphql":
            return {}
        request = json.loads(body)
        query, given = request["query"], request.get("variables") or {}
        if "upsertBucket" in query:
            self.runs.setdefault(given["name"], given)
            self.started.set()
            project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "somebody"}}
            bucket = {"id": "b", "name": given["name"], "displayName": "x", "description": ""}
            bucket |= {"config": "{}", "sweepName": "", "project": project, "historyLineCount": 0}
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if "RunResumeStatus" in query:
            return {"data": {"model": self._resume_status(given["name"])}}
        if "createRunFiles" in query:
            files = [{"name": f, "uploadUrl": f"{self.url}/{f}"} for f in given["files"]]
            return {"data": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}}
        if "createArtifact" in query:  # one that it has already, so that nothing is uploaded
            self.artifacts.append(given["input"])
            artifact = {"id": "a", "state": "COMMITTED", "artifactSequence": {"id": "s"}}
            return {"data": {"createArtifact": {"artifact": artifact}}}
        viewer = {"id": "v", "entity": "somebody", "username": "u", "flags": "{}"}
        return {"data": {"viewer": {**viewer, "teams": {"edges": []}}, "project": None}}

    def _resume_status(self, run_id: str) -> dict[str, Any] | None:
        rows = self.rows.get(run_id)
        if run_id not in self.runs:
            return None
        bucket: dict[str, Any] = {"id": "b", "name": run_id, "displayName": "x", "config": "{}"}
        bucket |= {"logLineCount": 0, "eventsLineCount": 0, "eventsTail": "[]", "tags": []}
        bucket |= {"historyLineCount": len(rows or []), "notes": "", "wandbConfig": '{"t": 1}'}
        last = json.dumps(rows[-1]) if rows else "{}"
        bucket |= {"summaryMetrics": last, "historyTail": json.dumps([last] if rows else [])}
        return {"id": "p", "name": "p", "entity": {"id": "e", "name": "somebody"}, "bucket": bucket}


@contextmanager
def serving(*, hangs: bool = False, rejects: bool = False) -> Iterator[WandbServer]:
    """A server that ends with the block."""
    server = WandbServer(hangs=hangs, rejects=rejects)
    try:
        yield server
    finally:
        server.drop()
