"""Sequences of DNA, RNA or proteins: FASTA files."""

from collections.abc import Iterator
from pathlib import Path

from jaxseq.data import files
from jaxseq.data.readers import DNA_DOCUMENT, Document, Options
from jaxseq.errors import UserError

SUFFIXES = (".fa", ".fasta", ".fna", ".ffn", ".faa")


def read(path: Path, name: str, options: Options) -> Iterator[Document]:
    """Sequences of a FASTA file as documents of at most 8192 letters, named RECORD:FIRST-LAST, counted from 1.

    Headers, comments and line ends are skipped. Lower-case letters (soft masking) become upper-case.
    """
    record, held, before = "", bytearray(), 0
    with files.opened(path) as stream:
        for number, line in _lines(stream):
            if line[:1] in b">;":
                if line[:1] == b">" and held:
                    yield _sequence(record, held, before)
                if line[:1] == b">":
                    record, held, before = (line[1:].decode(errors="replace").split() or [name])[0], bytearray(), 0
                continue
            letters = b"".join(line.split()).upper()
            if letters and not record:
                raise UserError(f"{path} line {number} is before the first header; begin each sequence with a line >NAME")
            if letters.translate(None, b"ABCDEFGHIJKLMNOPQRSTUVWXYZ*-"):
                raise UserError(f"{path} line {number} has a character that is not a letter of a sequence; is it a FASTA file?")
            held += letters
            while len(held) > DNA_DOCUMENT:
                yield _sequence(record, held[:DNA_DOCUMENT], before)
                del held[:DNA_DOCUMENT]
                before += DNA_DOCUMENT
        if held:
            yield _sequence(record, held, before)


def _sequence(record: str, letters: bytes, before: int) -> Document:
    return Document(f"{record}:{before + 1}-{before + len(letters)}", letters.decode())


def _lines(stream) -> Iterator[tuple[int, bytes]]:
    """(number, line). A line longer than a buffer comes in parts; of a long header, only the first part."""
    number, whole, header = 0, True, False
    while line := stream.readline(files.BUFFER):
        number += whole
        line = line.removeprefix(files.BOM) if number == 1 else line
        header = line[:1] in b">;" if whole else header
        if line.strip() and (whole or not header):
            yield number, line
        whole = line.endswith(b"\n")
