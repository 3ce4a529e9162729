"""Migrations up and down, in a checkout and in the wheel."""

import os
import re
import subprocess
import sys
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from hatchling.builders.wheel import WheelBuilder
from sqlalchemy import Connection, MetaData, create_engine, inspect, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool
from sqlmodel import Session, SQLModel, select

import service.store.models as tables
from service.flow.actions.receive import Arrival, JobAction
from service.store.database import check_schema, downgrade, migrations, revisions, sync_url, upgrade

ROOT = Path(__file__).parents[3]


def on(url: str, look: Any) -> Any:
    engine = create_engine(sync_url(url), poolclass=NullPool)
    try:
        with engine.begin() as connection:
            return look(connection)
    finally:
        engine.dispose()


def table_names(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names()) - {"alembic_version"}


def drift(connection: Connection) -> list[Any]:
    """Return the differences that `alembic check` would report."""
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    return list(compare_metadata(context, SQLModel.metadata))


def test_models_and_migrations_do_not_drift(database_url: str) -> None:
    assert on(database_url, drift) == []


def conditions(connection: Connection) -> dict[str, str]:
    """Return the condition of each partial index that the database has, in its own words."""
    query = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
    found = ((name, re.search(r"(?s)\bWHERE (.*)$", sql)) for name, sql in connection.execute(text(query)))
    return {name: match[1] for name, match in found if match}


def test_models_say_the_conditions_of_partial_indexes(sqlite_url: str) -> None:
    indexes = [index for table in SQLModel.metadata.sorted_tables for index in table.indexes]
    assert on(sqlite_url, conditions) == {index.name: index.info["where"] for index in indexes if index.info}


def test_there_is_one_line_of_revisions() -> None:
    names = revisions()
    script = ScriptDirectory(str(migrations()))
    assert names == [revision.revision for revision in reversed(list(script.walk_revisions()))], (
        "a file is named for its own"
    )
    for name, below in zip(names[1:], names, strict=False):
        revision = script.get_revision(name)
        assert revision is not None
        assert revision.down_revision == below


def test_each_step_goes_up_and_down_and_up_again(empty_database_url: str) -> None:
    shapes: dict[str, Any] = {"base": on(empty_database_url, table_names)}
    for name in revisions():
        upgrade(empty_database_url, name)
        shapes[name] = on(empty_database_url, shape)
    check_schema(empty_database_url)
    for name in reversed(revisions()[:-1]):
        downgrade(empty_database_url, name)
        assert on(empty_database_url, shape) == shapes[name], name
    downgrade(empty_database_url, "base")
    assert on(empty_database_url, table_names) == set()
    upgrade(empty_database_url)
    assert on(empty_database_url, drift) == []


def shape(connection: Connection) -> dict[str, Any]:
    """Tables, columns and indexes, as the database tells them."""
    inspector = inspect(connection)
    return {
        name: (
            sorted((column["name"], str(column["type"]), column["nullable"]) for column in inspector.get_columns(name)),
            sorted((index["name"], tuple(index["column_names"])) for index in inspector.get_indexes(name)),
            sorted(tuple(unique["column_names"]) for unique in inspector.get_unique_constraints(name)),
            sorted(
                (tuple(key["constrained_columns"]), key["referred_table"]) for key in inspector.get_foreign_keys(name)
            ),
        )
        for name in sorted(table_names(connection))
    }


AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def fill(connection: Connection) -> None:
    with Session(connection) as session:
        repository = tables.Repository(
            alias="mc", url="https://hg.mozilla.org/mc", host="hg.mozilla.org", level="3", last_push_id=7, due_at=AT
        )
        repository.scopes, repository.environments, repository.generation = ["assume:x"], None, 4
        session.add(repository)
        session.flush()
        push = tables.Push(
            repository_id=repository.id or 0,
            generation=4,
            push_id=7,
            user="\u00e9\U0001f600",
            date=AT,
            revision="a" * 40,
            revision_hash="b" * 40,
            changesets=[{"node": "a" * 40, "desc": "\u00e9 \\u0000"}],
            nodes=["a" * 40],
        )
        session.add(push)
        session.flush()
        step = tables.PushStep(
            push_id=push.id or 0, kind=tables.StepKind.GRAPH, lane="graph hg", error="\u00e9", fencing_token=3
        )
        session.add(step)
        session.flush()
        task = tables.PlannedTask(
            task_id="t" * 22, step_id=step.id, position=0, label="task", name="x", definition={"a": 1}
        )
        session.add(task)
        session.add(tables.DeadLetter(kind="push-event", subject="x", reason="y", payload=b"\x00\xff", since=AT))
        session.add(tables.Secret(name="task-ids", value=b"\x00" * 32))
        session.add(tables.Budget(name="hg x", tokens=1.5, at=AT))
        session.commit()


def test_data_survives_the_way_down_to_the_first_revision_and_up_again(database_url: str) -> None:
    on(database_url, fill)
    downgrade(database_url, revisions()[0])
    upgrade(database_url)

    def look(connection: Connection) -> None:
        with Session(connection) as session:
            repository = session.exec(select(tables.Repository)).one()
            assert (repository.alias, repository.generation, repository.last_push_id) == ("mc", 4, 7)
            assert (repository.scopes, repository.environments, repository.due_at) == (["assume:x"], None, AT)
            push = session.exec(select(tables.Push)).one()
            assert (push.user, push.date, push.nodes) == ("\u00e9\U0001f600", AT, ["a" * 40])
            assert push.changesets == [{"node": "a" * 40, "desc": "\u00e9 \\u0000"}]
            step = session.exec(select(tables.PushStep)).one()
            assert (step.push_id, step.fencing_token, step.state, step.error) == (push.id, 3, "pending", "\u00e9")
            task = session.exec(select(tables.PlannedTask)).one()
            assert (task.step_id, task.definition, task.created) == (step.id, {"a": 1}, False)
            letter = session.exec(select(tables.DeadLetter)).one()
            assert (letter.payload, letter.since) == (b"\x00\xff", AT)
            assert session.exec(select(tables.Secret)).one().value == b"\x00" * 32
            assert session.exec(select(tables.Budget)).one().tokens == 1.5

    on(database_url, look)


def test_actions_and_keys_of_before_are_kept_and_what_may_come_again_is_counted(empty_database_url: str) -> None:
    upgrade(empty_database_url, "0005")
    at = datetime.now(UTC)
    common: dict[str, Any] = {"project": "mc", "requester": "me", "lane": "action retrigger", "kind": "retrigger"}
    common |= {"lease": 0, "attempts": 0, "since": at, "redeliveries": 1, "received_at": at, "plan_attempt": 0}
    common |= {"left_out": [], "notes": [], "failure_jobs": [], "delivered_at": AT}
    pressed: dict[str, Any] = {
        "source": "pulse",
        "state": "pending",
        "due_at": AT,
        "channel": "c",
        "task_id": "t" * 22,
        "run_id": 0,
    }
    api_call: dict[str, Any] = {
        "source": "api",
        "state": "done",
        "due_at": None,
        "channel": None,
        "task_id": "u" * 22,
        "run_id": None,
    }
    actions = [
        {**common, **pressed, "id": 1, "delivery": "k1", "acknowledged": False, "ahead": True},
        {**common, **pressed, "id": 2, "delivery": "k2", "acknowledged": True, "ahead": False},
        {**common, **api_call, "id": 3, "delivery": "api me k3", "acknowledged": False, "ahead": False},
        {**common, **api_call, "id": 4, "delivery": None, "acknowledged": False, "ahead": False},
    ]
    keys = [("k0", None), ("k1", None), ("k2", None), ("api me k3", "d" * 64)]

    def tables_of(connection: Connection) -> MetaData:
        metadata = MetaData()
        metadata.reflect(connection)
        return metadata

    def fill_old(connection: Connection) -> None:
        old = tables_of(connection).tables
        connection.execute(old["action"].insert(), actions)
        rows = [{"key": key, "digest": digest, "at": at} for key, digest in keys]
        connection.execute(old["delivery"].insert(), rows)
        connection.execute(
            old["notice"].insert(),
            {"action_id": 1, "kind": "pulse", "target": "x", "key": "y", "body": {}, "state": "pending", "lane": "z"}
            | {"lease": 0, "attempts": 0, "since": at},
        )

    def look(connection: Connection) -> None:
        with Session(connection) as session:
            first = session.get_one(tables.Action, 1)
            assert (first.state, first.due_at, first.task_id) == ("pending", AT, "t" * 22)
            assert session.exec(select(tables.Notice.action_id)).one() == 1
            deliveries = {delivery.key: delivery for delivery in session.exec(select(tables.Delivery))}
            assert {key: delivery.action_id for key, delivery in deliveries.items()} == {
                "k0": None, "k1": 1, "k2": 2, "api me k3": 3
            }  # fmt: skip
            one, two = deliveries["k1"], deliveries["k2"]
            assert (one.redelivered, one.acknowledged, one.channel) == (True, False, "c")
            assert (two.redelivered, two.acknowledged, one.stamp) == (False, True, AT.timestamp())
            body = {"version": 1, "project": "mc", "action": "retrigger", "requester": "me"}
            guid = "b6db6db6-db6d-4b6d-b6db-6db6db6db6db/0"  # 22 t, but for the last bits
            press = JobAction.model_validate({**body, "job_guid": guid})
            press.job = ("t" * 22, 0)
            message: Any = None
            assert Arrival(message, press).identity == one.digest == two.digest
            assert (deliveries["api me k3"].digest, deliveries["k0"].digest) == ("d" * 64, None)

    on(empty_database_url, fill_old)
    upgrade(empty_database_url)
    on(empty_database_url, look)
    downgrade(empty_database_url, "0005")

    def look_back(connection: Connection) -> None:
        old = tables_of(connection).tables
        rows = {row.id: row for row in connection.execute(old["action"].select())}
        assert {number: row.delivery for number, row in rows.items()} == {1: "k1", 2: "k2", 3: "api me k3", 4: None}
        assert [(row.channel, row.acknowledged, row.ahead) for row in (rows[1], rows[2])] == [
            ("c", False, True), ("c", True, False)
        ]  # fmt: skip
        kept = {row.key: row.digest for row in connection.execute(old["delivery"].select())}
        assert kept == dict(keys)

    on(empty_database_url, look_back)
    upgrade(empty_database_url)
    assert on(empty_database_url, drift) == []


def test_actions_on_pushes_are_gone_after_the_way_down_and_those_on_tasks_are_kept(database_url: str) -> None:
    common: dict[str, Any] = {"kind": "look", "project": "mc", "requester": "me", "source": "api", "lane": "x"}

    def fill_new(connection: Connection) -> None:
        with Session(connection) as session:
            actions = [tables.Action(**common, push_id=7), tables.Action(**common, task_id="t" * 22)]
            session.add_all(actions)
            session.flush()
            for action in actions:
                notice = tables.Notice(
                    kind=tables.NoticeKind.JOB, lane="x", action_id=action.id, target="x", key="mc", body={}
                )
                session.add(notice)
                session.flush()
                session.add_all([action.dead_letter("given up"), notice.dead_letter("given up")])
                session.add(tables.Delivery(key=f"k{action.id}", action_id=action.id))
            session.commit()

    def look(connection: Connection) -> None:
        with Session(connection) as session:
            assert session.exec(select(tables.Action.task_id)).all() == ["t" * 22]
            assert [len(session.exec(select(table)).all()) for table in (tables.Notice, tables.Delivery)] == [1, 1]
            assert len(session.exec(select(tables.DeadLetter)).all()) == 2

    on(database_url, fill_new)
    downgrade(database_url, revisions()[revisions().index("0018") - 1])
    upgrade(database_url)
    on(database_url, look)


def test_upgrades_at_once_wait_for_each_other(empty_database_url: str) -> None:
    """Two replicas of a deployment, or `serve --no-worker` and `work` on one file, that start together."""
    environment = {**os.environ, "TC_TREEHERDER_DATABASE_URL": empty_database_url, "TC_TREEHERDER_LOG_LEVEL": "WARNING"}
    program = [str(Path(sys.executable).with_name("tc-treeherder")), "db", "upgrade"]
    running = [
        subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    assert on(empty_database_url, drift) == []
    assert on(empty_database_url, lambda c: c.execute(text("SELECT count(*) FROM alembic_version")).scalar()) == 1


def test_a_migration_that_breaks_leaves_the_schema_as_it_was(empty_database_url: str) -> None:
    def stand_in_the_way(connection: Connection) -> None:
        connection.execute(text("CREATE TABLE planned_task (x INTEGER)"))  # the last that the first revision makes

    on(empty_database_url, stand_in_the_way)
    with pytest.raises(DBAPIError, match="planned_task"):
        upgrade(empty_database_url)
    assert on(empty_database_url, table_names) == {"planned_task"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    (path,) = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    return Path(path)


def test_the_wheel_has_the_migrations_and_what_both_sides_share(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "service/contract/events.py",
        "service/_alembic/env.py",
        "service/cli.py",
        "listeners/pushlog.py",
    } <= names
    in_checkout = {path.name for path in (ROOT / "alembic" / "versions").glob("*.py")}
    assert {name.rpartition("/")[2] for name in names if name.startswith("service/_alembic/versions/")} == in_checkout
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"service", "listeners"}
    assert [name for name in names if name.endswith((".pyc", ".sqlite"))] == []


def test_the_wheel_migrates_by_itself(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    script = (
        "import service.store.database as d, sys; print(d.__file__); "
        "d.upgrade('sqlite+aiosqlite:///x.sqlite'); d.check_schema('sqlite+aiosqlite:///x.sqlite')"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "site" / "service" / "store" / "database.py")
    assert (tmp_path / "x.sqlite").exists()


def test_a_schema_of_a_newer_release_will_do_for_this_one(database_url: str) -> None:
    """After a roll-back, or if an old pod restarts during an update, the schema is newer: migrations expand first."""
    engine = create_engine(database_url.replace("+aiosqlite", ""), poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    check_schema(database_url)
    upgrade(database_url)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == "9999"
    engine.dispose()
