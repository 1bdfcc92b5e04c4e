"""What lies in a folder or a bucket: pictures to segment, and the rows of those that are done."""

# pyright: reportMissingImports=false, reportUnknownParameterType=false
# Ray and pyarrow are in an environment that only `make check-batch` makes; without it nothing of theirs has a type.

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
"""Of the files that are taken, those of `deeplab segment`."""

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
        filesystem: The one that it is on.
        root: Its path there.
    """

    filesystem: fs.FileSystem
    root: str

    @classmethod
    def of(cls, uri: str) -> Place:
        """Return the place that a path or a URI of pyarrow names."""
        filesystem, root = fs.FileSystem.from_uri(uri if "://" in uri else str(Path(uri).resolve()))
        return cls(filesystem, root.rstrip("/"))

    def make_folder(self, name: str) -> None:
        """Make a folder where folders exist; a bucket has none."""
        if isinstance(self.filesystem, fs.LocalFileSystem):
            self.filesystem.create_dir(f"{self.root}/{name}", recursive=True)

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        with self.filesystem.open_input_file(f"{self.root}/{name}") as file:
            return file.read()

    def write(self, name: str, content: bytes) -> None:
        """Write a file whose folder exists."""
        with self.filesystem.open_output_stream(f"{self.root}/{name}") as file:
            file.write(content)

    def write_rows(self, name: str, rows: pa.Table) -> None:
        """Write a shard that appears whole or not at all."""
        partial = f"{self.root}/_unfinished/{uuid.uuid4().hex}"
        with self.filesystem.open_output_stream(partial) as file:
            pq.write_table(rows, file, compression="zstd")
        self.filesystem.move(partial, f"{self.root}/rows/{name}")

    def shards(self) -> pads.Dataset:
        """Return the rows that earlier runs have written."""
        selector = fs.FileSelector(f"{self.root}/rows", allow_not_found=True)
        files = [info.path for info in self.filesystem.get_file_info(selector) if info.is_file]
        return pads.dataset(files, schema=SCHEMA, filesystem=self.filesystem, format="parquet")


def list_pictures(source: Place) -> pa.Array:
    """Return the pictures of a folder and those below it, by their path from there; hidden ones are not taken."""
    found = source.filesystem.get_file_info(fs.FileSelector(source.root, recursive=True))
    names = (info.path[len(source.root) + 1 :] for info in found if info.is_file)
    pictures = (name for name in names if name.lower().endswith(SUFFIXES) and "/." not in f"/{name}")
    return pa.array(pictures, pa.string())


def forget_failures(output: Place) -> None:
    """Take the rows out of the shards whose pictures may succeed the next time."""
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
        shard: Pictures in a table; the last has fewer.
    """
    done = output.shards().to_table(columns=["path"])["path"]
    missing = listed.filter(pc.invert(pc.is_in(listed, value_set=done)))
    for start in range(0, len(missing), shard):
        # A copy: Ray would send the whole array with each slice.
        yield pa.table({"path": pa.array(missing[start : start + shard].to_pylist(), pa.string())})
