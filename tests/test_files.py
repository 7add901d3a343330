"""Files: whole or not at all, and one sentence with the way out where that fails."""

import errno
import os

import pytest

from irae.files import FileError, write_bytes


def test_nothing_is_overwritten_unless_asked(tmp_path):
    path = tmp_path / "a.png"
    write_bytes(path, b"first")
    with pytest.raises(FileError, match=r"a\.png exists: choose another name or ask to overwrite it"):
        write_bytes(path, b"second")
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]
    write_bytes(path, b"third", overwrite=True)
    assert path.read_bytes() == b"third" and list(tmp_path.iterdir()) == [path]


def test_new_files_have_the_usual_permissions(tmp_path):
    (tmp_path / "plain").write_bytes(b"x")
    write_bytes(tmp_path / "a.png", b"x")
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    write_bytes(tmp_path / "link.png", b"1")
    write_bytes(tmp_path / "link.png", b"2", overwrite=True)
    assert (tmp_path / "link.png").is_symlink() and (tmp_path / "real.png").read_bytes() == b"2"


@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_is_left_of_a_write_that_fails(overwrite, tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    if overwrite:
        path.write_bytes(b"before")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match=r"a\.png cannot be written: the disk is full, make room first"):
        write_bytes(path, b"after", overwrite=overwrite)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == ([("a.png", b"before")] if overwrite else [])


def test_nothing_is_left_of_an_interrupted_write(tmp_path, monkeypatch):
    def interrupt(handle):
        assert [p.name[0] for p in tmp_path.iterdir()] == ["."]  # hidden until it is whole
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(tmp_path / "a.png", b"x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_folders_that_cannot_be_written(overwrite, tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileError, match="a file is where a folder should be"):
        write_bytes(tmp_path / "file" / "a.png", b"x", overwrite=overwrite)
    with pytest.raises(FileError, match="its folder does not exist, create it first"):
        write_bytes(tmp_path / "missing" / "a.png", b"x", overwrite=overwrite)
    with pytest.raises(FileError):
        write_bytes(tmp_path / "folder", b"x", overwrite=overwrite)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder"]


def test_a_path_that_is_not_valid():
    with pytest.raises(FileError, match="not a valid path"):
        write_bytes("nul\0.png", b"x")


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_file_systems_without_links(code, tmp_path, monkeypatch):
    def no_links(source, target):
        raise OSError(code, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    write_bytes(tmp_path / "a.png", b"1")
    with pytest.raises(FileError, match="exists"):
        write_bytes(tmp_path / "a.png", b"2")

    def no_moves(source, target):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "replace", no_moves)
    with pytest.raises(FileError, match="Input/output error, choose another place"):
        write_bytes(tmp_path / "b.png", b"3")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.png", b"1")]
