"""Small servers on 127.0.0.1 of what bundles come from and go to, with faults on demand."""

import base64
import hashlib
import json
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit


class Answers(BaseHTTPRequestHandler):
    """Answers in HTTP/1.1, says nothing, and gives parts of bodies where they are asked for."""

    protocol_version = "HTTP/1.1"
    place: ClassVar[Any]

    def log_message(self, *_: object) -> None:
        pass

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def give(self, data: bytes, **headers: str) -> None:
        """All of it, or from the byte on that was asked for."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return self.answer(200, data, **headers)
        first = int(asked[1])
        last = min(int(asked[2] or len(data) - 1), len(data) - 1)
        span = f"bytes {first}-{last}/{len(data)}"
        return self.answer(206, data[first : last + 1], Content_Range=span, **headers)

    def do_any(self) -> None:
        self.place.answer(self, urlsplit(self.path))

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_any  # noqa: N815


@contextmanager
def served(place: Any, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """``host:port`` of a running server whose requests ``place`` answers."""
    handler = type("Handler", (Answers,), {"place": place})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass
class WebServer:
    """Files by path; ``cuts`` says after how many bytes answers break off, one after the other."""

    files: dict[str, bytes]
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    login: str | None = None
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def answer(self, request: Answers, url: Any) -> None:
        self.asked.append((url.path, request.headers.get("Range")))
        if self.login is not None and not is_basic(request, self.login):
            return request.answer(401, WWW_Authenticate='Basic realm="files"')
        data = self.files.get(url.path)
        if data is None:
            return request.answer(404)
        if self.cuts and url.path.endswith("model.onnx"):
            return self._cut(request, data, self.cuts.pop(0))
        if not self.ranges:
            return request.answer(200, data)
        return request.give(data)

    def _cut(self, request: Answers, data: bytes, after: int) -> None:
        first = int((request.headers.get("Range") or "bytes=0-")[6:-1]) if self.ranges else 0
        request.send_response(206 if first else 200)
        request.send_header("Content-Length", str(len(data) - first))
        if first:
            request.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        request.end_headers()
        request.wfile.write(data[first : first + after])
        request.close_connection = True


def is_basic(request: Answers, login: str) -> bool:
    expected = "Basic " + base64.b64encode(login.encode()).decode()
    return request.headers.get("Authorization") == expected


@dataclass
class Registry:
    """The OCI distribution specification, in memory; with ``login``, for those who have a token."""

    login: str | None = None
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def answer(self, request: Answers, url: Any) -> None:
        self.asked.append(f"{request.command} {url.path}")
        host = request.headers["Host"]
        if url.path == "/token":
            return self._token(request, url)
        if self.login is not None and request.headers.get("Authorization") != "Bearer opened":
            challenge = (
                f'Bearer realm="http://{host}/token",service="test",scope="repository:x:pull"'
            )
            return request.answer(401, WWW_Authenticate=challenge)
        found = re.fullmatch(r"/v2/(.+)/(blobs|manifests)/(.+)", url.path)
        if found is None:
            return request.answer(404)
        name, kind, what = found.groups()
        if request.command in ("GET", "HEAD"):
            return self._read(request, kind, what)
        if request.command == "POST":
            request.body()
            return request.answer(202, Location=f"/v2/{name}/blobs/uploads/1?state=a")
        return self._write(request, kind, what, url)

    def _token(self, request: Answers, url: Any) -> None:
        if parse_qs(url.query).get("service") == ["test"] and is_basic(request, self.login or ""):
            return request.answer(200, b'{"token": "opened"}')
        return request.answer(401)

    def _read(self, request: Answers, kind: str, what: str) -> None:
        data = (self.blobs if kind == "blobs" else self.manifests).get(what)
        if data is None:
            return request.answer(404)
        if kind == "blobs":
            return request.give(data)
        return request.answer(200, data, Docker_Content_Digest=sha256(data))

    def _write(self, request: Answers, kind: str, what: str, url: Any) -> None:
        data = request.body()
        if kind == "manifests":
            self.manifests[what] = self.manifests[sha256(data)] = data
            return request.answer(201)
        if parse_qs(url.query).get("digest") != [sha256(data)]:
            return request.answer(400)
        self.blobs[sha256(data)] = data
        return request.answer(201)


@dataclass
class Store:
    """Buckets as S3 and Google's XML interface have them: objects, lists, uploads in parts."""

    signed: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    parts: dict[str, bytes] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)
    listed: list[str] = field(default_factory=list)

    def answer(self, request: Answers, url: Any) -> None:
        key, query = unquote(url.path).lstrip("/"), parse_qs(url.query, keep_blank_values=True)
        body = request.body()
        if self.signed not in request.headers.get("Authorization", ""):
            return request.answer(403, _refusal("SignatureDoesNotMatch", "who are you?"))
        if "list-type" in query:
            return request.answer(200, self._list(key, query))
        if request.command == "DELETE":
            self.objects.pop(key, None)
            return request.answer(204)
        if request.command == "PUT":
            return self._put(request, key, query, body)
        if request.command == "POST":
            return self._post(request, key, query, body)
        data = self.objects.get(key)
        if data is None:
            return request.answer(404, _refusal("NoSuchKey", "there is no such key"))
        return request.give(
            data,
            ETag=f'"{hashlib.md5(data).hexdigest()}"',
            Last_Modified="Mon, 30 Nov 2026 10:00:00 GMT",
        )

    def _put(self, request: Answers, key: str, query: dict[str, Any], body: bytes) -> None:
        if "partNumber" in query:
            self.parts[query["partNumber"][0]] = body
        else:
            self.objects[key] = body
            self.written.append(key)
        request.answer(200, ETag=f'"{hashlib.md5(body).hexdigest()}"')

    def _post(self, request: Answers, key: str, query: dict[str, Any], body: bytes) -> None:
        if "delete" in query:
            names = re.findall(r"<Key>(.*?)</Key>", body.decode())
            for name in names:
                del self.objects[f"{key.strip('/')}/{name}"]
            rows = "".join(f"<Deleted><Key>{name}</Key></Deleted>" for name in names)
            return request.answer(200, f"<DeleteResult>{rows}</DeleteResult>".encode())
        if "uploads" in query:
            self.parts.clear()
            ids = f"<Bucket>b</Bucket><Key>{key}</Key><UploadId>7</UploadId>"
            kind = "InitiateMultipartUploadResult"
            return request.answer(200, f"<{kind}>{ids}</{kind}>".encode())
        self.objects[key] = b"".join(self.parts[n] for n in sorted(self.parts, key=int))
        self.written.append(key)
        kind = "CompleteMultipartUploadResult"
        return request.answer(200, f"<{kind}><ETag>x</ETag></{kind}>".encode())

    def _list(self, bucket: str, query: dict[str, Any]) -> bytes:
        prefix, folders = query.get("prefix", [""])[0], set()
        rows = []
        for key, data in sorted(self.objects.items()):
            name = key.removeprefix(f"{bucket.strip('/')}/")
            if not name.startswith(prefix):
                continue
            inside, deeper, _ = name.removeprefix(prefix).partition("/")
            if deeper and "delimiter" in query:
                folders.add(f"{prefix}{inside}/")
                continue
            self.listed.append(name)
            rows.append(
                f"<Contents><Key>{name}</Key><Size>{len(data)}</Size>"
                "<LastModified>2026-11-30T10:00:00.000Z</LastModified><ETag>x</ETag></Contents>"
            )
        rows += [
            f"<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>"
            for folder in sorted(folders)
        ]
        return f"<ListBucketResult>{''.join(rows)}</ListBucketResult>".encode()


def _refusal(code: str, message: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


@dataclass
class Hub:
    """What huggingface_hub asks for when it lists and reads the files of one repository."""

    repository: str
    files: dict[str, bytes]
    asked: list[str] = field(default_factory=list)

    def answer(self, request: Answers, url: Any) -> None:
        self.asked.append(f"{request.command} {url.path}")
        api, path = f"/api/models/{self.repository}", unquote(url.path)
        if path == api or path.startswith(f"{api}/revision/"):
            siblings = [{"rfilename": name} for name in self.files]
            said = {"id": self.repository, "sha": "1" * 40, "private": False, "siblings": siblings}
            return self._json(request, said)
        if path.startswith(f"{api}/preupload/"):
            files = json.loads(request.body())["files"]
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
            ]
            return self._json(request, {"files": modes})
        if path.startswith(f"{api}/commit/"):
            return self._commit(request)
        if path.startswith(f"{api}/tree/"):
            return self._json(request, self._tree(path.removeprefix(f"{api}/tree/")))
        asked = re.sub(f"^/{self.repository}/resolve/(main|{'1' * 40})/", "", path)
        data = self.files.get(asked)
        if data is None:
            return request.answer(404, X_Error_Code="EntryNotFound")
        return request.give(data, ETag=f'"{sha256(data)[7:]}"', X_Repo_Commit="1" * 40)

    def _json(self, request: Answers, said: Any) -> None:
        if said is None:
            return request.answer(404, X_Error_Code="EntryNotFound")
        return request.answer(200, json.dumps(said).encode(), Content_Type="application/json")

    def _commit(self, request: Answers) -> None:
        for line in map(json.loads, request.body().splitlines()):
            if line["key"] == "file":
                value = line["value"]
                self.files[value["path"]] = base64.b64decode(value["content"])
        url = f"http://{request.headers['Host']}/{self.repository}/commit/{'1' * 40}"
        return self._json(request, {"commitUrl": url, "commitOid": "1" * 40, "success": True})

    def _tree(self, rest: str) -> list[dict[str, Any]] | None:
        folder = rest.partition("/")[2]
        below = f"{folder}/" if folder else ""
        names = {
            below + path.removeprefix(below).partition("/")[0]
            for path in self.files
            if path.startswith(below)
        }
        return [self._entry(path) for path in sorted(names)] if names else None

    def _entry(self, path: str) -> dict[str, Any]:
        data = self.files.get(path)
        kind = "directory" if data is None else "file"
        return {"type": kind, "path": path, "size": len(data or b""), "oid": "0" * 40}
