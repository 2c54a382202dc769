"""Arrays and images that are damaged or claim a wrong size: a one-line error, without allocating the claimed size."""

import io
import os
import struct
import zipfile
import zlib

import numpy as np
import pytest
from helpers.data import data_config

from jaxseq.data import labelled
from jaxseq.errors import UserError


def npz(images=b"", labels=None, compression=zipfile.ZIP_STORED) -> bytes:
    out, own = io.BytesIO(), io.BytesIO()
    np.save(own, np.zeros(4, np.int64) if labels is None else labels, allow_pickle=True)
    with zipfile.ZipFile(out, "w", compression) as members:
        members.writestr("images.npy", images)
        members.writestr("labels.npy", own.getvalue())
    return out.getvalue()


def header(shape, descr="|u1", data=b"") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape!r}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + data


DAMAGED = b"\x93NUMPY\x01\x00\x0a\x00{'descr': (\n"  # numpy raises tokenize.TokenError, not ValueError
CASES = {
    "garbage": b"garbage",
    "empty": b"",
    "zip of nothing": npz()[:30],
    "no images": npz()[:-22],
    "claims 373 GiB": npz(header((1_000_000, 365, 365, 3))),
    "claims too much for an integer": npz(header((10**30,))),
    "negative": npz(header((-4, 2, 2, 3), data=b"\0" * 48)),
    "cut off": npz(header((4, 2, 2, 3), data=b"\0" * 40)),
    "a bomb": npz(header((1 << 10, 1 << 9, 1 << 9, 1), data=b"\0" * (1 << 28)), compression=zipfile.ZIP_DEFLATED),
    "objects": npz(header((4, 2, 2, 3), "|O", b"cos\nsystem\n(S'true'\ntR.")),
    "labels of objects": npz(header((4, 2, 2, 3), data=b"\0" * 48), np.asarray([{}] * 4, object)),
    "no header": npz(b"\x93NUMPY\x01\x00\xff\xff{"),
    "a header that goes on": npz(DAMAGED),
    "odd type": npz(header((4,), "nonsense")),
    "floats": npz(header((4, 2, 2, 3), "<f4", b"\0" * 192)),
}


@pytest.mark.parametrize("name", CASES)
def test_arrays_that_cannot_be_read(tmp_path, name):
    (tmp_path / "x.npz").write_bytes(CASES[name])
    with pytest.raises(UserError, match=r"x.npz (cannot be read as arrays|must hold images)") as caught:
        labelled.images(data_config(path=str(tmp_path / "x.npz")).data, None)
    assert "; " in str(caught.value)


def test_arrays_that_can(tmp_path):
    images = np.arange(4 * 2 * 2 * 3, dtype=np.uint8).reshape(4, 2, 2, 3)
    for save in (np.savez, np.savez_compressed):
        for order in "CF":
            save(tmp_path / "x.npz", images=np.asarray(images, order=order), labels=np.arange(4))
            found = labelled.images(data_config(path=str(tmp_path / "x.npz")).data, 2)
            np.testing.assert_allclose(found.examples(3)["images"], images[3] / 127.5 - 1, rtol=1e-6)


def png(width, height) -> bytes:
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(60_000, 60_000), (12_000, 9_000), (1, 80_000_000), (70_000, 2)])
def test_an_image_of_too_many_pixels(tmp_path, size):
    pytest.importorskip("PIL")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(png(*size))
    os.mkfifo(tmp_path / "a" / "pipe.png")
    found = labelled.images(data_config(path=str(tmp_path), side=8).data, 8)
    assert len(found.labels) == 1
    with pytest.raises(UserError, match=r"x.png cannot be read as an image \(.*pixels.*\); remove or replace it"):
        found.examples(0)


DAMAGED = [b"", b"garbage", b"\x89PNG\r\n\x1a\n", png(4, 4)[:43], b"GIF89a" + b"\xff" * 20, b"BM" + b"\xff" * 60]


@pytest.mark.parametrize("content", DAMAGED)
def test_an_image_that_is_damaged(tmp_path, content):
    pytest.importorskip("PIL")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(content)
    with pytest.raises(UserError, match=r"x.png cannot be read as an image \(.*\); remove or replace it"):
        labelled.images(data_config(path=str(tmp_path), side=8).data, 8).examples(0)


def test_folders_of_splits_are_no_classes(tmp_path):
    pytest.importorskip("PIL")
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"are splits \(test, train\), not classes; name one of them"):
        labelled.images(data_config(path=str(tmp_path), side=8).data, 8)
