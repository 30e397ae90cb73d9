from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest
from tests.apps.world import World

from varvel.apps import examples
from varvel.apps.catalog import SqliteCatalog
from varvel.apps.deploy import Order
from varvel.apps.errors import (
    BadOptions,
    BadTarget,
    FolderTooLarge,
    ImportFailed,
    NoSuchApp,
    NoSuchRevision,
    RequirementsFailed,
    RunnerFailed,
)
from varvel.apps.model import AppId
from varvel.apps.rules import Options

ECHO = "async def app(scope, receive, send): ...\n"
THING = AppId("me", "thing")


async def test_a_deployed_app_serves_from_a_copy_of_its_files(world: World) -> None:
    revision = await world.deployer.deploy(world.order(ECHO))
    app = world.catalog.get(THING)
    assert app is not None
    assert app.current == revision
    assert revision.status == "deployed"
    assert revision.python == Path(sys.executable)
    world.folder("changed")
    assert (revision.folder / "app.py").read_text() == ECHO
    assert world.runners.calls == [("switched", THING)]
    assert world.categories() == ["deployment_started", "deployment_ended"]
    assert world.logs.sources == {"grpc-register"}


async def test_the_app_is_found_when_the_target_does_not_name_it(world: World) -> None:
    revision = await world.deployer.deploy(world.order(ECHO.replace("app", "application")))
    assert (revision.spec.kind, revision.spec.attribute) == ("asgi", "application")


async def test_settings_in_the_file_and_of_the_order_shape_the_app(world: World) -> None:
    text = "# /// script\n# [tool.varvel]\n# name = 'named'\n# keep_alive = 3\n# auth = 'public'\n# ///\n" + ECHO
    revision = await world.deployer.deploy(world.order(text, keep_alive=9, max_concurrency=2))
    assert revision.app == AppId("me", "named")
    assert revision.spec.auth_mode == "public"
    assert (revision.spec.scaling.keep_alive, revision.spec.scaling.max_concurrency) == (9.0, 2)


async def test_a_fal_app_is_read_in_a_child_process_with_its_attributes_as_they_are(world: World) -> None:
    folder = examples.folder()
    assert folder is not None
    order = Order(owner="me", folder=folder / "hello", target="app.py", by="me")
    revision = await world.deployer.deploy(order)
    spec = revision.spec
    assert revision.app == AppId("me", "hello")
    assert (spec.kind, spec.attribute, spec.scaling.max_concurrency) == ("fal", "Hello", 2)
    assert set(spec.routes) == {"/", "/shout", "/stream", "/realtime"}
    assert "examples.hello" not in sys.modules


CLASS = """
import fal

class Thing(fal.App):
    {}

    @fal.endpoint("/")
    def root(self) -> str:
        return ""
"""


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ("app_files = ['data.txt', 'more']", None),
        ("app_files = ['data.txt', 'gone.txt']", "'gone.txt' of app_files is not in the folder"),
        ("app_files = ['data.txt']; app_files_context_dir = 'more'", "must begin in the folder that is deployed"),
        ("app_files = ['../secret.txt']; app_files_context_dir = '..'", "must begin in the folder that is deployed"),
        ("local_python_modules = ['beside', 'json']", None),
        ("local_python_modules = ['far_away']", "'far_away' of local_python_modules is not in the folder"),
        ("image = fal.ContainerImage.from_dockerfile_str('FROM x')", "sets image, which this server cannot serve"),
    ],
)
async def test_what_a_fal_app_brings_along_must_be_in_its_folder(
    world: World, attributes: str, said: str | None
) -> None:
    order = world.order(CLASS.format(attributes))
    (order.folder / "data.txt").write_text("data")
    (order.folder / "beside.py").write_text("")
    (order.folder / "more").mkdir()
    (order.folder / "more" / "data.txt").write_text("data")
    if said is None:
        assert (await world.deployer.deploy(order)).status == "deployed"
        return
    with pytest.raises(ImportFailed) as caught:
        await world.deployer.deploy(order)
    assert said in str(caught.value)


async def test_a_secret_that_is_not_there_is_told_when_deploying(world: World) -> None:
    text = CLASS.format("secrets = ['HERE', 'AWAY']")
    said: list[str] = []
    await world.deployer.deploy(world.order(text, env={"HERE": "1"}), lambda level, message: said.append(message))
    assert [line for line in said if "secret" in line] == [
        """Thing asks for the secret AWAY, which is not here: give it with --set 'env={"AWAY": ...}'"""
    ]


async def test_routes_of_a_fastapi_app_become_endpoints(world: World) -> None:
    text = (
        "from fastapi import FastAPI\napp = FastAPI()\n@app.post('/turbo')\ndef turbo(): ...\n"
        "@app.get('/items/{x}')\ndef item(): ...\n"
    )
    revision = await world.deployer.deploy(world.order(text))
    assert revision.spec.routes == ("/", "/turbo")


@pytest.mark.parametrize(
    ("target", "text", "error", "said"),
    [
        ("nope.py", ECHO, BadTarget, "there is no file nope.py"),
        ("app.py:other", ECHO, BadTarget, "has no 'other'; it has app"),
        ("app.py", "x = 1\n", ImportFailed, "has no app"),
        ("app.py:app", "app = 3\n", ImportFailed, "neither an ASGI app nor a fal.App class"),
        ("app.py", "import nothing_like_it\n", ImportFailed, "No module named 'nothing_like_it'"),
        ("app.py", "import os\nos._exit(3)\n", ImportFailed, "ended the process that imported it (status 3)"),
        ("app.py", "# /// script\n# [tool.varvel]\n# colour = 1\n# ///\n" + ECHO, BadOptions, "'colour'"),
        ("app.py", "data = '" + "x" * 200_000 + "'\n", FolderTooLarge, "100000 bytes"),
    ],
)
async def test_an_app_that_cannot_be_deployed_is_refused_with_the_reason(
    world: World, target: str, text: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error) as caught:
        await world.deployer.deploy(world.order(text, target))
    assert said in str(caught.value)
    assert world.catalog.apps() == []
    assert not list((world.data / "apps").rglob("app.py"))


async def test_the_traceback_of_a_failed_import_is_in_the_build_log(world: World) -> None:
    with pytest.raises(ImportFailed):
        await world.deployer.deploy(world.order("print('loading')\n1 / 0\n"))
    assert ("me/thing", "stdout", "loading") in world.logs.lines
    assert 'File "app.py", line 2, in <module>' in world.logs.text()
    assert ("me/thing", "error", "ZeroDivisionError: division by zero") in world.logs.lines
    assert world.categories() == ["deployment_failed"]


async def test_an_import_that_never_ends_is_given_up(world: World) -> None:
    world.deployer._settings = type(world.deployer._settings)(data=world.data, import_timeout=0.5)
    with pytest.raises(ImportFailed, match=r"not imported in 0\.5 s"):
        await world.deployer.deploy(world.order("import time\ntime.sleep(60)\n" + ECHO))


async def test_requirements_that_cannot_be_resolved_are_refused_in_the_words_of_uv(world: World) -> None:
    # Two versions of the same package contradict each other whatever the registry says.
    text = "# /// script\n# dependencies = ['six==1.16.0', 'six==1.15.0']\n# ///\n" + ECHO
    with pytest.raises(RequirementsFailed, match="unsatisfiable"):
        await world.deployer.deploy(world.order(text))
    assert not list((world.data / "envs").glob("*/bin"))


async def test_a_failed_deployment_leaves_what_served_before(world: World) -> None:
    first = await world.deployer.deploy(world.order(ECHO))
    world.runners.refuse = "CUDA is not there"
    with pytest.raises(RunnerFailed, match="CUDA is not there"):
        await world.deployer.deploy(world.order(ECHO + "# 2\n"))
    app = world.catalog.get(THING)
    assert app is not None
    assert app.current.revision_id == first.revision_id
    newest, oldest = await world.catalog.revisions(THING)
    assert (newest.status, oldest.status) == ("failed", "deployed")
    assert not newest.folder.exists()
    assert world.categories()[-2:] == ["deployment_rolling_failed", "deployment_failed"]
    assert json.loads(world.events[-1].payload)["old_application_id"] == first.revision_id


async def test_a_deployment_that_fails_before_its_runner_is_in_the_list_of_revisions_too(world: World) -> None:
    await world.deployer.deploy(world.order(ECHO))
    with pytest.raises(ImportFailed):
        await world.deployer.deploy(world.order("1 / 0\n"))
    assert [revision.status for revision in await world.catalog.revisions(THING)] == ["failed", "deployed"]


async def test_a_recreate_deployment_switches_without_a_runner(world: World) -> None:
    world.runners.refuse = "no"
    order = world.order(ECHO)
    await world.deployer.deploy(Order(owner="me", folder=order.folder, target="app.py", strategy="recreate"))
    assert world.catalog.get(THING) is not None
    assert "deployment_recreate_applied" in world.categories()


async def test_an_earlier_revision_can_serve_again(world: World) -> None:
    first = await world.deployer.deploy(world.order(ECHO))
    await world.deployer.deploy(world.order(ECHO + "# 2\n"))
    await world.deployer.rollback(THING, first.revision_id, by="me")
    app = world.catalog.get(THING)
    assert app is not None
    assert app.current.revision_id == first.revision_id
    with pytest.raises(NoSuchRevision):
        await world.deployer.rollback(THING, "nope")
    with pytest.raises(NoSuchApp):
        await world.deployer.rollback(AppId("me", "nope"), first.revision_id)


async def test_tuned_scaling_outlives_deployments_until_it_is_reset(world: World) -> None:
    await world.deployer.deploy(world.order(ECHO, keep_alive=5))
    await world.deployer.tune(THING, {"keep_alive": 50.0}, by="me")
    await world.deployer.deploy(world.order(ECHO, keep_alive=6))
    app = world.catalog.get(THING)
    assert app is not None
    assert app.scaling.keep_alive == 50.0
    order = world.order(ECHO, keep_alive=6)
    reset = Order(owner="me", folder=order.folder, target="app.py", options=order.options, reset_scale=True)
    await world.deployer.deploy(reset)
    app = world.catalog.get(THING)
    assert app is not None
    assert app.scaling.keep_alive == 6.0
    assert ("scaled", THING) in world.runners.calls
    assert world.categories().count("config_changed") == 2


async def test_an_environment_is_an_app_of_its_own(world: World) -> None:
    order = world.order(ECHO)
    await world.deployer.deploy(Order(owner="me", folder=order.folder, target="app.py", environment="staging"))
    app = world.catalog.get(AppId("me", "thing--staging"))
    assert app is not None
    assert app.environment == "staging"


async def test_the_same_files_are_not_deployed_again(world: World) -> None:
    order = world.order(ECHO)
    first = await world.deployer.ensure(order)
    assert (await world.deployer.ensure(order)).revision_id == first.revision_id
    world.folder(ECHO + "# changed\n")
    assert (await world.deployer.ensure(order)).revision_id != first.revision_id


async def test_a_deleted_app_leaves_nothing_but_its_history(world: World) -> None:
    await world.deployer.deploy(world.order(ECHO))
    await world.deployer.delete(THING)
    assert world.catalog.get(THING) is None
    assert await world.catalog.revisions(THING) == []
    assert not list((world.data / "apps").rglob("app.py"))
    assert ("removed", THING) in world.runners.calls
    with pytest.raises(NoSuchApp):
        await world.deployer.delete(THING)


async def test_what_is_deployed_is_there_after_a_restart(world: World) -> None:
    await world.deployer.deploy(world.order(ECHO, keep_alive=5))
    await world.deployer.tune(THING, {"max_concurrency": 7})
    again = SqliteCatalog(world.database)
    await again.start()
    assert again.get(THING) == world.catalog.get(THING)


async def test_deployments_of_one_app_come_one_after_the_other(world: World) -> None:
    orders = [
        Order(owner="me", folder=world.folder(f"{ECHO}# {n}\n", f"f{n}"), target="app.py", options=Options(name="same"))
        for n in range(3)
    ]
    done = await asyncio.gather(*(world.deployer.deploy(order) for order in orders))
    app = world.catalog.get(done[0].app)
    assert app is not None
    assert app.current.revision_id in {revision.revision_id for revision in done}
    assert len(await world.catalog.revisions(done[0].app)) == 3
