"""Files in and out of an unmodified `fal.App`: what a client uploads over TLS the app reads, what it makes is read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.serving import serving

APP = """
from typing import Any

import fal
import httpx
from fal.toolkit import File
from pydantic import BaseModel


class Page(BaseModel):
    url: str
    hold: float = 0


class Copier(fal.App):
    max_concurrency = 2

    @fal.endpoint("/")
    def copy(self, page: Page) -> dict[str, Any]:
        import time
        time.sleep(page.hold)
        content = httpx.get(page.url).raise_for_status().content
        return {"file": File.from_bytes(content[::-1], file_name="back.txt", content_type="text/plain").model_dump()}
"""
PROGRAM = """
import json, os, ssl
import fal_client, fal_client.client, httpx

fal_client.client.REST_URL = fal_client.client.CDN_URL = os.environ["SERVER"]
url = fal_client.upload(b"abc", "text/plain", file_name="a.txt")
handles = [fal_client.submit("me/copier", {"url": url, "hold": 1}) for _ in range(2)]
files = [handle.get()["file"] for handle in handles]
trust = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
print(json.dumps([[file["url"], httpx.get(file["url"], verify=trust).text] for file in files]))
"""


def test_an_app_reads_what_was_uploaded_over_tls_and_its_own_files_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "copier.py").write_text(APP)
    with serving(tmp_path / "data", "--no-examples") as server:
        server.varvel("deploy", f"{tmp_path}/app/copier.py")
        environ = {
            **os.environ,
            "FAL_KEY": server.key,
            "FAL_RUN_HOST": f"{server.tls}/run",
            "FAL_QUEUE_RUN_HOST": f"{server.tls}/queue",
            "SSL_CERT_FILE": str(server.ca),
            "SERVER": f"https://{server.tls}",
        }
        done = subprocess.run([sys.executable, "-c", PROGRAM], env=environ, capture_output=True, text=True, timeout=90)
        assert done.returncode == 0, done.stderr
        # Two runners at the same time: the second is forked from a warmed parent, which has imported fal before.
        for url, text in json.loads(done.stdout):
            assert url.startswith(f"https://{server.tls}/files/")
            assert text == "cba"
