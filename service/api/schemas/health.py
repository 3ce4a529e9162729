"""The answers of Dockerflow's pages."""

from typing import Literal

from pydantic import BaseModel

from service.api.schemas.common import example


class Check(BaseModel):
    """One check of the heartbeat."""

    name: str
    status: Literal["ok", "warning", "error"]
    detail: str = ""


class Heartbeat(BaseModel):
    """All checks, and the worst state among them."""

    model_config = example(
        status="warning",
        checks=[
            {"name": "database", "status": "ok", "detail": ""},
            {"name": "work", "status": "warning", "detail": "the oldest unfinished work has waited since 12:00"},
        ],
    )

    status: Literal["ok", "warning", "error"]
    checks: list[Check]
