"""Folders and buckets: pictures to segment, and the rows of finished ones."""

# pyright: reportMissingImports=false, reportUnknownParameterType=false
# Ray and pyarrow are only in the environment of `make check-batch`, so their types are unknown here.

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from pyarrow import fs

if TYPE_CHECKING:
    from collections.abc import Iterator

SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".jpe", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff", ".avif", ".heic", ".heif"),
)
"""Suffixes of the files that are segmented, as in `deeplab segment`."""

SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "classes": pa.list_(
            pa.struct({"id": pa.int16(), "name": pa.string(), "share": pa.float64(), "rle": pa.string()})
        ),
        "mask": pa.binary(),
        "model": pa.string(),
        "version": pa.string(),
        "weights": pa.string(),
        "error": pa.struct({"kind": pa.string(), "message": pa.string(), "retryable": pa.bool_()}),
    }
)


@dataclass(frozen=True)
class Place:
    """A folder on a local disk or in object storage.

    Attributes:
        filesystem: The file system of the folder.
        root: Path of the folder on that file system.
    """

    filesystem: fs.FileSystem
    root: str

    @classmethod
    def of(cls, uri: str) -> Place:
        """Return the place of a path or a pyarrow URI."""
        filesystem, root = fs.FileSystem.from_uri(uri if "://" in uri else str(Path(uri).resolve()))
        return cls(filesystem, root.rstrip("/"))

    def make_folder(self, name: str) -> None:
        """Create a folder on a local disk; a bucket has no folders."""
        if isinstance(self.filesystem, fs.LocalFileSystem):
            self.filesystem.create_dir(f"{self.root}/{name}", recursive=True)

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        with self.filesystem.open_input_file(f"{self.root}/{name}") as file:
            return file.read()

    def write(self, name: str, content: bytes) -> None:
        """Write a file into an existing folder."""
        with self.filesystem.open_output_stream(f"{self.root}/{name}") as file:
            file.write(content)

    def write_rows(self, name: str, rows: pa.Table) -> None:
        """Write a shard atomically."""
        partial = f"{self.root}/_unfinished/{uuid.uuid4().hex}"
        with self.filesystem.open_output_stream(partial) as file:
            pq.write_table(rows, file, compression="zstd")
        self.filesystem.move(partial, f"{self.root}/rows/{name}")

    def shards(self) -> pads.Dataset:
        """Return the rows of earlier runs."""
        selector = fs.FileSelector(f"{self.root}/rows", allow_not_found=True)
        files = [info.path for info in self.filesystem.get_file_info(selector) if info.is_file]
        return pads.dataset(files, schema=SCHEMA, filesystem=self.filesystem, format="parquet")


def list_pictures(source: Place) -> pa.Array:
    """Return the relative paths of the pictures of a folder and its subfolders, without hidden files."""
    found = source.filesystem.get_file_info(fs.FileSelector(source.root, recursive=True))
    names = (info.path[len(source.root) + 1 :] for info in found if info.is_file)
    pictures = (name for name in names if name.lower().endswith(SUFFIXES) and "/." not in f"/{name}")
    return pa.array(pictures, pa.string())


def forget_failures(output: Place) -> None:
    """Remove the rows of pictures that failed with a retryable error."""
    for shard in output.shards().get_fragments():
        again = pc.fill_null(pc.struct_field(shard.to_table(columns=["error"])["error"], "retryable"), False)  # noqa: FBT003 - pyarrow's signature
        if pc.any(again).as_py():
            rows = shard.to_table(schema=SCHEMA).filter(pc.invert(again))
            output.write_rows(shard.path.rpartition("/")[2], rows)


def without_rows(output: Place, listed: pa.Array, *, shard: int) -> Iterator[pa.Table]:
    """Yield the pictures that have no row yet, in tables of one column, `path`.

    Args:
        output: Where the rows are.
        listed: Paths of pictures.
        shard: Pictures per table; the last table may have fewer.
    """
    done = output.shards().to_table(columns=["path"])["path"]
    missing = listed.filter(pc.invert(pc.is_in(listed, value_set=done)))
    for start in range(0, len(missing), shard):
        # Copy the slice, because Ray would send the whole array with it.
        yield pa.table({"path": pa.array(missing[start : start + shard].to_pylist(), pa.string())})
