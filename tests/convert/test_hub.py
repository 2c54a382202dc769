"""`jaxseq import hf://owner/name` from a hub on the loopback interface; no other connection is opened."""

import hashlib
import http.server
import json
import re
import shutil
import socket
import threading
import time

import jax
import jax.numpy as jnp
import pytest

import jaxseq
from jaxseq import cli
from jaxseq.convert import hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub's API that a download uses."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes] = {}

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        if (match := re.fullmatch(r"/api/models/org/tiny(?:/(revision|tree)/([^/]+))?", path)) and match[2] != "gone":
            rows = [{"type": "file", "path": name, "oid": COMMIT, "size": len(body)} for name, body in self.files.items()]
            info = {"id": "org/tiny", "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.files], "private": False}
            return self.reply(200, json.dumps(rows if match[1] == "tree" else info).encode(), "application/json")
        if (match := re.fullmatch(r"/org/tiny/resolve/[^/]+/(.+)", path)) and match[1] in self.files:
            return self.reply(200, self.files[match[1]], "application/octet-stream")
        if path.startswith("/api/models/org/locked"):
            return self.reply(403, b"{}", "application/json", {"X-Error-Code": "GatedRepo"})
        code = "RevisionNotFound" if path.startswith("/api/models/org/tiny/") else "RepoNotFound"
        self.reply(404, b"{}", "application/json", {"X-Error-Code": code})

    def reply(self, status, body, kind, more=None):
        self.send_response(status)
        etag = hashlib.sha1(body).hexdigest()
        headers = {"Content-Length": len(body), "Content-Type": kind, "ETag": f'"{etag}"', "X-Repo-Commit": COMMIT} | (more or {})
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def endpoint():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def tiny(endpoint, tmp_path, monkeypatch):
    """The published files of a small Llama, on the hub as org/tiny."""
    config = jaxseq.config("llama", **{"model.width": 16, "model.stack": "1*(attention swiglu)", "model.swiglu.hidden": 24})
    model = jaxseq.build(config)
    params = model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    jaxseq.save_pretrained(tmp_path / "tiny", model, params)
    files = {path.name: path.read_bytes() for path in (tmp_path / "tiny").iterdir()}
    more = {"pytorch_model.bin": b"not these", "README.md": b"# tiny", "onnx/model.onnx": b"nor these"}
    monkeypatch.setattr(Hub, "files", files | more)
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return params


@pytest.mark.parametrize("address", ["hf://org/tiny", "hf://org/tiny@main"])
def test_a_model_is_downloaded_and_imported(tiny, address, tmp_path, capsys):
    assert cli.main(["import", address, str(tmp_path / "run")]) == 0, capsys.readouterr().err
    from jaxseq.train import load

    _, params, _ = load(tmp_path / "run")
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, tiny))
    downloaded = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert not downloaded & {"pytorch_model.bin", "model.onnx", "README.md"}


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("hf://tiny", "hf://owner/name"),
        ("hf://org/none", "no model org/none"),
        ("hf://org/locked", "HF_TOKEN"),
        ("hf://org/tiny@gone", "no revision gone"),
        ("hf://org/tiny/other.gguf", "no file other.gguf"),
    ],
)
def test_what_the_hub_does_not_give_is_one_line(tiny, address, said, tmp_path, capsys):
    assert cli.main(["import", address, str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error
    assert not (tmp_path / "run").exists()


def test_several_models_in_one_place_must_be_named(tiny, monkeypatch):
    monkeypatch.setattr(Hub, "files", {"a.pth": b"", "b.pth": b"", "config.json": b"{}"})
    with pytest.raises(jaxseq.UserError, match="2 models; add one of their names: a.pth, b.pth"):
        hub.fetch("hf://org/tiny")


@pytest.fixture
def unreachable(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # the server is stopped
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the library's pauses between attempts
    return f"http://127.0.0.1:{port}"


def test_no_hub_is_one_line(unreachable, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", unreachable)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert cli.main(["import", "hf://org/tiny", str(tmp_path / "run")]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"hf://org/tiny cannot be fetched from {unreachable}: " in last and "download it and give its folder" in last


def test_an_earlier_download_needs_no_hub(tiny, unreachable, monkeypatch, caplog):
    fetched = hub.fetch("hf://org/tiny")
    monkeypatch.setenv("HF_ENDPOINT", unreachable)
    assert hub.fetch("hf://org/tiny") == hub.fetch("hf://org/tiny@main") == fetched
    assert f"the earlier download of commit {COMMIT} is taken" in caplog.text
    for address in ("hf://org/tiny@gone", "hf://org/tiny/other.gguf"):  # these files were not downloaded
        with pytest.raises(jaxseq.UserError, match="cannot be fetched"):
            hub.fetch(address)


@pytest.mark.parametrize("name", ["org/tiny", "missing/folder"])
def test_a_path_that_is_missing_opens_no_connection(name, tmp_path, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    assert cli.main(["import", name, str(tmp_path / "run")]) == 2
    assert name in capsys.readouterr().err
