"""A gateway that only forwards: the ceiling for Varvel's own, over the same connection to the same runner."""

from __future__ import annotations

import sys
from typing import Any

import uvicorn

from varvel.runners.transport import Connections


class Forwarder:
    """Reads a body, sends it on, answers what came back. No keys, no queue, no records."""

    def __init__(self, socket: str) -> None:
        self._socket = socket
        self._connections: Connections | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._connections is None:
            self._connections = Connections(self._socket, 16 * 1024)
        message = await receive()
        body = message["body"]
        while message["more_body"]:
            message = await receive()
            body += message["body"]
        response = await self._connections.send(scope["method"], scope["raw_path"], scope["headers"], body)
        answer = await response.read(1 << 20)
        await send({"type": "http.response.start", "status": response.status, "headers": response.headers})
        await send({"type": "http.response.body", "body": answer})


if __name__ == "__main__":
    uvicorn.run(
        Forwarder(sys.argv[1]),
        host="127.0.0.1",
        port=int(sys.argv[2]),
        lifespan="off",
        access_log=False,
        log_level="error",
    )
