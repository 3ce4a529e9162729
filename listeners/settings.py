"""The listeners' settings, read as `service/contract/configuration.py` does.

Service and listeners can share one environment and one file: each reads its own settings.
"""

from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, HttpUrl, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict, YamlConfigSettingsSource

from service.contract.configuration import Configuration, Duration, SettingsError, WebhookSecret, problem_text, read
from service.contract.events import MAX_EVENTS

MIB = 1024 * 1024


def _require_positive(value: timedelta) -> timedelta:
    if not value:
        raise ValueError("0 is not allowed, because it would retry without a pause: give seconds, such as 0.5")
    return value


PositiveDuration = Annotated[Duration, AfterValidator(_require_positive)]

_NAME = r"^[A-Za-z0-9._/-]{1,100}$"


def _prefixes_with_jobs(value: Any) -> Any:
    """Return the route prefixes of the service's `environments` with jobs; everything else, and secrets, is dropped."""
    if not isinstance(value, dict):
        return value
    return [
        prefix
        for prefix, environment in value.items()
        if not (isinstance(environment, dict) and environment.get("jobs") == "off")
    ]


RoutePrefixes = Annotated[list[str], BeforeValidator(_prefixes_with_jobs)]


class SharedPulse(BaseModel):
    """The settings that service and listeners share: TC_TREEHERDER_PULSE__URL, or `pulse: {url: …}` in the file."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    url: SecretStr | None = Field(None, description="the service's, too")
    user: str | None = Field(None, pattern=_NAME, description="the service's, too")


class _SharedFile(YamlConfigSettingsSource):
    """A YAML file that the service may read too: the listeners' own settings are below `listeners`."""

    def __call__(self) -> dict[str, Any]:
        data = super().__call__()
        listener_settings = data.pop("listeners", None) or {}
        if not isinstance(listener_settings, dict):
            raise SettingsError("listeners: must be a mapping of settings")
        unknown = sorted(map(str, listener_settings.keys() - ListenerSettings.model_fields.keys()))
        if unknown:
            raise SettingsError(
                f"listeners: listeners have no setting {', '.join(unknown)}: `tc-treeherder settings` lists them all"
            )
        return {**data, **listener_settings}


class ListenerSettings(Configuration):
    """The settings of the pushlog listener and the Pulse listener."""

    model_config = SettingsConfigDict(extra="ignore")
    file_source = _SharedFile

    service_url: HttpUrl = Field(HttpUrl("http://127.0.0.1:8080"), description="where tc-treeherder serve answers")
    webhook_secrets: list[WebhookSecret] = Field(
        min_length=1, description="the first signs; the service must have it among its webhook_secrets"
    )
    service_timeout: PositiveDuration = Field(timedelta(seconds=30), description="for an answer of the service")
    first_retry: PositiveDuration = Field(timedelta(seconds=0.2), description="doubles with each failure, with jitter")
    max_retry: PositiveDuration = Field(timedelta(seconds=10), description="between two attempts at most")
    refused_retry: PositiveDuration = Field(
        timedelta(seconds=30), description="after an answer that only a person can mend, such as a wrong secret"
    )

    poll_workers: int = Field(16, ge=1, le=100, description="pushlogs asked at a time")
    poll_window: int = Field(100, ge=1, le=10_000, description="push ids asked for in one request")
    hg_timeout: PositiveDuration = Field(
        timedelta(seconds=15),
        description="for one answer of a pushlog; at most the service's poll.shift",
    )
    max_listing: int = Field(256 * MIB, ge=1, description="bytes of one answer; beyond, fewer pushes are asked for")
    announced_wait: PositiveDuration = Field(
        timedelta(seconds=5),
        description="so long an announced push waits for the reserve of its host's budget before its turn is awaited",
    )
    chunk_bytes: int = Field(8 * MIB, ge=1, le=30 * MIB, description="a request to the service is about so large")
    drain: Duration = Field(timedelta(seconds=3), description="how long SIGTERM waits for work under way")

    pulse: SharedPulse = SharedPulse()
    pulse_url: SecretStr | None = Field(
        None,
        description="amqps://user:password@pulse.mozilla.org:5671/%2F; default: pulse.url, which the service has too",
    )
    pulse_user: str | None = Field(
        None,
        pattern=_NAME,
        description="queues are named queue/<user>/…; default: pulse.user, else the user of the url",
    )
    pulse_queue: str = Field("tc-treeherder", pattern=_NAME, description="…/<this>/job-actions, …/<this>/tasks")
    pulse_read: list[Literal["job-actions", "tasks", "pushes"]] = Field(
        ["job-actions", "tasks"],
        min_length=1,
        description="the queues to read. tasks is left out while no environment is configured; pushes lets a "
        "repository be polled as soon as a push is announced",
    )
    environments: RoutePrefixes = Field(
        [], description="the service's environments: the tasks of each route prefix are heard, unless its jobs are off"
    )
    pulse_job_actions: str = Field("exchange/treeherder/v1/job-actions", description="the exchange of pressed buttons")
    pulse_tasks: str = Field(
        "exchange/taskcluster-queue/v1/", description="what the names of Taskcluster's exchanges begin with"
    )
    pulse_pushes: str = Field("exchange/hgpushes/v2", description="the exchange of announced pushes; v1 is read too")
    pulse_batch: int = Field(500, ge=1, le=MAX_EVENTS, description="messages in one request to the service")
    pulse_linger: Duration = Field(
        timedelta(milliseconds=100), description="between two batches that are not full, so that a flood comes in few"
    )
    pulse_prefetch: int = Field(
        1_000,
        ge=1,
        le=65_535,
        description="unacknowledged messages of a queue, and so what is held while the service is away",
    )
    pulse_timeout: PositiveDuration = Field(timedelta(seconds=10), description="for an answer of the broker")
    pulse_blocked: PositiveDuration = Field(
        timedelta(seconds=60), description="a connection that the broker blocks longer is given up for a new one"
    )
    pulse_heartbeat: int = Field(30, ge=1, le=3_600, description="seconds; two that are missed end the connection")
    pulse_bind_every: PositiveDuration = Field(
        timedelta(seconds=30), description="bindings are made again, and missing exchanges looked for"
    )
    pulse_report_every: PositiveDuration = Field(
        timedelta(minutes=1), description="the service is told that queues are read"
    )
    unhealthy_after: PositiveDuration = Field(
        timedelta(minutes=2), description="without a connection to the broker, the probe answers 503"
    )
    probe_host: str = Field("127.0.0.1", description="where the probe answers; in a container 0.0.0.0")
    probe_port: int | None = Field(
        None, ge=0, le=65_535, description="/__lbheartbeat__ and /__heartbeat__ of the Pulse listener; none by default"
    )

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_json: bool | None = Field(None, description="mozlog JSON; default: unless standard error is a terminal")
    sentry_dsn: SecretStr | None = Field(None, description="errors are reported to this Sentry")

    @model_validator(mode="after")
    def _consistent(self) -> "ListenerSettings":
        if self.pulse_prefetch < self.pulse_batch:
            raise ValueError("pulse_prefetch must be at least pulse_batch, because otherwise no batch is ever full")
        return self

    @property
    def service(self) -> str:
        """The service's URL without a slash at its end."""
        return str(self.service_url).rstrip("/")


def load(**overrides: Any) -> ListenerSettings:
    """Return the settings of this process. Raises SettingsError."""
    return read(ListenerSettings, _describe_problem, **overrides)


def _describe_problem(problem: Any) -> str:
    if problem["loc"] == ("webhook_secrets",) and problem["type"] in {"missing", "too_short"}:
        return (
            "webhook_secrets: the listener needs a secret to sign its requests: set TC_TREEHERDER_WEBHOOK_SECRETS to "
            'the same JSON list as the service\'s, ["whsec_…"]'
        )
    return problem_text(problem)
