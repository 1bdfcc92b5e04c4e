"""Files that are written whole or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deeplabv3.files import lock_folder, partial_of, write_atomically

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit


def test_a_file_is_written_where_it_differs(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    assert [write_atomically(path, content) for content in (b"1", b"1", b"2")] == [True, False, True]
    assert path.read_bytes() == b"2"


@pytest.mark.parametrize("content", [b"same", b"another"])
def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"same")
    partial_of(path).write_bytes(b"sa")
    write_atomically(path, content)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [content]


def test_a_failed_write_leaves_the_file_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"before")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: .*{path.name}"):
        write_atomically(path, b"after")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"before"]


def test_a_folder_has_one_owner_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    with lock_folder(folder), pytest.raises(BlockingIOError), lock_folder(folder):
        pass
    with lock_folder(folder):
        pass
