"""`fal_client`, unmodified, over TLS: two host names in its environment, and for uploads two constants."""

from __future__ import annotations

import asyncio
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import trustme

from tests.gateway.rig import Rig, listening, rig

PREAMBLE = """
import asyncio, json, os
import fal_client
import fal_client.client
fal_client.client.REST_URL = fal_client.client.CDN_URL = os.environ["SERVER"]
said = {}
"""


async def _session(own: Rig, folder: Path, program: str) -> dict[str, Any]:
    """Run a program in a process of its own against the gateway; what it prints as JSON."""
    ca = trustme.CA()
    certificate = ca.issue_cert("localhost", "127.0.0.1")
    ca.cert_pem.write_to_path(folder / "ca.pem")
    certificate.private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    async with listening(own.gateway, ssl_certfile=folder / "server.pem") as url:
        host = url.removeprefix("https://")
        environ = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(folder),
            "FAL_KEY": own.keys["me"],
            "FAL_RUN_HOST": f"{host}/run",
            "FAL_QUEUE_RUN_HOST": f"{host}/queue",
            "SSL_CERT_FILE": str(folder / "ca.pem"),
            "SERVER": url,
        }
        text = PREAMBLE + textwrap.dedent(program) + "\nprint(json.dumps(said))\n"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", text, env=environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 0, err.decode()
        said: dict[str, Any] = json.loads(out)
        return said


async def test_calls_of_every_kind_work(tmp_path: Path) -> None:
    program = """
    ran = fal_client.run("me/echo", {"n": 1}, path="/sub", hint="h", start_timeout=30)
    said["run"] = [ran["path"], ran["asked"]]
    handle = fal_client.submit("me/echo", {"print": "a line"}, path="/sub", priority="low", start_timeout=30)
    events = list(handle.iter_events(with_logs=True))
    said["last"] = type(events[-1]).__name__
    said["logs"] = [line["message"] for line in events[-1].logs]
    said["result"] = handle.get()["asked"]
    said["by_id"] = fal_client.result("me/echo", handle.request_id)["asked"]
    said["status"] = type(fal_client.status("me/echo", handle.request_id, with_logs=False)).__name__
    try:
        handle.cancel()
    except fal_client.FalClientHTTPError as error:
        said["cancel"] = error.status_code
    waiting = fal_client.submit("me/echo", {"until_cancelled": True})
    while type(waiting.status()).__name__ != "InProgress":
        pass
    waiting.cancel()
    try:
        waiting.get()
    except fal_client.FalClientHTTPError as error:
        said["cancelled"] = [error.status_code, error.message]
    try:
        fal_client.run("me/echo", {"status": 422})
    except fal_client.FalClientHTTPError as error:
        said["invalid"] = error.status_code
    try:
        fal_client.run("me/nothing", {})
    except fal_client.FalClientHTTPError as error:
        said["unknown"] = [error.status_code, error.message]
    said["stream"] = list(fal_client.stream("me/echo", {"events": 3}, path="/events"))
    seen = []
    subscribed = fal_client.subscribe("me/echo", {"n": 2}, with_logs=True, on_queue_update=lambda u: seen.append(u))
    said["subscribe"] = [subscribed["asked"], type(seen[-1]).__name__]

    async def later():
        handle = await fal_client.submit_async("me/echo", {"n": 3})
        events = fal_client.stream_async("me/echo", {"events": 1}, path="/events")
        return (await handle.get())["asked"], [event async for event in events]

    said["async"] = asyncio.run(later())
    """
    async with rig(tmp_path / "data") as own:
        own.apps.add("echo", "app", max_multiplexing=8)
        said = await _session(own, tmp_path, program)
    assert said["run"] == ["/sub", {"n": 1}]
    assert (said["last"], said["logs"], said["status"]) == ("Completed", ["a line"], "Completed")
    assert said["result"] == said["by_id"] == {"print": "a line"}
    assert (said["cancel"], said["invalid"]) == (400, 422)
    assert said["cancelled"] == [499, "cancelled by the app"]
    assert said["unknown"] == [404, "Application 'me/nothing' not found"]
    assert said["stream"] == [{"i": 0}, {"i": 1}, {"i": 2}]
    assert said["subscribe"] == [{"n": 2}, "Completed"]
    assert said["async"] == [{"n": 3}, [{"i": 0}]]


async def test_sockets_and_uploads_work(tmp_path: Path) -> None:
    program = """
    import httpx, ssl, tempfile
    for jwt in (False, True):
        with fal_client.realtime("me/echo", use_jwt=jwt, max_buffering=2) as connection:
            connection.send({"prompt": "a"})
            said[f"realtime {jwt}"] = connection.recv()
    with fal_client.ws_connect("me/echo", path="/ws", use_jwt=False) as socket:
        socket.send("hello")
        said["socket"] = socket.recv()
    read = lambda url: httpx.get(url, verify=ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])).text
    said["upload"] = read(fal_client.upload(b"bytes", "text/plain", file_name="a.txt"))
    said["other"] = read(fal_client.upload(b"bytes", "text/plain", file_name="a.txt", repository="fal"))
    with tempfile.NamedTemporaryFile(suffix=".txt") as file:
        file.write(b"from a file")
        file.flush()
        said["file"] = read(fal_client.upload_file(file.name))
        fal_client.client.MULTIPART_THRESHOLD, fal_client.client.MULTIPART_CHUNK_SIZE = 5, 4
        said["parts"] = read(fal_client.upload_file(file.name))
    """
    async with rig(tmp_path / "data") as own:
        own.apps.add("echo", "app", max_multiplexing=8)
        said = await _session(own, tmp_path, program)
    assert said["realtime False"] == said["realtime True"] == {"prompt": "a"}
    assert said["socket"] == "hello"
    assert (said["upload"], said["other"], said["file"]) == ("bytes", "bytes", "from a file")
    assert said["parts"] == "from a file"
