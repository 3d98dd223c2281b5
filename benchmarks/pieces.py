"""Files in pieces of a limited size, for a host that nothing larger reaches.

A piece is made of whole xz streams, so `cat piece-* | xz -dc | tar -x` unpacks them too. pieces.json beside them has the size
and SHA-256 of each, and travels with them.
"""

from __future__ import annotations

import lzma
import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from kappaspeech.artefacts import digest_file, read_json, write_json
from kappaspeech.outside import explained

MANIFEST = "pieces.json"
SCHEMA_VERSION = 1
# preset 3 took 5 to 20 times as long for SmolLM2's and Whisper's weights, and left 63 and 48 % of them; this leaves 58 and 51 %
_PRESET = 0
_MOST_BLOCK_BYTES = 4 << 20


def write_pieces(root: Path, files: Iterable[Path], folder: Path, *, limit_bytes: int) -> list[Path]:
    """Pack `files`, paths from `root` on, into pieces of at most `limit_bytes`; return the paths of the pieces."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / MANIFEST, *folder.glob("piece-[0-9]*")):
        old.unlink(missing_ok=True)
    pieces = _Pieces(folder, limit_bytes)
    # a stream's blocks come as large as asked for
    block_bytes = min(_MOST_BLOCK_BYTES, limit_bytes // 2) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
    with tarfile.open(fileobj=pieces, mode="w|", bufsize=block_bytes) as tar:
        for path in sorted(files):
            # a link is sent as what it points to
            member = tar.gettarinfo((root / path).resolve(), path.as_posix())
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            with (root / path).open("rb") as content:
                tar.addfile(member, content)
    described = [{"name": path.name, "bytes": path.stat().st_size, "sha256": digest_file(path)} for path in pieces.paths]
    write_json(folder / MANIFEST, {"schema_version": SCHEMA_VERSION, "pieces": described})
    return pieces.paths


class _Pieces:
    """A file for writing alone, which begins another piece when a block doesn't fit into the last."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.paths: list[Path] = []
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._size = limit_bytes

    def write(self, block: bytes) -> int:
        stream = lzma.compress(block, preset=_PRESET)
        if self._size + len(stream) > self._limit_bytes:
            self.paths.append(self._folder / f"piece-{len(self.paths):04d}")
            self._size = 0
        with self.paths[-1].open("ab") as piece:
            piece.write(stream)
        self._size += len(stream)
        return len(block)


def read_pieces(folder: Path, target: Path) -> None:
    """Unpack all pieces in `folder` into `target`. Exits with the names of those that are missing or have other bytes."""
    if not (folder / MANIFEST).exists():
        raise SystemExit(f"{folder} has no {MANIFEST}. Send it with the pieces.")
    with explained(f"{folder / MANIFEST} can't be read", "Send it again."):
        described = read_json(folder / MANIFEST, schema_version=SCHEMA_VERSION)["pieces"]
        wanted = {folder / Path(piece["name"]).name: str(piece["sha256"]) for piece in described}
    paths = list(wanted)
    if missing := [path.name for path in paths if not path.exists()]:
        raise SystemExit(f"{folder} lacks {len(missing)} of {len(paths)} pieces: {', '.join(missing)}. Send them too.")
    with ThreadPoolExecutor() as pool:
        digests = pool.map(digest_file, paths)
        if damaged := [path.name for path, digest in zip(paths, digests, strict=True) if digest != wanted[path]]:
            raise SystemExit(f"{', '.join(damaged)} in {folder} isn't what {MANIFEST} says. Send it again.")
        with tarfile.open(fileobj=_Joined(pool.map(_unpack, paths)), mode="r|") as tar:
            for member in tar:
                _put(member, tar.extractfile(member), target)


def _put(member: tarfile.TarInfo, content: IO[bytes] | None, target: Path) -> None:
    """Write a file below `target`, with its time. Older Pythons' tarfile has no filter that keeps names from leading out."""
    path = Path(member.name)
    if content is None or path.is_absolute() or ".." in path.parts:
        raise SystemExit(
            f"The pieces hold {member.name}, which is no file below their folder. Take them from where they were made."
        )
    (target / path).parent.mkdir(parents=True, exist_ok=True)
    with (target / path).open("wb") as file:
        shutil.copyfileobj(content, file)
    os.utime(target / path, (member.mtime, member.mtime))


def _unpack(piece: Path) -> bytes:
    return lzma.decompress(piece.read_bytes())


class _Joined:
    """A file for reading alone, of blocks one behind the other."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._left = memoryview(b"")

    def read(self, size: int) -> bytes:
        taken: list[memoryview] = []
        while size > 0 and (self._left or self._begin_next()):
            taken.append(self._left[:size])
            self._left = self._left[size:]
            size -= len(taken[-1])
        return b"".join(taken)

    def _begin_next(self) -> bool:
        self._left = memoryview(next(self._blocks, b""))
        return bool(self._left)


def files_of(root: Path, paths: Sequence[Path], *, without: Sequence[str] = ()) -> list[Path]:
    """The files at or below `paths`, from `root` on, but those whose path has a part named in `without`."""
    if missing := [str(path) for path in paths if not (root / path).exists()]:
        raise SystemExit(f"{root} has no {', '.join(missing)}.")
    found = (file for path in paths for file in ([root / path] if (root / path).is_file() else (root / path).rglob("*")))
    relative = {file.relative_to(root) for file in found if file.is_file()}
    return sorted(file for file in relative if not set(file.parts) & set(without))
