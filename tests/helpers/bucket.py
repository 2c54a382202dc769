"""A Google Cloud Storage emulator (gcp-storage-emulator) in this process, on a port that child processes can reach."""

import contextlib
import json
import os
import socket
import socketserver
import sys
import traceback
from collections.abc import Iterator
from unittest import mock
from urllib.parse import unquote

NAME = "bucket"


@contextlib.contextmanager
def served() -> Iterator[None]:
    """Context in which the emulator runs with one empty bucket; clients of this process and of its children use it."""
    from gcp_storage_emulator import server
    from gcp_storage_emulator.handlers import objects

    from jaxseq import paths

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    where = {"STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url}
    # Otherwise they ask Google for the kind of the bucket and for credentials.
    where |= {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false", "NO_GCE_CHECK": "true"}
    store = server.create_server("127.0.0.1", port, in_memory=True, default_bucket=NAME)
    with (
        mock.patch.dict(os.environ, where),
        mock.patch.object(server.Router, "handle", _conditional(server)),
        mock.patch.object(objects, "download", _with_generation(objects.download)),
        mock.patch.object(socketserver.BaseServer, "handle_error", _complain),
    ):
        paths._client.cache_clear()
        store.start()
        try:
            yield
        finally:
            store.stop()
            paths._client.cache_clear()


def _complain(self, request, address) -> None:
    if not isinstance(sys.exception(), ConnectionError):  # a client may close the connection early
        traceback.print_exc()


def _with_generation(plain):
    """The emulator's download, with the header that names the object's generation, as Google sends it. A client that has read an
    object (tensorstore reads its manifest again if it commits twice) needs it to write on the condition that nobody else did."""

    def download(request, response, storage, *args, **kwargs) -> None:
        plain(request, response, storage, *args, **kwargs)
        if response.status < 300:
            found = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
            response["x-goog-generation"] = found["generation"]

    return download


def _conditional(server):
    """The emulator's answer, after checking the condition on the object's generation, which the emulator ignores. A request to
    move an object is refused with a status after which gcsfs copies and deletes; it repeats one that is answered with 501."""
    plain = server.Router.handle

    def handle(self, method: str) -> None:
        request = server.Request(self._request_handler, method)
        wanted = request.query.get("ifGenerationMatch")
        if wanted and int(wanted[0]) != _generation(self._request_handler.storage, request):
            refuse(self, server.HTTPStatus.PRECONDITION_FAILED, "conditionNotMet")
        elif "/moveTo/" in request.path:
            refuse(self, server.HTTPStatus.BAD_REQUEST, "not implemented")
        else:
            plain(self, method)

    def refuse(self, status, message: str) -> None:
        self._request_handler.rfile.read(int(self._request_handler.headers.get("Content-Length") or 0))
        response = server.Response(self._request_handler)
        response.status = status
        response.json({"error": {"code": int(status), "message": message}})
        response.close()

    return handle


def _generation(storage, request) -> int:
    """Generation of the object of a request; 0 if there is none."""
    from gcp_storage_emulator.exceptions import NotFound

    _, _, rest = request.path.partition(f"/b/{NAME}/o")
    name = unquote(rest.lstrip("/")).removesuffix("/compose") or "".join(request.query.get("name", []))
    if not name:
        raw = request._request_handler.rfile.peek()  # of a multipart upload, whose first part has the name
        name = json.loads(raw[raw.index(b"{") : raw.index(b"}") + 1])["name"]
    try:
        return int(storage.get_file_obj(NAME, name)["generation"])
    except NotFound:
        return 0
