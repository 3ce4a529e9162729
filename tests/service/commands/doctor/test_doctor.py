"""Output and exit codes of `tc-treeherder doctor`."""

from tests.service.commands.conftest import Run
from tests.service.commands.doctor.conftest import PLANTED


def test_people_get_a_table_and_what_to_do(run: Run, variables: dict[str, str]) -> None:
    ran = run("doctor", **variables)
    assert ran.code == 0
    assert ran.out.splitlines()[0].split() == ["STATUS", "SYSTEM", "CHECK", "FOUND", "WHAT", "TO", "DO"]
    ran = run("doctor", **{**variables, "TASKCLUSTER__ACCESS_TOKEN": "wrong"})
    assert ran.code == 1
    (line,) = [line for line in ran.out.splitlines() if line.startswith("error")]
    assert line.split()[:3] == ["error", "taskcluster", "credentials"]
    assert "checks failed" in ran.err


def test_what_is_good_can_be_left_out(run: Run, variables: dict[str, str]) -> None:
    wrong = {**variables, "TASKCLUSTER__ACCESS_TOKEN": "wrong"}
    every = run("doctor", "--json", **wrong).json["checks"]
    ran = run("doctor", "--json", "--problems", **wrong)
    assert ran.code == 1
    assert ran.json["checks"] == [check for check in every if check["status"] != "ok"] != every
    assert f" of {len(every)} checks failed" in ran.err


def test_wrong_settings_are_2(run: Run) -> None:
    ran = run("doctor", "--json", PORT="x", DATABASE_URL=f"postgresql+psycopg://me:x:{PLANTED}@h:{PLANTED}/x")
    assert (ran.code, ran.out) == (2, "")
    assert "port" in ran.err
    assert PLANTED not in ran.err
