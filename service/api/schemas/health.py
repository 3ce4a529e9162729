"""The answers of Dockerflow's pages."""

from typing import Literal

from pydantic import BaseModel

from service.api.schemas.common import example


class Check(BaseModel):
    name: str
    status: Literal["ok", "warning", "error"]
    detail: str = ""


class Heartbeat(BaseModel):
    model_config = example(
        status="warning",
        checks=[
            {"name": "database", "status": "ok", "detail": ""},
            {"name": "work", "status": "warning", "detail": "the oldest unfinished work has waited since 12:00"},
        ],
    )

    status: Literal["ok", "warning", "error"]
    checks: list[Check]
