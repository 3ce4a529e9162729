"""The exchanges that a service publishes to."""

from typing import Any

from service.clients.pulse import exchanges
from service.settings import Settings


def test_the_exchanges_of_a_service() -> None:
    def of(**environment: Any) -> list[str]:
        values: dict[str, Any] = {"url": "https://th.example.com", **environment}
        pulse: dict[str, Any] = {"url": "amqp://127.0.0.1/", "user": "u"}
        return exchanges(Settings(pulse=pulse, environments={"tc-treeherder": values}))

    always = ["exchange/u/v1/action", "exchange/u/v1/pushes", "exchange/u/v1/retrigger"]
    assert of(pushes="off") == always
    assert of(pushes="pulse") == ["exchange/u/hgpushes/v1", *always]
    assert of(pushes="pulse", pushes_exchange="exchange/hgpushes/v1") == ["exchange/hgpushes/v1", *always]
    assert of(pushes="off", jobs="pulse") == sorted(["exchange/u/v1/jobs", *always])
