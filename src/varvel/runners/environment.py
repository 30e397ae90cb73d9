"""The environment variables of an app's process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from varvel.apps.model import Revision

PASSED = frozenset(
    {
        "HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ", "USER",
        "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "XDG_CACHE_HOME", "FAL_REST_HOST",
        "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
        "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS",
    }
)  # fmt: skip
PASSED_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "HF_", "ROCR_", "HIP_")


def passed(environ: Mapping[str, str]) -> dict[str, str]:
    """What apps get of the server's own environment: where things are, and nothing that could be a secret of it."""
    return {
        name: value
        for name, value in environ.items()
        if name in PASSED or (name.startswith(PASSED_PREFIXES) and "TOKEN" not in name)
    }


def app_environment(
    base: Mapping[str, str], revision: Revision, runner_id: str, data: Path, lent: Mapping[str, str]
) -> dict[str, str]:
    """All variables of one runner. `data` is the folder behind `/data`; the spec's own variables win.

    `lent` are those with which its owner's apps reach services of the server.
    """
    app = revision.app
    environ = {
        **base,
        "PATH": f"{revision.python.parent}:{base.get('PATH', '/usr/local/bin:/usr/bin:/bin')}",
        "VIRTUAL_ENV": str(revision.python.parent.parent),
        "PYTHONUNBUFFERED": "1",
        "FAL_APP_NAME": str(app),
        "FAL_APP_ID": revision.revision_id,
        "FAL_USER_NICKNAME": app.owner,
        "FAL_JOB_ID": runner_id,
        "FAL_RUNNER_STATE": "SETUP",
        "FAL_REGION": "local",
        "VARVEL_DATA_DIR": str(data),
        "HF_HOME": str(data / ".cache" / "huggingface"),
        **lent,
    }
    if revision.spec.kind == "fal":
        environ["IS_ISOLATE_AGENT"] = "1"
    return {**environ, **revision.spec.env}
