"""Configure which Treeherder the stand-in is, and the faults that it shows."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

ALWAYS = -1
"""As a number of requests: every one, until it is set to something else."""

Year = Literal[2015, 2016, 2017, "today"]

SUBMISSION: tuple[Year, ...] = (2015, 2016, 2017)
"""Years of the REST submission; 2017 as it was in March, 2016 in June."""

ANY_YEAR: tuple[Year, ...] = (*SUBMISSION, "today")


class Behaviour(BaseModel):
    """Configuration of the stand-in: its year, and its faults.

    Numbers of requests count down as they are used up; ALWAYS (-1) never does.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    year: Year = Field(
        2017, description="2015: jobs need a revision_hash; 2015 to 2017: resultsets; today: push/ alone"
    )
    down: int = Field(0, ge=ALWAYS, description="requests that find nobody at home")
    down_how: Literal["503", "drop"] = Field("503", description="an answer, or a connection that is cut without one")
    delay: float = Field(0, ge=0, description="seconds before anything happens")
    too_many: int = Field(0, ge=ALWAYS, description="submissions answered 429, whatever the rate")
    fail_after: int = Field(0, ge=ALWAYS, description="submissions that are stored and answered 500 all the same")
    refuse_jobs: frozenset[str] = Field(frozenset(), description="job guids whose bulk is never taken")
    bad_job_status: Literal[400, 500] = Field(400, description="answer to a bulk with a job that breaks a rule")
    unknown_push: Literal["error", "drop"] = Field("error", description="jobs before their push: 500, or 200 and lost")
    throttle: bool = Field(False, description="whether the limits below hold, for each credential")
    jobs_per_minute: int = Field(220, ge=0)
    resultsets_per_minute: int = Field(400, ge=0)
    retry_after: bool = Field(False, description="whether a 429 says how long to wait")

    def uses_up(self, fault: Literal["down", "too_many", "fail_after"]) -> bool:
        """Return True if the fault hits this request, and count it down."""
        left: int = getattr(self, fault)
        if left > 0:
            setattr(self, fault, left - 1)
        return left != 0
