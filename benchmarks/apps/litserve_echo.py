"""The echo app of the benchmarks, in LitServe with one worker. Runs in the peers' own environment.

Without postponed annotations: the library reads those of `decode_request`, and wants none or a real `Request`.
"""

import sys
from typing import Any

import litserve
from fastapi import Request


class Echo(litserve.LitAPI):  # type: ignore[misc]  # the library has no types
    def setup(self, device: str) -> None:
        pass

    def decode_request(self, request: Request) -> Any:
        return request

    def predict(self, x: Any) -> Any:
        return x

    def encode_response(self, output: Any) -> Any:
        return output


if __name__ == "__main__":
    server = litserve.LitServer(Echo(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="error")
