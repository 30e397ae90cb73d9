"""One server a data folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from varvel.lock import DataFolderInUse, DataFolderLock

HOLD = """
import pathlib, sys
from varvel.lock import DataFolderLock
lock = DataFolderLock(pathlib.Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_server_is_refused_and_told_who_holds_the_folder(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(DataFolderInUse, match=f"process id {holder.pid}"):
            DataFolderLock(tmp_path)
        holder.kill()
        holder.wait()
        DataFolderLock(tmp_path).release()
