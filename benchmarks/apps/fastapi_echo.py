"""The echo app of the benchmarks, in FastAPI: JSON in, the same JSON out."""

# /// script
# dependencies = []
# [tool.varvel]
# max_multiplexing = 1024
# max_concurrency = 1
# min_concurrency = 1
# ///
from typing import Any

from fastapi import FastAPI

app = FastAPI()


@app.post("/")
async def echo(body: dict[str, Any]) -> dict[str, Any]:
    return body
