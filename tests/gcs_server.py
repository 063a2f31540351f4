"""Google Cloud Storage on 127.0.0.1, as far as gcsfs, google-cloud-storage and TensorStore use its JSON API.

Objects are bytes by name. Nothing can be renamed, copied, composed or appended to: such requests are refused and
noted. It can be told to stop answering: connections are accepted, and then nothing comes.

https://cloud.google.com/storage/docs/json_api
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import re
import threading
import time
from collections.abc import Iterator
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit

import fsspec
import gcsfs
import pytest

OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)")
OBJECTS = re.compile(r"(/upload)?/storage/v1/b/([^/]+)/o")
BUCKET = re.compile(r"/storage/v1/b/([^/]+)")
LAYOUT = re.compile(r"/storage/v1/b/([^/]+)/storageLayout")


@dataclasses.dataclass
class Store:
    """What the server holds.

    Attributes:
        objects: name -> (generation, contents), names beginning with the bucket's.
        uploads: contents so far of resumable uploads, with name and condition.
        refused: requests of a kind that stores cannot, or should not be asked to, fulfil.
        hangs: method and path of the requests from the first match on which nothing is answered; None for none.
        forbids: whether every request is refused with 403.
        buckets: that there are; None for any.
        sent: names of the objects whose contents were asked for, in order.
        url: where it is.
        clock: the next object's generation.
        lock: held while a request is answered.
    """

    objects: dict[str, tuple[int, bytes]] = dataclasses.field(default_factory=dict)
    uploads: dict[str, tuple[str, str | None, bytes]] = dataclasses.field(default_factory=dict)
    refused: list[str] = dataclasses.field(default_factory=list)
    hangs: re.Pattern[str] | None = None
    forbids: bool = False
    buckets: set[str] | None = None
    sent: list[str] = dataclasses.field(default_factory=list)
    url: str = ""
    clock: Iterator[int] = dataclasses.field(default_factory=lambda: itertools.count(1))
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def names(self, prefix: str) -> list[str]:
        """The objects below gs://<prefix>."""
        return sorted(name for name in self.objects if name.startswith(prefix))

    def put(self, name: str, data: bytes) -> None:
        """Makes or replaces an object."""
        self.objects[name] = (next(self.clock), data)

    def environment(self) -> dict[str, str]:
        """What clients must find in their environment."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GCE_METADATA_ROOT": self.url.removeprefix("http://"),
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # no gRPC to ask what kind of bucket it is
            "NO_GCE_CHECK": "true",
            "GOOGLE_CLOUD_PROJECT": "test",
        }


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    store: Store

    def handle_one(self) -> None:
        body = self.body()
        path, query = urlsplit(self.path).path, dict(parse_qsl(urlsplit(self.path).query))
        if self.store.hangs and self.store.hangs.search(f"{self.command} {unquote(self.path)}"):
            time.sleep(3600)
        with self.store.lock:
            self.answer(*self.respond(self.command, path, query, body))

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = handle_one  # noqa: N815

    def respond(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[int, bytes, dict[str, str]]:
        if self.store.forbids:
            return 403, b'{"error": {"code": 403, "message": "no access"}}', {}
        bucket = re.search(r"/storage/v1/b/([^/]+)", path)
        if bucket and self.store.buckets is not None and bucket[1] not in self.store.buckets:
            return 404, b'{"error": {"code": 404, "message": "The specified bucket does not exist."}}', {}
        if method == "POST" and path.startswith("/batch/"):
            return self.batch(body)
        if match := OBJECT.fullmatch(path):
            return self.object(method, f"{match[1]}/{unquote(match[2])}", query)
        if (match := OBJECTS.fullmatch(path)) and method == "GET":
            return self.listing(match[2], query)
        if match and match[1] and method in ("POST", "PUT"):
            return self.upload(match[2], query, body)
        if LAYOUT.fullmatch(path):
            return as_json({"locationType": "region", "hierarchicalNamespace": {"enabled": False}})
        if match := BUCKET.fullmatch(path):
            return as_json({"kind": "storage#bucket", "id": match[1], "name": match[1]})
        if not path.startswith("/computeMetadata"):
            self.store.refused.append(f"{method} {path}")
        return 404, b'{"error": {"code": 404, "message": "Not Found"}}', {}

    def object(self, method: str, name: str, query: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        if method not in ("GET", "DELETE", "HEAD"):
            self.store.refused.append(f"{method} {name}")
            return 405, b"", {}
        if name not in self.store.objects:
            return 404, b'{"error": {"code": 404, "message": "Not Found"}}', {}
        generation, data = self.store.objects[name]
        if method == "DELETE":
            del self.store.objects[name]
            return 204, b"", {}
        if query.get("alt") != "media":
            return as_json(described(name, generation, data))
        self.store.sent.append(name)
        headers = {"x-goog-generation": str(generation), "Content-Type": "application/octet-stream"}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return 200, data, headers
        first = int(asked[1]) if asked[1] else max(0, len(data) - int(asked[2]))
        last = min(int(asked[2]), len(data) - 1) if asked[1] and asked[2] else len(data) - 1
        if first >= len(data):
            return 416, b"", {"Content-Range": f"bytes */{len(data)}"}
        return 206, data[first : last + 1], {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"}

    def listing(self, bucket: str, query: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        prefix, delimiter, items, prefixes = query.get("prefix", ""), query.get("delimiter"), [], set()
        for full in self.store.names(f"{bucket}/{prefix}"):
            name = full.removeprefix(f"{bucket}/")
            if name < query.get("startOffset", "") or ("endOffset" in query and name >= query["endOffset"]):
                continue
            if delimiter and delimiter in name[len(prefix) :]:
                prefixes.add(prefix + name[len(prefix) :].split(delimiter)[0] + delimiter)
            else:
                items.append(described(full, *self.store.objects[full]))
        return as_json({"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)})

    def upload(self, bucket: str, query: dict[str, str], body: bytes) -> tuple[int, bytes, dict[str, str]]:
        kind, condition = query.get("uploadType"), query.get("ifGenerationMatch")
        if "upload_id" in query:
            return self.resume(query["upload_id"], body)
        if kind == "resumable":
            name = query.get("name") or json.loads(body)["name"]
            key = str(next(self.store.clock))
            self.store.uploads[key] = (f"{bucket}/{name}", condition, b"")
            place = f"{self.store.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={key}"
            return 200, b"{}", {"Location": place, "X-GUploader-UploadID": key}
        if kind == "media":
            return self.put(f"{bucket}/{query['name']}", condition, body)
        told, data = parts(self.headers["Content-Type"], body)
        return self.put(f"{bucket}/{json.loads(told)['name']}", condition, data)

    def resume(self, key: str, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        name, condition, before = self.store.uploads[key]
        data = before + body
        self.store.uploads[key] = (name, condition, data)
        total = self.headers.get("Content-Range", "").rpartition("/")[2]
        if total in ("", "*") and self.headers.get("Content-Range") or total.isdigit() and int(total) > len(data):
            return 308, b"", {"Range": f"bytes=0-{len(data) - 1}"} if data else {}
        return self.put(name, condition, data)

    def put(self, name: str, condition: str | None, data: bytes) -> tuple[int, bytes, dict[str, str]]:
        now = self.store.objects.get(name, (0, b""))[0]
        if condition is not None and int(condition) != now:
            return 412, b'{"error": {"code": 412, "message": "conditionNotMet"}}', {}
        self.store.put(name, data)
        return as_json(described(name, *self.store.objects[name]))

    def batch(self, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        """Several requests in one, as gcsfs deletes folders."""
        answers = []
        for number, part in enumerate(split(self.headers["Content-Type"], body)):
            method, path, _ = part.strip().split(b" ", 2)
            code, _, _ = self.respond(method.decode(), urlsplit(path.decode()).path, {}, b"")
            named = f"--b\r\nContent-Type: application/http\r\nContent-ID: <response-{number + 1}>\r\n\r\n"
            answers.append(f"{named}HTTP/1.1 {code} -\r\n\r\n\r\n")
        return 200, ("".join(answers) + "--b--\r\n").encode(), {"Content-Type": "multipart/mixed; boundary=b"}

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def answer(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in ({"Content-Type": "application/json"} | headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Says nothing."""


def as_json(data: dict) -> tuple[int, bytes, dict[str, str]]:
    return 200, json.dumps(data).encode(), {}


def described(full: str, generation: int, data: bytes) -> dict[str, str]:
    """An object's metadata."""
    bucket, _, name = full.partition("/")
    common = {"kind": "storage#object", "bucket": bucket, "name": name, "size": str(len(data))}
    times = {"timeCreated": "2026-01-01T00:00:00.000Z", "updated": "2026-01-01T00:00:00.000Z"}
    return {**common, **times, "id": f"{full}/{generation}", "generation": str(generation), "metageneration": "1"}


def split(content_type: str, body: bytes) -> list[bytes]:
    """The parts of a multipart body, as they are."""
    message = message_from_bytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    return [part.get_payload(decode=True) for part in message.get_payload()]


def parts(content_type: str, body: bytes) -> tuple[bytes, bytes]:
    """Metadata and contents of a multipart upload; unlike `split` it leaves the contents' bytes alone."""
    boundary = b"--" + re.search(r"boundary=['\"]?([^'\";]+)", content_type)[1].encode()
    cut = b"\r\n\r\n" if b"\r\n\r\n" in body else b"\n\n"
    told, data = (part.partition(cut)[2] for part in body.split(boundary)[1:3])
    return told, data.removesuffix(b"\n").removesuffix(b"\r")


@contextlib.contextmanager
def serving() -> Iterator[Store]:
    """A server while entered."""
    store = Store()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"store": store}))
    server.daemon_threads, server.handle_error = True, lambda *connection: None  # clients that were killed
    store.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def store(monkeypatch, tmp_path) -> Iterator[Store]:
    """An empty store, in this process's environment and in those that it starts; and an empty cache."""
    with serving() as store:
        for name, value in store.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        fsspec.config.conf.pop("gcs", None)  # the time-out that a test before this one set
        gcsfs.GCSFileSystem.clear_instance_cache()
        yield store
