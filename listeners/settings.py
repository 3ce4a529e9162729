"""The listeners' settings, read as `service/contract/configuration.py` does.

Service and listeners can share one environment and one file: each reads its own settings.
"""

from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, HttpUrl, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict, YamlConfigSettingsSource

from service.contract.configuration import (
    PULSE_URL,
    PULSE_USER,
    Configuration,
    Duration,
    SettingsError,
    WebhookSecret,
    problem_text,
    read,
)
from service.contract.events import MAX_EVENTS
from service.contract.validation import named_pattern

MIB = 1024 * 1024


def _require_positive(value: timedelta) -> timedelta:
    if not value:
        raise ValueError("0 is not allowed, because it would retry without a pause: give seconds, such as 0.5")
    return value


PositiveDuration = Annotated[Duration, AfterValidator(_require_positive)]

_NAME = named_pattern(r"^[A-Za-z0-9._/-]{1,100}$", "name (1 to 100 of A-Z a-z 0-9 . _ / -)")


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

    url: SecretStr | None = Field(None, description="URL of the broker, which the service uses too")
    user: str | None = Field(None, pattern=_NAME, description="Pulse user, which the service uses too")


class _SharedFile(YamlConfigSettingsSource):
    """A YAML file that the service may read too: the listeners' own settings are below `listeners`."""

    def __call__(self) -> dict[str, Any]:
        data = super().__call__()
        listener_settings = data.pop("listeners", None) or {}
        if not isinstance(listener_settings, dict):
            raise SettingsError("listeners: must be a mapping of settings")
        unknown = sorted(map(str, listener_settings.keys() - ListenerSettings.model_fields.keys()))
        if unknown:
            problems = [{"type": "extra_forbidden", "loc": ("listeners", name)} for name in unknown]
            raise SettingsError("\n".join(problem_text(problem, _File) for problem in problems))
        return {**data, **listener_settings}


class ListenerSettings(Configuration):
    """The settings of the pushlog listener and the Pulse listener."""

    model_config = SettingsConfigDict(extra="ignore")
    file_source = _SharedFile

    service_url: HttpUrl = Field(HttpUrl("http://127.0.0.1:8080"), description="URL of the service")
    webhook_secrets: list[WebhookSecret] = Field(
        min_length=1,
        description="secrets, of which the first one signs requests; the service must have it among its own",
    )
    service_timeout: PositiveDuration = Field(
        timedelta(seconds=30), description="time limit of one answer of the service"
    )
    first_retry: PositiveDuration = Field(
        timedelta(seconds=0.2),
        description="pause after the first failure; doubles with each further failure, and is shortened at random",
    )
    max_retry: PositiveDuration = Field(timedelta(seconds=10), description="longest pause between two attempts")
    refused_retry: PositiveDuration = Field(
        timedelta(seconds=30), description="pause after an error that only a person can fix, such as a wrong secret"
    )

    poll_workers: int = Field(16, ge=1, le=100, description="largest number of polls at a time")
    poll_window: int = Field(100, ge=1, le=10_000, description="push ids in one request")
    hg_timeout: PositiveDuration = Field(
        timedelta(seconds=15),
        description="time limit of one answer of a pushlog; at most the service's poll.shift",
    )
    max_listing: int = Field(
        256 * MIB, ge=1, description="largest answer in bytes; after a larger one, fewer pushes are requested"
    )
    announced_wait: PositiveDuration = Field(
        timedelta(seconds=5),
        description="how long an announced push waits for the reserve of its host's budget; then the regular poll "
        "finds it",
    )
    chunk_bytes: int = Field(
        8 * MIB, ge=1, le=30 * MIB, description="approximate size in bytes of a request to the service"
    )
    drain: Duration = Field(timedelta(seconds=3), description="how long a listener may finish its work after SIGTERM")

    pulse: SharedPulse = SharedPulse()
    pulse_url: SecretStr | None = Field(
        None,
        description="URL of the broker, such as amqps://user:password@pulse.mozilla.org:5671/%2F; default: pulse.url",
    )
    pulse_user: str | None = Field(
        None,
        pattern=_NAME,
        description="Pulse user, as in the queues' names queue/<user>/…; default: pulse.user, otherwise the user in "
        "the URL",
    )
    pulse_queue: str = Field(
        "tc-treeherder",
        pattern=_NAME,
        description="part of the queues' names: queue/<user>/<pulse_queue>/job-actions, …/tasks, …/pushes",
    )
    pulse_read: list[Literal["job-actions", "tasks", "pushes"]] = Field(
        ["job-actions", "tasks"],
        min_length=1,
        description="queues to read. tasks is not read while no environment is configured; with pushes, a "
        "repository is polled as soon as a push is announced",
    )
    environments: RoutePrefixes = Field(
        [],
        description="environments of the service, of which only the route prefixes are used: task events of each are "
        "read, unless its jobs are off",
    )
    pulse_job_actions: str = Field("exchange/treeherder/v1/job-actions", description="exchange of pressed buttons")
    pulse_tasks: str = Field(
        "exchange/taskcluster-queue/v1/", description="prefix of the names of Taskcluster's exchanges"
    )
    pulse_pushes: str = Field(
        "exchange/hgpushes/v2", description="exchange of announced pushes; messages of v1 are understood too"
    )
    pulse_batch: int = Field(
        500, ge=1, le=MAX_EVENTS, description="largest number of messages in one request to the service"
    )
    pulse_linger: Duration = Field(
        timedelta(milliseconds=100),
        description="pause between two batches that are not full, so that a flood comes in few batches",
    )
    pulse_prefetch: int = Field(
        1_000,
        ge=1,
        le=65_535,
        description="largest number of unacknowledged messages of a queue, which a listener holds while the service is "
        "away",
    )
    pulse_timeout: PositiveDuration = Field(timedelta(seconds=10), description="time limit of one answer of the broker")
    pulse_blocked: PositiveDuration = Field(
        timedelta(seconds=60),
        description="how long the broker may block a connection before the listener opens a new one",
    )
    pulse_heartbeat: int = Field(
        30, ge=1, le=3_600, description="seconds between heartbeats; two missing ones end the connection"
    )
    pulse_bind_every: PositiveDuration = Field(
        timedelta(seconds=30),
        description="interval at which bindings are repeated and missing exchanges are tried again",
    )
    pulse_report_every: PositiveDuration = Field(
        timedelta(minutes=1), description="interval at which the service is told that a queue is read"
    )
    unhealthy_after: PositiveDuration = Field(
        timedelta(minutes=2),
        description="how long a queue may be disconnected before the Pulse listener's heartbeats answer 503, or the "
        "service away before the pushlog listener's is a warning",
    )
    probe_host: str = Field("127.0.0.1", description="address of probe_port; in a container 0.0.0.0")
    probe_port: int | None = Field(
        None,
        ge=0,
        le=65_535,
        description="port of a listener's /metrics, /__lbheartbeat__, /__heartbeat__ and /__version__, a different one "
        "for each listener on a machine; default: none",
    )

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_json: bool | None = Field(None, description="log as mozlog JSON; default: unless standard output is a terminal")
    sentry_dsn: SecretStr | None = Field(None, description="DSN of the Sentry that errors are reported to")

    @model_validator(mode="after")
    def _consistent(self) -> "ListenerSettings":
        if self.pulse_prefetch < self.pulse_batch:
            raise ValueError("pulse_prefetch must be at least pulse_batch, because otherwise no batch is ever full")
        return self

    @property
    def pulse_variables(self) -> tuple[str, str]:
        """Return the variables that have the URL of the broker and the Pulse user."""
        url = "TC_TREEHERDER_PULSE_URL" if self.pulse_url else PULSE_URL
        return url, "TC_TREEHERDER_PULSE_USER" if self.pulse_user else PULSE_USER

    @property
    def service(self) -> str:
        """The service's URL without a slash at its end."""
        return str(self.service_url).rstrip("/")


class _File(BaseModel):
    """Settings of the file for the listeners only, for the names in errors."""

    listeners: ListenerSettings


def load(**overrides: Any) -> ListenerSettings:
    """Return the settings of this process. Raises SettingsError."""
    return read(ListenerSettings, _describe_problem, **overrides)


def _describe_problem(problem: Any, model: type[BaseModel]) -> str:
    if problem["loc"] == ("webhook_secrets",) and problem["type"] in {"missing", "too_short"}:
        return (
            "webhook_secrets: the listener needs a secret to sign its requests: set TC_TREEHERDER_WEBHOOK_SECRETS to "
            'the same JSON list as the service\'s, ["whsec_…"]'
        )
    return problem_text(problem, model)
