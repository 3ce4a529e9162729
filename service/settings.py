"""One `Settings`, read as `configuration` says."""

from datetime import timedelta
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, HttpUrl, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from service.contract.configuration import Configuration, Duration, WebhookSecret, read
from service.error_task import DEFAULT_ERROR_TASK

REPOSITORIES_WRITE = "tc-treeherder:repositories:write"
"""The scope that creates, changes and deletes repositories and handles dead letters."""

RENDER = "tc-treeherder:render"
"""The scope that renders a file without pushing it."""

READ = "tc-treeherder:read"
"""The scope that reads, where reads are closed. Only Taskcluster's callers need it, and then any other of ours does."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class Token(Strict):
    """A bearer token of a person or a program."""

    name: str = Field(min_length=1, description="stands in the log for the value")
    value: SecretStr = Field(min_length=16, description="at least 16 characters")
    scopes: list[str] = Field([], description="what the caller may do; a trailing * satisfies all that begin so")


def _database_url(url: SecretStr) -> SecretStr:
    text = url.get_secret_value()
    try:
        parsed = make_url(text)
    except (ArgumentError, ValueError):
        parsed = None
    if parsed is None or parsed.drivername not in {"sqlite+aiosqlite", "postgresql+psycopg"} or not parsed.database:
        raise ValueError("must be sqlite+aiosqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME")
    return url


DatabaseUrl = Annotated[SecretStr, AfterValidator(_database_url)]


class TaskclusterSettings(Strict):
    root_url: HttpUrl = Field(HttpUrl("https://firefox-ci-tc.services.mozilla.com"), description="of the deployment")
    client_id: str | None = Field(None, description="the service's own client; without one, calls carry no credentials")
    access_token: SecretStr | None = Field(None, description="its token")
    certificate: SecretStr | None = Field(None, description="JSON, with temporary credentials only")
    timeout: Duration = Field(timedelta(seconds=30), description="for one call")
    connections: int = Field(
        10,
        ge=1,
        le=100,
        description="tasks that one process creates at a time at most, of all graphs and retriggers together; fewer "
        "while the queue answers slowly, 429 or 5xx. More let a large graph keep the process busy for others",
    )

    @property
    def root(self) -> str:
        return str(self.root_url).rstrip("/")


def _off(value: Any) -> Any:
    """Read the `off` of a YAML file, which stands for false there, as the word."""
    return "off" if value is False else value


Way = Annotated[Literal["rest", "pulse", "off"], BeforeValidator(_off)]


class Environment(Strict):
    """One Treeherder, known by its route prefix."""

    url: HttpUrl = Field(description="such as https://treeherder.mozilla.org")
    pushes: Way = Field("rest", description="rest: post resultsets; pulse: announce on pushes_exchange; off: neither")
    pushes_exchange: str | None = Field(
        None,
        pattern=r"^exchange/(.+/)?hgpushes/.+$",
        max_length=255,
        description="exchange of pushes: pulse, in full; a Treeherder takes only names with /hgpushes/ in them, and "
        "binds exchange/hgpushes/v1 unless it is told another one. Default: exchange/<pulse.user>/hgpushes/v1",
    )
    client_id: str | None = Field(None, description="Hawk client for pushes and jobs by REST")
    secret: SecretStr | None = Field(None, description="its secret")
    timeout: Duration = Field(timedelta(seconds=30), description="for one request")
    jobs: Way = Field(
        default_factory=lambda given: "rest" if given.get("client_id") and given.get("secret") else "off",
        description="rest: post jobs; pulse: publish them; off: it reads Taskcluster's exchanges itself. "
        "Default: rest with client_id and secret, otherwise off",
    )
    jobs_schema: Literal["2015", "2026"] = Field(
        "2015",
        description="pulse-job.yml that a reader of jobs: pulse validates with. 2015: of 2015-10 to 2026-04, which "
        "requires origin.kind; 2026: of 2026-04 on, which refuses it",
    )
    jobs_per_minute: int = Field(220, ge=0, description="requests with jobs that this credential may make; 0: any")
    log_name: str | None = Field(
        None,
        min_length=1,
        max_length=50,
        description="what a job's log is called; default: builds-4h for jobs: rest, which makes a Treeherder of that "
        "time parse it, otherwise live_backing_log",
    )
    platforms: list[str] | None = Field(None, description="platforms that this Treeherder knows; default: any is taken")
    artifact_links: bool = Field(True, description="link to what finished runs have uploaded")

    @model_validator(mode="after")
    def _credentials(self) -> "Environment":
        for name in ("pushes", "jobs"):
            if getattr(self, name) == "rest" and not (self.client_id and self.secret):
                raise ValueError(f"{name}: rest needs client_id and secret of a Treeherder Hawk client")
        return self

    @property
    def log(self) -> str:
        """What a job's log is called."""
        return self.log_name or ("builds-4h" if self.jobs == "rest" else "live_backing_log")


class PulseSettings(Strict):
    """Where this service publishes. Without a url it publishes nothing."""

    url: SecretStr | None = Field(None, description="amqps://user:password@pulse.mozilla.org:5671/%2F")
    user: str = Field("tc-treeherder", description="exchanges are named exchange/<user>/…")
    timeout: Duration = Field(timedelta(seconds=30), description="for a confirm")
    retry: Duration = Field(
        timedelta(seconds=5), description="between two attempts to connect to a broker that is away"
    )


class RenderLimits(Strict):
    """What the child process that evaluates a push's `.taskcluster.yml` may use."""

    seconds: float = Field(10, gt=0, description="for one file; then the process is killed")
    memory_mib: int = Field(512, ge=64, description="MiB of memory, for one process")
    output_mib: int = Field(20, ge=1, description="MiB that a file may render to")
    tasks: int = Field(10_000, ge=1, description="tasks that a file may render to")
    nodes: int = Field(
        1_000_000, ge=1, description="values that a file may render to: texts, numbers, lists, mappings; each counts"
    )


class PollSettings(Strict):
    interval: Duration = Field(
        timedelta(seconds=5),
        description="between two polls of a repository, or longer if the budget is short",
    )
    shift: Duration = Field(
        timedelta(seconds=15), description="for so long a listener polls what it was leased without asking again"
    )
    renew: Duration = Field(
        timedelta(seconds=5), description="after so long it renews its shift; at most half of `shift`"
    )
    max_requests_per_host: float = Field(10, gt=0, description="a second, of all listeners together")
    announced_share: float = Field(
        0.1,
        ge=0,
        le=0.9,
        description="of max_requests_per_host, kept free so that announced pushes are polled at once; 0: they wait for "
        "their repository's turn",
    )
    at_a_time: int = Field(
        4, ge=1, description="polls of one host at a time, of all listeners together; of each listener one at least"
    )
    full_every: Duration = Field(timedelta(minutes=10), description="poll without If-None-Match at least this often")
    max_backoff: Duration = Field(timedelta(minutes=5), description="between polls of a broken repository")
    reset_polls: int = Field(3, ge=1, description="polls that must see a reset before it is believed")
    reset_after: Duration = Field(timedelta(minutes=1), description="and how long they must have seen it")

    @model_validator(mode="after")
    def _renewable(self) -> "PollSettings":
        if not timedelta() < self.renew * 2 <= self.shift:
            raise ValueError("renew must be more than 0 and at most half of shift, which would end before")
        return self


class WorkSettings(Strict):
    lease: Duration = Field(
        timedelta(seconds=15),
        description="a worker that says nothing for so long has died; it renews its leases, however long a call takes",
    )
    per_lane: int = Field(10, ge=1, description="pieces of work at a time for one upstream, in one process")
    idle: Duration = Field(
        timedelta(seconds=5), description="between two looks for due work and reports that no wake-up told of"
    )
    first_retry: Duration = Field(timedelta(seconds=1), description="doubles with each failure, with jitter")
    max_retry: Duration = Field(timedelta(minutes=10), description="between two attempts at most")
    give_up: Duration = Field(timedelta(days=1), description="then it is buried as a dead letter, after")
    give_up_attempts: int = Field(20, ge=1, description="this many attempts at least, so that no clock buries anything")
    drain: Duration = Field(timedelta(seconds=20), description="how long SIGTERM waits for work under way")

    @property
    def longest_wait(self) -> timedelta:
        """The longest time after which anything is due: what is due later was written by a clock that was wrong.

        Half an hour is the most that an upstream may ask for; backoff is spread by half either way.
        """
        return max(timedelta(minutes=30), self.max_retry * 1.5, self.lease)


class ReportSettings(Strict):
    """How jobs are reported to each Treeherder."""

    batch: int = Field(200, ge=1, le=1000, description="jobs in one request")
    at_a_time: int = Field(2, ge=1, description="requests under way to one Treeherder, from one process")
    turn: Duration = Field(timedelta(seconds=1), description="no project waits longer while the budget allows")
    gather: Duration = Field(timedelta(seconds=0.1), description="a project with less than a batch waits so long")
    links_wait: Duration = Field(
        timedelta(seconds=2),
        description="how long Taskcluster may take to list what ended runs have uploaded; then jobs go without links",
    )
    max_pause: Duration = Field(timedelta(minutes=1), description="between two attempts at a Treeherder that is away")
    push_wait: Duration = Field(timedelta(hours=1), description="how long a job waits for its push, then it is buried")
    quiet: Duration = Field(
        timedelta(minutes=10), description="a run that is not at its end and was not heard of for so long is checked"
    )
    definitions: int = Field(5_000, ge=1, description="task definitions remembered, of each what is shown")


class RetentionSettings(Strict):
    """How long what has ended is kept."""

    every: Duration = Field(timedelta(hours=1), description="between two sweeps")
    plans: Duration = Field(timedelta(days=7), description="definitions of finished plans; ids and names stay")
    job_reports: Duration = Field(timedelta(days=30), description="reports of runs that are at their end")
    dead_letters: Duration = Field(timedelta(days=90), description="dead letters")
    pushes: Duration = Field(timedelta(days=365), description="pushes and actions, with their ids and delivery keys")


class Settings(Configuration):
    model_config = SettingsConfigDict(extra="forbid")

    database_url: DatabaseUrl = Field(
        SecretStr("sqlite+aiosqlite:///tc-treeherder.sqlite"),
        description="sqlite+aiosqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME",
    )
    replica: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="name of this process among those that work on one PostgreSQL database; a restarted one takes over "
        "at once what it held. Default: the host's name",
    )
    database_pool: int = Field(20, ge=1, description="connections to PostgreSQL in one process")
    deployment: str = Field(
        "tc-treeherder",
        min_length=1,
        description="name of this deployment, part of every task id: one that has a copy of another's database needs "
        "a name of its own",
    )
    host: str = Field("127.0.0.1", description="address that the API listens on; beyond loopback only with credentials")
    port: int = Field(8080, ge=0, le=65535, description="its port")
    tokens: list[Token] = Field([], description="who may call the API")
    taskcluster_logins: bool = Field(
        False, description="callers may bring Taskcluster credentials too, as Hawk header or bewit; needs public_url"
    )
    public_url: HttpUrl | None = Field(
        None,
        description="where callers reach this service, such as https://tc-treeherder.example.com; their signatures "
        "must be for this host and port, whatever a Host or X-Forwarded header says",
    )
    public_reads: bool = Field(False, description="everybody may read")
    health_cache: Duration = Field(
        timedelta(seconds=5), description="/metrics and the checks of /__heartbeat__ are computed once in so long"
    )
    write_check: Duration = Field(
        timedelta(seconds=15), description="between two checks that the database takes a write, where somebody asks"
    )
    writes_per_minute: int = Field(600, ge=0, description="of one caller, in one process; more are a 429. 0: any")
    request_timeout: Duration = Field(
        timedelta(seconds=30), description="for the head of a request, and again for its body"
    )
    webhook_secrets: list[WebhookSecret] = Field(
        [], description="listeners sign with the first; any of them is accepted, so that they can be rotated"
    )
    allowed_hosts: list[str] = Field(["hg.mozilla.org"], description="host or host:port of monitored repositories")
    taskcluster: TaskclusterSettings = TaskclusterSettings()
    environments: dict[str, Environment] = Field({}, description="route prefix -> Treeherder")
    pulse: PulseSettings = PulseSettings()
    poll: PollSettings = PollSettings()
    work: WorkSettings = WorkSettings()
    reports: ReportSettings = ReportSettings()
    render: RenderLimits = RenderLimits()
    retention: RetentionSettings = RetentionSettings()
    hg_timeout: Duration = Field(timedelta(seconds=30), description="for one answer of Mercurial")
    max_push_age: Duration = Field(timedelta(days=3), description="no graph for a push older than this")
    retrigger_group: Literal["auto", "same", "new"] = Field(
        "auto",
        description="task group of copies. auto: of a single task its original's, unless that is sealed, of more a new "
        "one; same: always the original's; new: always a new one. A decision task's copy begins its own",
    )
    owner_domain: str = Field(
        "",
        description="added to a pushlog's user without @, where tasks need an address; default: the user as it stands",
    )
    error_task: dict[str, Any] = Field(
        DEFAULT_ERROR_TASK, description="JSON-e template of the task that shows a broken .taskcluster.yml"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="least level that is logged")
    log_json: bool | None = Field(None, description="mozlog JSON; default: unless standard error is a terminal")
    sentry_dsn: SecretStr | None = Field(None, description="errors are reported to this Sentry")
    listeners: dict[str, Any] = Field(
        {}, description="in a file that service and listeners share: what is the listeners' alone (see below)"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        for prefix, environment in self.environments.items():
            for name in ("pushes", "jobs"):
                if getattr(environment, name) == "pulse" and self.pulse.url is None:
                    raise ValueError(f"environments.{prefix}.{name} is pulse: that needs pulse.url")
        if self.taskcluster_logins and self.public_url is None:
            raise ValueError("taskcluster_logins needs public_url: a signature is for the address that was called")
        names = [token.name for token in self.tokens]
        if len(set(names)) < len(names):
            raise ValueError("two tokens have the same name: the log could not tell them apart")
        return self

    @cached_property
    def has_credentials(self) -> bool:
        """Whether anybody is told apart; if not, the service answers on loopback only."""
        return bool(self.tokens) or self.taskcluster_logins

    @property
    def sqlite(self) -> bool:
        return self.database_url.get_secret_value().startswith("sqlite")


def load(**overrides: Any) -> Settings:
    """The settings of this process. Raises SettingsError."""
    return read(Settings, **overrides)
