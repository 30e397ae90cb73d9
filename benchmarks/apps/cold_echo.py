"""The FastAPI echo of the benchmarks, whose runner ends as soon as it is idle."""

# /// script
# dependencies = []
# [tool.varvel]
# max_concurrency = 1
# keep_alive = 0.1
# ///
from typing import Any

from fastapi import FastAPI

app = FastAPI()


@app.post("/")
async def echo(body: dict[str, Any]) -> dict[str, Any]:
    return body
