"""The one place where Varvel's parts are built and joined, started in order and stopped in reverse."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
import uvicorn
import uvloop

from varvel import egress, http, journal, tls
from varvel.apps import examples as example_apps
from varvel.apps.catalog import SqliteCatalog
from varvel.apps.deploy import Deployer, Order
from varvel.apps.environments import PACKAGE_LINES
from varvel.auth.keys import KeyStore
from varvel.billing.machines import machine_types
from varvel.control import api as control_api
from varvel.control.api import ControlParts
from varvel.errors import VarvelError
from varvel.files.archive import ArchiveLimits
from varvel.files.folder import FolderStore
from varvel.front import Front
from varvel.gateway import app_uploads
from varvel.gateway.app import Gateway
from varvel.gateway.attempt import Attempts
from varvel.gateway.webhooks import Signer, Webhooks
from varvel.health import ServerHealth
from varvel.lock import DataFolderLock
from varvel.metrics.meter import Meter
from varvel.platform import account, focus
from varvel.platform import api as platform_api
from varvel.platform.parts import PlatformParts
from varvel.queue.scheduler import Scheduler
from varvel.queue.store import SqliteQueueStore
from varvel.runners.pool import LocalPool
from varvel.settings import BadSetting, Settings, environment_name
from varvel.state.database import Database
from varvel.state.outbox import Outbox
from varvel.state.runner_seconds import KeptSeconds
from varvel.telemetry.service import Telemetry
from varvel.telemetry_export.drain_store import DrainStore
from varvel.telemetry_export.drains import LogDrains
from varvel.telemetry_export.ledger import TracedLedger
from varvel.telemetry_export.traces import Traces

log = structlog.get_logger("varvel.server")

DATA_PLANE = ("run", "queue", "proxy", "tokens", "storage", "files", ".well-known")
FIRST_OWNER = "me"
ADDRESS_FILE = "address"
"""File in the data folder that names the URL at which the server that runs there is reached from this machine."""
UNFINISHED_FILE = "first-start"
"""File in the data folder of a first start that was ended before it had deployed the examples: the next one goes on."""
_NEAR = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - nothing is bound here
MONTHS_EVERY = 3600.0
"""Seconds."""


class PortTaken(VarvelError):
    """A port that the server needs is in use."""


@dataclass(frozen=True, kw_only=True)
class Ready:
    """What a server that has just become ready tells whoever started it."""

    settings: Settings
    url: str
    first_start: bool
    new_key: str | None
    """The ADMIN key, when this start made it."""
    failed: tuple[str, ...]
    """Targets that could not be deployed."""


def run(
    settings: Settings,
    *,
    apps: Sequence[str] = (),
    examples: bool = True,
    on_ready: Callable[[Ready], None] | None = None,
) -> int:
    """Run a server until SIGTERM or SIGINT. `apps` are targets to deploy for the owner `me` before it is ready.

    Exit status 0 after a graceful stop. Raises `DataFolderInUse`, `PortTaken`, `BadSetting`.
    """
    journal.configure(settings.log_level)
    settings.data.mkdir(parents=True, exist_ok=True)
    with _held(DataFolderLock(settings.data)):
        status: int = uvloop.run(_serve(settings, list(apps), examples, on_ready))
    return status


def recover_key(data: Path, owner: str) -> str:
    """A new ADMIN key of an owner, made in the data folder of a server that is stopped; `id:secret`.

    Whoever may write the folder may do that: the key is no more than what the folder holds. Raises `DataFolderInUse`,
    `NotFound` for an unknown owner.
    """

    async def make() -> str:
        database = await asyncio.to_thread(Database.open, data / "state.db")
        try:
            keys = KeyStore(database)
            await keys.start()
            return (await keys.create(owner, "recovered", "ADMIN")).key
        finally:
            await database.close()

    with _held(DataFolderLock(data)):
        return asyncio.run(make())


@contextlib.contextmanager
def _held(lock: DataFolderLock) -> Iterator[None]:
    try:
        yield
    finally:
        lock.release()


async def _serve(settings: Settings, apps: list[str], examples: bool, on_ready: Callable[[Ready], None] | None) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with _parts(settings) as parts, _listening(settings, parts.front) as (servers, url):
        deploying = asyncio.create_task(_deploy(parts, apps, examples))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({deploying, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            failed = tuple(deploying.result())
            ready = Ready(
                settings=settings, url=url, first_start=parts.first_start, new_key=parts.new_key, failed=failed
            )
            _spare_the_collector()
            _say_ready(ready)
            if on_ready is not None:
                on_ready(ready)
        await stopping
        log.info("stopping", grace=settings.shutdown_grace)
        deploying.cancel()
        parts.health_taking = False
        parts.telemetry.end_tails()
        for server in servers:
            server.should_exit = True
        await parts.scheduler.stop(settings.shutdown_grace)
    return 0


def _spare_the_collector() -> None:
    """Have the garbage collector look at what calls leave behind, less often, and at what was made at the start never.

    Calls leave hardly any cycles, and every round costs each of them: a tenth of their CPU time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)


def _say_ready(ready: Ready) -> None:
    out = sys.stdout
    if ready.new_key is not None:
        out.write(
            f"admin key of {FIRST_OWNER}, shown once and kept in {ready.settings.data}/admin.key: {ready.new_key}\n"
        )
    out.write(f"ready {ready.url}\n")
    out.flush()


# -- the parts


class _Parts:
    """What the rest of this module needs of the parts that `_parts` built."""

    def __init__(
        self,
        front: Front,
        scheduler: Scheduler,
        telemetry: Telemetry,
        telemetry_started: asyncio.Task[None],
        deployer: Deployer,
        catalog: SqliteCatalog,
        new_key: str | None,
        unfinished: Path,
    ) -> None:
        self.front = front
        self.telemetry = telemetry
        self.telemetry_started = telemetry_started
        self.scheduler = scheduler
        self.deployer = deployer
        self.catalog = catalog
        self.new_key = new_key
        self.unfinished = unfinished
        self.first_start = not catalog.apps() or unfinished.exists()
        self.health_taking = True


@asynccontextmanager
async def _parts(settings: Settings) -> AsyncIterator[_Parts]:
    """Everything but the sockets. Leaving the block stops the parts in the reverse order of their start."""
    data = settings.data
    async with AsyncExitStack() as stack:
        database = await asyncio.to_thread(Database.open, data / "state.db")
        stack.push_async_callback(database.close)
        outbox = Outbox(database)
        traces = Traces(settings)
        ledger = TracedLedger(database, outbox, traces)
        keys = KeyStore(database)
        await keys.start()
        new_key = await keys.bootstrap(data)
        catalog = SqliteCatalog(database, data)
        await catalog.start()
        telemetry = Telemetry(settings, outbox)
        # Calls need not wait for it: they are taken while the store starts.
        starting = asyncio.create_task(telemetry.start())
        stack.push_async_callback(_stop_telemetry, telemetry, starting)
        app_secret = keys.secret("app uploads")
        machines = machine_types(settings)
        seconds = KeptSeconds(database, outbox)
        await seconds.recover()
        pool = LocalPool(
            settings,
            catalog,
            telemetry,
            ledger.record,
            data,
            environ={**os.environ, **await asyncio.to_thread(_for_apps, settings)},
            lend=lambda owner, sockets: app_uploads.variables(app_secret, owner, sockets),
            seconds=seconds,
            gpus_of=lambda spec: machines.gpus_of_runner(spec.machine_type, spec.num_gpus),
        )
        await pool.start()
        stack.push_async_callback(pool.stop, settings.shutdown_grace)
        meter = Meter()
        attempts = Attempts(settings)
        store = SqliteQueueStore(database, outbox, data / "spill")
        scheduler = Scheduler(store, pool, catalog, attempts.run, settings, machines)
        outside = egress.Egress(private=settings.egress_private)
        stack.push_async_callback(outside.close)
        webhooks = Webhooks(database, scheduler, Signer(keys.secret("webhooks")), outside)
        gateway = Gateway(
            settings,
            keys,
            catalog,
            pool,
            scheduler,
            ledger,
            telemetry,
            meter,
            machines,
            attempts=attempts,
            webhooks=webhooks,
            secret=keys.secret,
        )
        await scheduler.start()
        await webhooks.start()
        stack.push_async_callback(webhooks.stop)
        await gateway.start(pool.sockets)
        stack.push_async_callback(gateway.stop)
        scheduler.on_finished(traces.job)
        await traces.start()
        stack.push_async_callback(traces.stop)
        drains = LogDrains(settings, DrainStore(database, keys.secret("log-drains")), telemetry, outside)
        await drains.start()
        stack.push_async_callback(drains.stop)
        deployer = Deployer(settings, catalog, pool, telemetry, ledger.record)
        files = FolderStore(
            data / "files",
            database,
            limits=ArchiveLimits(files=settings.unzip_files, bytes=settings.unzip_bytes, ratio=settings.unzip_ratio),
            checksum_wait=settings.checksum_wait,
            checksum_entries=settings.checksum_entries,
            part_ttl=settings.part_ttl,
        )
        await files.start()
        stack.push_async_callback(files.close)
        platform_parts = PlatformParts(
            settings=settings,
            authenticator=keys,
            keys=keys,
            catalog=catalog,
            scheduler=scheduler,
            pool=pool,
            telemetry=telemetry,
            ledger=ledger,
            meter=meter,
            files=files,
            machines=machines,
            database=database,
            egress=outside,
            drains=drains,
        )
        await platform_parts.prices.start()
        months = asyncio.create_task(_close_months(platform_parts, starting))
        stack.callback(months.cancel)
        health = ServerHealth(
            taking=lambda: parts.health_taking,
            telemetry=lambda: telemetry.healthy,
            gauges={
                "varvel_runners": ("Runner processes.", lambda: len(pool.runners())),
                "varvel_apps": ("Apps deployed.", lambda: len(catalog.apps())),
                "varvel_queue_waiting": (
                    "Requests that wait, all apps together.",
                    lambda: sum(scheduler.size(app.app) for app in catalog.apps()),
                ),
            },
        )
        lag = asyncio.create_task(health.watch_lag())
        stack.callback(lag.cancel)
        platform = platform_api.build(platform_parts)
        control = control_api.build(
            ControlParts(
                settings=settings,
                authenticator=keys,
                keys=keys,
                limits=platform_parts.limits,
                catalog=catalog,
                deployer=deployer,
                pool=pool,
                ready=health.ready,
            )
        )
        rooms = dict.fromkeys(DATA_PLANE, gateway.__call__)
        front = Front(
            {**rooms, "v1": platform, "openapi.json": platform, "control": control},
            health,
            settings.max_request_headers,
        )
        parts = _Parts(front, scheduler, telemetry, starting, deployer, catalog, new_key, data / UNFINISHED_FILE)
        yield parts


def _for_apps(settings: Settings) -> dict[str, str]:
    """What apps are told of this server: whom to trust, and where `fal.toolkit` uploads to in the last resort."""
    names = {"127.0.0.1": "localhost", "0.0.0.0": "localhost", "::": "localhost"}  # noqa: S104 - compared, not bound
    host = names.get(settings.host, settings.host)
    trust = tls.trust(settings.data / "tls", settings.host, os.environ)
    return {"FAL_REST_HOST": f"{f'[{host}]' if ':' in host else host}:{settings.tls_port}", **trust}


async def _stop_telemetry(telemetry: Telemetry, starting: asyncio.Task[None]) -> None:
    starting.cancel()
    await asyncio.wait({starting})
    await telemetry.stop()


async def _close_months(parts: PlatformParts, telemetry_started: asyncio.Task[None]) -> None:
    """Turn months that are over into invoices, at start and then every hour."""
    await asyncio.wait({telemetry_started})
    while True:
        try:
            await focus.invoices_of(parts).close_months(parts.keys.owners(), parts.clock())
            await account.credits_of(parts).settle(parts.clock())
        except VarvelError as problem:
            log.warning("months are not closed yet", problem=problem.message)
        await asyncio.sleep(MONTHS_EVERY)


# -- sockets


class _Server(uvicorn.Server):
    """Signals belong to the process, which has two of these."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def _listening(settings: Settings, front: Front) -> AsyncIterator[tuple[list[_Server], str]]:
    """Serve `front` on the plain and on the TLS port until the servers are told to exit."""
    plain = _bind(settings.host, settings.port, "port")
    secure = _bind(settings.host, settings.tls_port, "tls_port")
    chain, key = await asyncio.to_thread(tls.ensure, settings.data / "tls", settings.host)
    servers = [_server(settings, front), _server(settings, front, chain, key)]
    tasks = [
        asyncio.create_task(server.serve(sockets=[item])) for server, item in zip(servers, (plain, secure), strict=True)
    ]
    while not all(server.started for server in servers):
        if any(task.done() for task in tasks):
            await asyncio.gather(*tasks)
        await asyncio.sleep(0.005)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    port = plain.getsockname()[1]
    address = settings.data / ADDRESS_FILE
    address.write_text(f"http://{_NEAR.get(settings.host, host)}:{port}\n")
    try:
        yield servers, settings.public_url or f"http://{host}:{port}"
    finally:
        address.unlink(missing_ok=True)
        for server in servers:
            server.should_exit = True
        await asyncio.gather(*tasks, return_exceptions=True)


def _bind(host: str, port: int, setting: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as problem:
        if isinstance(problem, socket.gaierror):
            raise BadSetting(f"host: {host!r} is no address of this machine ({problem.strerror})") from problem
        reason = os.strerror(problem.errno) if problem.errno else str(problem)
        raise PortTaken(
            f"Port {port} of {host} cannot be taken: {reason}. Give another {setting} (--{setting.replace('_', '-')} "
            f"or {environment_name(setting)}; 0 takes a free one)."
        ) from problem


def _server(settings: Settings, front: Front, chain: Path | None = None, key: Path | None = None) -> _Server:
    config = uvicorn.Config(
        front,
        http=http.Protocol,
        ws="websockets-sansio",
        ws_max_size=settings.max_body,
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_grace)),
        ssl_certfile=chain,
        ssl_keyfile=key,
    )
    return _Server(config)


# -- what is deployed before the server is ready


async def _deploy(parts: _Parts, targets: list[str], examples: bool) -> list[str]:
    """Deploy the targets (or on a first start the examples) for the first owner; those that failed.

    Returns when the telemetry store answers, too, or has turned out to be away.
    """
    orders = [_order(Path(target)) for target in targets]
    folder = example_apps.folder()
    if not targets and examples and parts.first_start and folder is not None:
        orders = [_order(folder / target) for target in example_apps.TARGETS]
        parts.unfinished.touch()
    failed = []
    for order in orders:
        log.info("deploying", target=order.target, folder=str(order.folder))
        try:
            await parts.deployer.ensure(order, _note)
        except VarvelError as problem:
            log.error("not deployed", target=order.target, problem=problem.message)
            failed.append(order.target)
    parts.unfinished.unlink(missing_ok=True)
    await asyncio.shield(parts.telemetry_started)
    return failed


def _note(level: str, line: str) -> None:
    # A list of packages is for who asks for it.
    (log.debug if line.startswith(PACKAGE_LINES) else log.info)(line.rstrip(), stream=level)


def _order(target: Path) -> Order:
    """`folder/file.py:app` as an order of the first owner."""
    folder = target.parent.absolute()
    return Order(owner=FIRST_OWNER, folder=folder, target=target.name, by=FIRST_OWNER)
