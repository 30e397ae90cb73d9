from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from varvel.apps.errors import BadTarget, FolderTooLarge
from varvel.apps.folder import Limits, copy, listing, pack, unpack

ROOMY = Limits(size=1_000_000, files=100)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "app"
    for name in ("app.py", "deep/data.txt", ".git/config", "__pycache__/app.pyc", ".venv/bin/python", "old.pyc"):
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return place


def test_what_belongs_to_tools_is_left_behind(folder: Path) -> None:
    assert [str(path) for path in listing(folder, ROOMY)] == ["app.py", "deep/data.txt"]


def test_links_that_lead_out_of_the_folder_are_left_behind(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "inside").symlink_to(folder / "app.py")
    (folder / "broken").symlink_to(folder / "nothing")
    assert [path.name for path in listing(folder, ROOMY)] == ["app.py", "data.txt", "inside"]


@pytest.mark.parametrize("limits", [Limits(size=10, files=100), Limits(size=1000, files=1)])
def test_a_folder_that_is_too_large_is_refused_with_its_limits(folder: Path, limits: Limits) -> None:
    with pytest.raises(FolderTooLarge, match="a folder of its own"):
        listing(folder, limits)


def test_a_copy_does_not_follow_later_edits(folder: Path, tmp_path: Path) -> None:
    copy(folder, tmp_path / "copy", ROOMY)
    (folder / "app.py").write_text("changed")
    assert (tmp_path / "copy" / "app.py").read_text() == "app.py"


def test_a_packed_folder_unpacks_to_the_same_files(folder: Path, tmp_path: Path) -> None:
    assert pack(folder, ROOMY, tmp_path / "a.tar.gz") == 2
    unpack(tmp_path / "a.tar.gz", tmp_path / "out", ROOMY)
    assert listing(tmp_path / "out", ROOMY) == listing(folder, ROOMY)
    assert (tmp_path / "out" / "deep" / "data.txt").read_text() == "deep/data.txt"


def archive(path: Path, member: tarfile.TarInfo, content: bytes = b"") -> Path:
    with tarfile.open(path, "w") as file:
        member.size = len(content)
        file.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["../out.py", "a/../../out.py"])
def test_a_tar_cannot_write_outside_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadTarget):
        unpack(archive(tmp_path / "a.tar", tarfile.TarInfo(name), b"x"), tmp_path / "out", ROOMY)
    assert not list(tmp_path.rglob("out.py"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("odd")
    member.type = kind
    member.linkname = "/etc/passwd"
    with pytest.raises(BadTarget, match="neither a file nor a folder"):
        unpack(archive(tmp_path / "a.tar", member), tmp_path / "out", ROOMY)


def test_a_tar_bomb_is_stopped_at_the_limit(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar", tarfile.TarInfo("big"), b"x" * 2000)
    with pytest.raises(FolderTooLarge):
        unpack(path, tmp_path / "out", Limits(size=1000, files=10))


@pytest.mark.parametrize("content", [b"", b"not a tar", b"\x1f\x8b\x08broken"])
def test_an_upload_that_is_no_tar_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(BadTarget, match="not a tar"):
        unpack(tmp_path / "a.tar", tmp_path / "out", ROOMY)
