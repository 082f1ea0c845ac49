"""Files are whole or not there."""

import errno
import os

import pytest

from lfvit.errors import StorageError
from lfvit.utils.atomic_io import remove_partial, write_atomic


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_what_was_there_is_kept_where_writing_fails(tmp_path, monkeypatch, code):
    write_atomic(tmp_path / "a.json", "before")

    def refuse(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    message = rf"a\.json cannot be written: {os.strerror(code)} \(0\.0 MB needed, .* MB free\)"
    with pytest.raises(StorageError, match=message):
        write_atomic(tmp_path / "a.json", "after")
    assert (tmp_path / "a.json").read_text() == "before"
    assert os.listdir(tmp_path) == ["a.json"]


def test_what_a_killed_process_has_left_is_removed(tmp_path):
    (tmp_path / "last.ckpt.partial").write_text("half")
    (tmp_path / "sharded.partial").mkdir()
    (tmp_path / "last.ckpt").write_text("whole")
    remove_partial(tmp_path)
    remove_partial(tmp_path / "nowhere")
    assert os.listdir(tmp_path) == ["last.ckpt"]
