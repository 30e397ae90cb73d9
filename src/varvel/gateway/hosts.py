"""The public hosts that clients have built in, and where each of them is on this server.

Used by the proxy route, and by a front that is reached under those names. Targets are mapped, never fetched.
"""

from __future__ import annotations

_RUN = ("fal.run", "falrun.com")
_QUEUE = ("queue.fal.run", "queue.falrun.com")
_REST = ("rest.fal.ai", "rest.alpha.fal.ai", "rest.fal.run")
_CDN = ("v3.fal.media", "v3b.fal.media", "fal.media")
_PLATFORM = ("api.fal.ai",)

PREFIXES: dict[str, str] = {
    **dict.fromkeys(_RUN, "/run"),
    **dict.fromkeys(_QUEUE, "/queue"),
    **dict.fromkeys((*_REST, *_CDN, *_PLATFORM), ""),
}


def local_path(host: str, path: str) -> str | None:
    """Path on this server of a path on a known host (without port); None for any other host."""
    prefix = PREFIXES.get(host.lower())
    return None if prefix is None else prefix + path
