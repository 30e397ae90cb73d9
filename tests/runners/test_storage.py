from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.runners.conftest import ECHO, World, call

WRITE = "import os\nPATH = os.environ['VARVEL_DATA_DIR']\n" + ECHO.replace(
    "more = True", 'open("/data/seen-at-data", "w").write("x"); print(sorted(os.listdir(PATH))); more = True', 1
)


def mounts_allowed() -> bool:
    """Whether this machine lets a process of ours have mounts of its own."""
    pid = os.fork()
    if pid == 0:
        import ctypes

        os._exit(int(ctypes.CDLL(None).unshare(0x00020000) != 0))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.skipif(os.getuid() != 0 or not mounts_allowed(), reason="no mount namespaces here")
async def test_an_app_has_its_owners_files_at_data_and_nobody_else_sees_them_there(world: World) -> None:
    app, pool = world.app(WRITE), await world.pool()
    slot = await pool.acquire(app)
    assert (await call(slot))[0] == 200
    slot.release()
    assert world.logs.messages(level="stdout") == ["['seen-at-data']"]
    assert (world.folder / "data" / "files" / "me" / "seen-at-data").read_text() == "x"
    assert not Path("/data/seen-at-data").exists()


async def test_an_app_without_data_mounted_still_has_its_folder(world: World) -> None:
    app, pool = world.app(WRITE.replace('"/data/', 'PATH + "/')), await world.pool(mount_data=False)
    slot = await pool.acquire(app)
    assert (await call(slot))[0] == 200
    slot.release()
    assert world.logs.messages(level="stdout") == ["['seen-at-data']"]
