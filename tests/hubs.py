"""A Hugging Face Hub on 127.0.0.1 with as much of its interface as fetching and pushing a model need."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml


class Hub:
    """What the server holds: of each repository its commits, oldest first, each a mapping of names to bytes."""

    def __init__(self):
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.gated: set[str] = set()
        self.private: set[str] = set()
        self.asked: list[str] = []
        self.url = ""

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        commits = self.repos.setdefault(repo, {})
        whole = {**(list(commits.values())[-1] if commits else {}), **files}
        oid = hashlib.sha1(repr(sorted(whole.items())).encode() + str(len(commits)).encode()).hexdigest()
        commits[oid] = whole
        return oid

    def files(self, repo: str) -> dict[str, bytes]:
        return list(self.repos[repo].values())[-1]


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, status: int, body: bytes = b"", **headers: str):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            hub.asked.append(f"{self.command} {self.path}")
            user, name, word, revision, *file = self.path.strip("/").split("/")
            assert word == "resolve"
            commits = hub.repos.get(f"{user}/{name}")
            if commits is None:
                return self.answer(404, X_Error_Code="RepoNotFound")
            if f"{user}/{name}" in hub.gated:
                return self.answer(403, X_Error_Code="GatedRepo")
            commit = list(commits)[-1] if revision == "main" else revision
            if commit not in commits:
                return self.answer(404, X_Error_Code="RevisionNotFound")
            body = commits[commit].get("/".join(file))
            if body is None:
                return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            return self.answer(200, body, X_Repo_Commit=commit, ETag=f'"{hashlib.sha1(body).hexdigest()}"')

        def do_POST(self):
            hub.asked.append(f"{self.command} {self.path}")
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Authorization") != "Bearer hf_right":
                return self.answer(401, b"{}")
            if self.path == "/api/repos/create":
                wanted = json.loads(body)
                repo = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
                if repo in hub.repos:
                    return self.say(409, {"url": f"{hub.url}/{repo}"})
                hub.repos[repo] = {}
                hub.private |= {repo} if wanted.get("private") or wanted.get("visibility") == "private" else set()
                return self.say(200, {"url": f"{hub.url}/{repo}"})
            if self.path == "/api/validate-yaml":
                yaml.safe_load(json.loads(body)["content"].split("---")[1])
                return self.say(200, {"warnings": [], "errors": []})
            _, _, user, name, verb, *_ = self.path.strip("/").split("/")
            return self.say(200, self.commit(f"{user}/{name}", verb.partition("?")[0], body))

        def commit(self, repo: str, verb: str, body: bytes) -> dict:
            if verb == "preupload":
                files = json.loads(body)["files"]
                return {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            assert verb == "commit"
            lines = [json.loads(line) for line in body.splitlines()]
            sent = [line["value"] for line in lines if line["key"] == "file"]
            oid = hub.commit(repo, {file["path"]: base64.b64decode(file["content"]) for file in sent})
            return {"success": True, "commitOid": oid, "commitUrl": f"{hub.url}/{repo}/commit/{oid}"}

        def say(self, status: int, what: dict):
            self.answer(status, json.dumps(what).encode(), Content_Type="application/json")

    return Handler


@contextmanager
def serving():
    """Run a hub for a while."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
