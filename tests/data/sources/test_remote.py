"""Folders and manifests at a URL, with the in-memory file system of fsspec."""

import contextlib
import dataclasses
import http.server
import pickle
import threading
from importlib.util import find_spec

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from simmim_jax.data.codecs.base import BadImage
from simmim_jax.data.loader.bad_examples import BadImages
from simmim_jax.data.sources import remote
from simmim_jax.data.sources.paths import Paths
from simmim_jax.data.sources.registry import check_source, open_source
from simmim_jax.errors import UserError
from tests.batches import eval_batches
from tests.images import PHOTOS, write_photographs

CHINA, FLOWER = (photo.read_bytes() for photo in PHOTOS)


@pytest.fixture
def bucket():
    """Return a function that writes {path: bytes} below memory://bucket/set/."""
    files = fsspec.filesystem("memory")

    def write(contents):
        for path, data in contents.items():
            files.pipe(f"/bucket/set/{path}", data)
        return "memory://bucket/set"

    yield write
    if files.exists("/bucket"):
        files.rm("/bucket", recursive=True)


def test_remote_folders_equal_local_ones(bucket, tmp_path):
    names = [f"{'ab'[i % 2]}/{i}.jpg" for i in range(30)]
    write_photographs(tmp_path, names)
    url = bucket({name: (tmp_path / name).read_bytes() for name in names})
    bucket({"a/notes.txt": b"", ".hidden/1.jpg": b""})
    for split in ("train", "validation"):
        check_source(f"{url}/", split)
        there, here = open_source(f"{url}/", split), open_source(str(tmp_path), split)
        assert [*there.paths] == [*here.paths]
        assert there.labels.tolist() == here.labels.tolist()
        assert there.class_names == here.class_names == ("a", "b")
        sent = pickle.loads(pickle.dumps(there))
        assert sent[0]["image"] == here[0]["image"]
        assert sent[0]["path"] == f"{url}/{there.paths[0]}"


def test_split_folders(bucket):
    url = bucket(
        {"train/a/1.jpg": CHINA, "train/b/2.jpg": CHINA, "val/b/3.jpg": FLOWER}
    )
    assert open_source(url, "train").labels.tolist() == [0, 1]
    validation = open_source(url, "validation")
    assert validation.labels.tolist() == [1]
    assert validation[0]["image"] == FLOWER
    with pytest.raises(FileNotFoundError, match=r"split='test'.*found train, val"):
        open_source(url, "test")
    with pytest.raises(FileNotFoundError, match=r"memory://bucket/no.* has no images"):
        open_source("memory://bucket/none", "train")


def test_manifests(bucket, tmp_path):
    (tmp_path / "here.jpg").write_bytes(FLOWER)
    rows = ["path,label,split", "img/1.jpg,cat,train", f"{tmp_path}/here.jpg,dog,train"]
    url = bucket({"img/1.jpg": CHINA, "list.csv": "\n".join(rows).encode()})
    check_source(f"{url}/list.csv", "train")
    source = open_source(f"{url}/list.csv", "train")
    assert [source[i]["image"] for i in range(2)] == [CHINA, FLOWER]
    assert source.labels.tolist() == [0, 1]
    # A local manifest of remote images.
    (tmp_path / "list.txt").write_text(f"{url}/img/1.jpg 0\nhere.jpg 1\n")
    images = {
        (example := open_source(str(tmp_path / "list.txt"), split)[0])["label"]: example
        for split in ("train", "validation")
    }
    assert [images[i]["image"] for i in (0, 1)] == [CHINA, FLOWER]
    assert images[0]["path"] == f"{url}/img/1.jpg"


def test_missing_files_are_os_errors(bucket):
    source = open_source(bucket({"train/1.jpg": CHINA}), "train")
    fsspec.filesystem("memory").rm("/bucket/set/train/1.jpg")
    with pytest.raises(FileNotFoundError):
        source[0]


class Refused(Exception):
    """Like the errors of gcsfs and aiohttp, not an OSError."""


class Flaky(MemoryFileSystem):
    """A file system that lists files and cannot read them."""

    protocol = "flaky"

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def cat_file(self, path, **options):
        raise Refused("503, try again later")


def test_errors_of_file_systems_become_os_errors(bucket, monkeypatch):
    monkeypatch.setattr(remote, "PROTOCOLS", (*remote.PROTOCOLS, "flaky"))
    bucket({"train/1.jpg": CHINA})
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    source = open_source("flaky://bucket/set", "train")
    with pytest.raises(OSError, match="503, try again later") as raised:
        source[0]
    assert raised.value.filename == "flaky://bucket/set/train/1.jpg"


@pytest.mark.parametrize(("protocol", "package"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_missing_packages_are_named(protocol, package):
    if find_spec(package):
        pytest.skip(f"{package} is installed")
    for function in (check_source, open_source):
        with pytest.raises(
            ValueError, match=rf"{protocol}://bucket/x.*install {package}"
        ):
            function(f"{protocol}://bucket/x", "train")


# ---- Protocols -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("file:///data", "a URL of file://"),
        ("ssh://host/data", "a URL of ssh://"),
        ("reference://x", "a URL of reference://"),
        ("simplecache::memory://x/y", "a chain of URLs"),
        ("memory://x/y::zip://z", "a chain of URLs"),
        ("zip://a.jpg::memory://x", "a chain of URLs"),
    ],
)
def test_other_protocols_and_chains_are_refused(url, what, tmp_path):
    for function in (check_source, open_source):
        for dataset in (url, f"{url}/list.csv"):
            with pytest.raises(UserError, match=rf"is {what}: expected one of https"):
                function(dataset, "train")
    with pytest.raises(OSError, match=f"is {what}: expected one of https"):
        remote.read_file(url)
    (tmp_path / "list.txt").write_text(f"{url}/1.jpg\n")
    for function in (check_source, open_source):
        with pytest.raises(UserError, match=f"is {what}: expected one of https"):
            function(str(tmp_path / "list.txt"), "train")


def test_a_row_with_another_protocol_is_a_bad_image(bucket, tmp_path):
    url = bucket({"img/1.jpg": CHINA})
    others = ["ssh://host/1.jpg", "simplecache::memory://a/b.jpg", "ftp://host/1.jpg"]
    rows = [f"{url}/img/1.jpg", *others, f"{url}/img/1.jpg"]
    (tmp_path / "list.txt").write_text("\n".join(rows))
    source = dataclasses.replace(
        open_source(str(tmp_path / "list.txt"), "train"),
        paths=Paths([row.encode() for row in rows]),
    )
    account = BadImages()
    options = {"image_size": (8, 8), "channels": 3, "interpolation": "bilinear"}
    (batch,) = eval_batches(
        source, batch_size=5, crop_fraction=1.0, bad=account, **options
    )
    assert batch["weight"].tolist() == [1, 0, 0, 0, 1]
    assert account.counts == {"unreadable": 3}


def test_a_remote_file_has_a_largest_size(bucket):
    source = open_source(bucket({"train/1.jpg": CHINA}), "train", max_bytes=len(CHINA))
    assert source[0]["image"] == CHINA
    smaller = dataclasses.replace(source, max_bytes=len(CHINA) - 1)
    with pytest.raises(BadImage, match="max_file_mb") as raised:
        smaller[0]
    assert raised.value.filename == "memory://bucket/set/train/1.jpg"


def test_a_list_of_another_place_that_fails_is_refused(bucket, monkeypatch):
    def refuse(*args, **options):
        raise Refused("401, who are you?")

    bucket({"train/1.jpg": CHINA, "list.csv": b"path\n1.jpg"})
    monkeypatch.setattr(MemoryFileSystem, "find", refuse)
    with pytest.raises(UserError, match=r"set' cannot be listed: 401.*credentials"):
        open_source("memory://bucket/set", "train")
    monkeypatch.setattr(MemoryFileSystem, "_open", refuse)
    with pytest.raises(UserError, match=r"list.csv' cannot be read: 401.*credentials"):
        check_source("memory://bucket/set/list.csv", "train")


def test_a_web_server_that_ignores_ranges_sends_no_more_than_is_kept():
    """fsspec 2026.9.0 asks for a range, and keeps all that such a server sends."""
    sent = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):  # nobody listens any more
                parts = 400 if self.path == "/large.jpg" else 2
                sent.extend(self.wfile.write(bytes(10**5)) for _ in range(parts))

        def log_message(self, *values):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever).start()
        place = f"http://127.0.0.1:{server.server_port}"
        assert remote.read_file(f"{place}/small.jpg", 10**6) == bytes(2 * 10**5)
        with pytest.raises(BadImage, match="more than 1 MB"):
            remote.read_file(f"{place}/large.jpg", 10**6)
        server.shutdown()
    assert sum(sent) < 20 * 10**6
