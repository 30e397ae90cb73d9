"""A parent that has imported uvicorn and FastAPI, and forks a server of the echo app for each line on its stdin.

The least that a forked runner can take: no channel, no labels, no supervision. A line is a port; the answer is the
child's pid.
"""

from __future__ import annotations

import gc
import os
import signal
import sys

import fastapi  # noqa: F401 - to have it imported before the fork
import uvicorn
import uvicorn.lifespan.on
import uvicorn.protocols.http.httptools_impl
import uvloop  # noqa: F401


def main() -> None:
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("warm", flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os.close(0)
            app = "benchmarks.apps.fastapi_echo:app"
            uvicorn.run(app, host="127.0.0.1", port=int(line), access_log=False, log_level="error")
            os._exit(0)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
