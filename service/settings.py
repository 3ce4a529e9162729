"""Define the service's settings, which `service.contract.configuration` reads."""

import os
from datetime import timedelta
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, HttpUrl, SecretStr, model_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from service.contract.configuration import Configuration, Duration, SettingsError, WebhookSecret, read
from service.contract.validation import named_pattern
from service.error_task import DEFAULT_ERROR_TASK

REPOSITORIES_WRITE = "tc-treeherder:repositories:write"
"""The scope for creating, changing and deleting repositories, and for dead letters."""

RENDER = "tc-treeherder:render"
"""The scope for rendering a file without pushing it."""

READ = "tc-treeherder:read"
"""The scope for reading, if reads are not public. Only Taskcluster clients need it, unless they have another one."""


AUDIT_READ = "tc-treeherder:audit:read"
"""The scope for reading who changed what, and who signed in."""

MAX_PORT = 65_535


class Strict(BaseModel):
    """Base class of nested settings, which refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class Token(Strict):
    """A bearer token of a person or a program."""

    name: str = Field(min_length=1, description="name of the caller, which the log has instead of the value")
    value: SecretStr = Field(min_length=16, description="the token, at least 16 characters")
    scopes: list[str] = Field(
        [], description="scopes of the caller; a trailing * satisfies all scopes with that prefix"
    )


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
    """Access to Taskcluster."""

    root_url: HttpUrl = Field(
        HttpUrl("https://firefox-ci-tc.services.mozilla.com"), description="root URL of the deployment"
    )
    client_id: str | None = Field(
        None, description="client of this service; without one, calls to Taskcluster have no credentials"
    )
    access_token: SecretStr | None = Field(None, description="access token of the client")
    certificate: SecretStr | None = Field(None, description="certificate of temporary credentials, as JSON")
    timeout: Duration = Field(timedelta(seconds=30), description="time limit of one call")
    connections: int = Field(
        10,
        ge=1,
        le=100,
        description="largest number of tasks that one process creates at a time, for all graphs and retriggers "
        "together; it creates fewer while the queue answers slowly, 429 or 5xx. With more, a large graph delays other "
        "work of the process more",
    )

    @property
    def root(self) -> str:
        return str(self.root_url).rstrip("/")


def _off(value: Any) -> Any:
    """Convert the `off` of a YAML file, which is false there, to the word."""
    return "off" if value is False else value


Transport = Annotated[Literal["rest", "pulse", "off"], BeforeValidator(_off)]


_PUSHES_EXCHANGE = named_pattern(
    r"^exchange/(.+/)?hgpushes/.+$", "name of an exchange for pushes, such as exchange/USER/hgpushes/v1"
)


class Environment(Strict):
    """A Treeherder, named by its route prefix."""

    url: HttpUrl = Field(description="URL of the Treeherder, such as https://treeherder.mozilla.org")
    pushes: Transport = Field(
        "rest", description="rest: post resultsets; pulse: announce pushes on pushes_exchange; off: neither"
    )
    pushes_exchange: str | None = Field(
        None,
        pattern=_PUSHES_EXCHANGE,
        max_length=255,
        description="full name of the exchange for `pushes: pulse`. Treeherder only accepts names that contain "
        "/hgpushes/, and binds exchange/hgpushes/v1 unless it is configured otherwise. "
        "Default: exchange/<pulse.user>/hgpushes/v1",
    )
    client_id: str | None = Field(None, description="Hawk client for pushes and jobs by REST")
    secret: SecretStr | None = Field(None, description="secret of the Hawk client")
    timeout: Duration = Field(timedelta(seconds=30), description="time limit of one request")
    jobs: Transport = Field(
        default_factory=lambda values: "rest" if values.get("client_id") and values.get("secret") else "off",
        description="rest: post jobs; pulse: publish jobs; off: neither, for a Treeherder that reads Taskcluster's "
        "exchanges itself. Default: rest with client_id and secret, otherwise off",
    )
    jobs_schema: Literal["2015", "2026"] = Field(
        "2015",
        description="version of pulse-job.yml for `jobs: pulse`. 2015: the one of 2015-10 to 2026-04, which requires "
        "origin.kind; 2026: the one since 2026-04, which refuses it",
    )
    jobs_per_minute: int = Field(
        220, ge=0, description="largest number of requests with jobs per minute with this credential; 0: no limit"
    )
    log_name: str | None = Field(
        None,
        min_length=1,
        max_length=50,
        description="name of a job's log. Default: builds-4h for `jobs: rest`, because Treeherders that accept jobs by "
        "REST parse a log of that name; otherwise live_backing_log",
    )
    platforms: list[str] | None = Field(
        None, description="platforms that this Treeherder knows; default: all platforms are sent"
    )
    artifact_links: bool = Field(True, description="link jobs to the artifacts of finished runs")

    @model_validator(mode="after")
    def _credentials(self) -> "Environment":
        for name in ("pushes", "jobs"):
            if getattr(self, name) == "rest" and not (self.client_id and self.secret):
                raise ValueError(f"{name}: rest needs client_id and secret of a Treeherder Hawk client")
        return self

    @property
    def log(self) -> str:
        """Return the name of a job's log."""
        return self.log_name or ("builds-4h" if self.jobs == "rest" else "live_backing_log")


class PulseSettings(Strict):
    """Publishing to Pulse. Without a URL the service publishes nothing."""

    url: SecretStr | None = Field(
        None, description="URL of the broker, such as amqps://user:password@pulse.mozilla.org:5671/%2F"
    )
    user: str = Field("tc-treeherder", description="Pulse user, as in the exchanges' names exchange/<user>/…")
    timeout: Duration = Field(timedelta(seconds=30), description="time limit of a publisher confirm")
    retry: Duration = Field(
        timedelta(seconds=5), description="time between two attempts to connect while the broker is unreachable"
    )


class RenderLimits(Strict):
    """Limits of the child process that evaluates a push's `.taskcluster.yml`."""

    seconds: float = Field(10, gt=0, description="time limit for one file, in seconds; then the process is killed")
    memory_mib: int = Field(512, ge=64, description="memory limit of one process, in MiB")
    output_mib: int = Field(20, ge=1, description="largest rendered size of a file, in MiB")
    tasks: int = Field(10_000, ge=1, description="largest number of tasks that a file may render to")
    nodes: int = Field(
        1_000_000,
        ge=1,
        description="largest number of values that a file may render to; each string, number, list and mapping counts",
    )


SIGN_IN_PATH = "/sign-in/taskcluster/done"
"""Path of the page to which Taskcluster leads people back who sign in."""


class SignInSettings(Strict):
    """Signing in to the page with Taskcluster. Without a client, people sign in with tokens alone."""

    client_id: str | None = Field(
        None,
        min_length=1,
        description="id of this page among the clients that Taskcluster's web-server has registered, with responseType "
        "code",
    )
    redirect_url: HttpUrl | None = Field(
        None,
        description=f"URL that Taskcluster leads people back to, exactly as registered there. Default: public_url with "
        f"{SIGN_IN_PATH}",
    )
    scopes: list[str] = Field(
        ["tc-treeherder:*"], min_length=1, description="scopes that are registered for the client there, all of them"
    )


class PollSettings(Strict):
    """Polling of pushlogs."""

    interval: Duration = Field(
        timedelta(seconds=5),
        description="time between two polls of a repository; longer if the host's budget does not allow it",
    )
    shift: Duration = Field(
        timedelta(seconds=15), description="time for which a listener polls its leased repositories after a renewal"
    )
    renew: Duration = Field(
        timedelta(seconds=5), description="time after which a listener renews its shift; at most half of poll.shift"
    )
    max_requests_per_host: float = Field(
        10, gt=0, description="largest number of requests per second to one host, of all listeners together"
    )
    announced_share: float = Field(
        0.1,
        ge=0,
        le=0.9,
        description="share of max_requests_per_host that is reserved for polling announced pushes at once; 0: they "
        "wait for their repository's next poll",
    )
    at_a_time: int = Field(
        4,
        ge=1,
        description="largest number of concurrent polls of one host, of all listeners together; each listener may "
        "always send one",
    )
    full_every: Duration = Field(
        timedelta(minutes=10), description="longest time between two polls without If-None-Match"
    )
    max_backoff: Duration = Field(
        timedelta(minutes=5), description="longest time between polls of a failing repository"
    )
    reset_polls: int = Field(3, ge=1, description="consecutive polls that must see a reset before it is accepted")
    reset_after: Duration = Field(
        timedelta(minutes=1), description="time for which these polls must have seen the reset"
    )

    @model_validator(mode="after")
    def _renewable(self) -> "PollSettings":
        if not timedelta() < self.renew * 2 <= self.shift:
            raise ValueError("renew must be more than 0 and at most half of shift, otherwise the shift ends before")
        return self


class WorkSettings(Strict):
    """Leasing, retrying and burying work."""

    lease: Duration = Field(
        timedelta(seconds=15),
        description="time after which the work of a silent worker is leased to another one; a live worker renews its "
        "leases during long calls",
    )
    per_lane: int = Field(10, ge=1, description="concurrent pieces of work for one upstream, in one process")
    idle: Duration = Field(
        timedelta(seconds=5), description="time between two polls for due work and reports, in case a wake-up was lost"
    )
    first_retry: Duration = Field(
        timedelta(seconds=1), description="time before the first retry; it doubles with each failure, with jitter"
    )
    max_retry: Duration = Field(timedelta(minutes=10), description="longest time between two attempts")
    give_up: Duration = Field(
        timedelta(days=1),
        description="time after which failing work is buried as a dead letter, if it had give_up_attempts attempts",
    )
    give_up_attempts: int = Field(
        20, ge=1, description="smallest number of attempts before work is buried, so that a wrong clock buries nothing"
    )
    drain: Duration = Field(timedelta(seconds=20), description="time that SIGTERM waits for work in progress")

    @property
    def longest_wait(self) -> timedelta:
        """Return the longest time until any work is due. If work is due later, a wrong clock has written that.

        An upstream may ask for half an hour at most, and jitter adds up to half of the backoff.
        """
        return max(timedelta(minutes=30), self.max_retry * 1.5, self.lease)


class ReportSettings(Strict):
    """Reporting of jobs to each Treeherder."""

    batch: int = Field(200, ge=1, le=1000, description="largest number of jobs in one request")
    at_a_time: int = Field(2, ge=1, description="concurrent requests to one Treeherder, from one process")
    turn: Duration = Field(
        timedelta(seconds=1), description="longest time that a project's reports wait, while the budget allows"
    )
    gather: Duration = Field(
        timedelta(seconds=0.1), description="time that a project with less than a full batch waits for more reports"
    )
    links_wait: Duration = Field(
        timedelta(seconds=2),
        description="time limit for listing the artifacts of finished runs; after that, jobs are sent without links",
    )
    max_pause: Duration = Field(
        timedelta(minutes=1), description="longest time between two attempts to reach a failing Treeherder"
    )
    push_wait: Duration = Field(
        timedelta(hours=1), description="time that a job waits for its push, before it is buried as a dead letter"
    )
    quiet: Duration = Field(
        timedelta(minutes=10),
        description="time without an event after which an unfinished run is looked up in the queue",
    )
    definitions: int = Field(
        5_000, ge=1, description="number of cached task definitions, of which only the displayed fields are kept"
    )


class RetentionSettings(Strict):
    """Retention of finished work."""

    every: Duration = Field(timedelta(hours=1), description="time between two clean-ups")
    plans: Duration = Field(
        timedelta(days=7), description="retention of task definitions of finished plans; ids and names are kept"
    )
    job_reports: Duration = Field(timedelta(days=30), description="retention of reports of finished runs")
    dead_letters: Duration = Field(timedelta(days=90), description="retention of dead letters")
    pushes: Duration = Field(
        timedelta(days=365),
        description="retention of pushes and actions, with their ids and delivery keys, and of the audit",
    )


class Settings(Configuration):
    """Settings of the service."""

    model_config = SettingsConfigDict(extra="forbid")

    database_url: DatabaseUrl = Field(
        SecretStr("sqlite+aiosqlite:///tc-treeherder.sqlite"),
        description="URL of the database: sqlite+aiosqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME",
    )
    replica: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="name of this process among those that use one PostgreSQL database; a restarted process takes over "
        "the leases of its predecessor at once. Default: the host's name",
    )
    database_pool: int = Field(20, ge=1, description="connections to PostgreSQL in one process")
    deployment: str = Field(
        "tc-treeherder",
        min_length=1,
        description="name of this deployment, from which task ids are derived: a deployment with a copy of another's "
        "database needs a name of its own",
    )
    host: str = Field("127.0.0.1", description="address that the API listens on; beyond loopback only with credentials")
    port: int = Field(
        8080, ge=0, le=MAX_PORT, description="port that the API listens on; default: the variable PORT, otherwise 8080"
    )
    tokens: list[Token] = Field([], description="callers of the API")
    taskcluster_logins: bool = Field(
        False, description="accept Taskcluster credentials too, as Hawk header or bewit; needs public_url"
    )
    public_url: HttpUrl | None = Field(
        None,
        description="URL at which callers reach this service, such as https://tc-treeherder.example.com; their "
        "signatures must be for this host and port, whatever a Host or X-Forwarded header says",
    )
    public_reads: bool = Field(False, description="allow everybody to read")
    web: bool = Field(True, description="serve the page for people at /")
    web_session: Duration = Field(
        timedelta(hours=12), description="time after which whoever signed in to the page must sign in again"
    )
    web_sign_in: SignInSettings = SignInSettings()
    web_proxies: int = Field(
        0,
        ge=0,
        le=10,
        description="number of proxies in front of the service: the address that failed sign-ins are counted by is the "
        "one that the outermost of them put into X-Forwarded-For. 0: whoever opens the connection",
    )
    health_cache: Duration = Field(
        timedelta(seconds=5), description="time for which /metrics and the checks of /__heartbeat__ are cached"
    )
    write_check: Duration = Field(
        timedelta(seconds=15),
        description="shortest time between two checks of /__heartbeat__ that the database accepts a write",
    )
    writes_per_minute: int = Field(
        600, ge=0, description="largest number of writes of one caller, in one process; more are a 429. 0: no limit"
    )
    request_timeout: Duration = Field(
        timedelta(seconds=30), description="time limit for the head of a request, and again for its body"
    )
    webhook_secrets: list[WebhookSecret] = Field(
        [],
        description="secrets for the listeners' signatures; listeners sign with the first, and the service accepts all "
        "of them, so that they can be rotated",
    )
    allowed_hosts: list[str] = Field(
        ["hg.mozilla.org"], description="hosts of monitored repositories, as host or host:port"
    )
    taskcluster: TaskclusterSettings = TaskclusterSettings()
    environments: dict[str, Environment] = Field({}, description="Treeherders, by their route prefix")
    pulse: PulseSettings = PulseSettings()
    poll: PollSettings = PollSettings()
    work: WorkSettings = WorkSettings()
    reports: ReportSettings = ReportSettings()
    render: RenderLimits = RenderLimits()
    retention: RetentionSettings = RetentionSettings()
    hg_timeout: Duration = Field(timedelta(seconds=30), description="time limit of one answer of Mercurial")
    max_push_age: Duration = Field(timedelta(days=3), description="largest age of a push that gets a task graph")
    retrigger_group: Literal["auto", "same", "new"] = Field(
        "auto",
        description="task group of copies. auto: the original's for a single task, unless it is sealed, otherwise a "
        "new one; same: always the original's; new: always a new one. The copy of a decision task begins its own group",
    )
    max_copies: int = Field(10_000, ge=1, description="largest number of tasks that one retrigger may create")
    owner_domain: str = Field(
        "",
        description="domain that is added to a pushlog's user without @ where tasks need an address; default: none",
    )
    error_task: dict[str, Any] = Field(
        DEFAULT_ERROR_TASK, description="JSON-e template of the task that shows a broken .taskcluster.yml"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="lowest level that is logged")
    log_json: bool | None = Field(None, description="log as mozlog JSON; default: unless standard output is a terminal")
    sentry_dsn: SecretStr | None = Field(None, description="DSN of the Sentry that errors are reported to")
    listeners: dict[str, Any] = Field(
        {}, description="in a file that service and listeners share: the settings of the listeners only (see below)"
    )

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], *arguments: Any, **sources: PydanticBaseSettingsSource
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Add Dockerflow's variable PORT, behind everything that is set for us."""
        own = super().settings_customise_sources(settings_cls, *arguments, **sources)
        port = os.environ.get("PORT", "")
        if not port:
            return own
        if not port.isdecimal() or int(port) > MAX_PORT:
            raise SettingsError(f"PORT is {port!r}, which is no port: set it to a number up to {MAX_PORT}")
        return (*own, InitSettingsSource(settings_cls, {"port": int(port)}))

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        for prefix, environment in self.environments.items():
            for name in ("pushes", "jobs"):
                if getattr(environment, name) == "pulse" and self.pulse.url is None:
                    raise ValueError(f"environments.{prefix}.{name} is pulse, which needs pulse.url")
        if self.taskcluster_logins and self.public_url is None:
            raise ValueError("taskcluster_logins needs public_url, because a signature includes the called address")
        self._check_sign_in()
        names = [token.name for token in self.tokens]
        if len(set(names)) < len(names):
            raise ValueError("two tokens have the same name, but the log names callers by it: rename one")
        return self

    def _check_sign_in(self) -> None:
        if self.web_sign_in.client_id is None:
            return
        if self.public_url is None and self.web_sign_in.redirect_url is None:
            raise ValueError("web_sign_in.client_id needs public_url, which Taskcluster leads people back to")
        if not self.sign_in_redirect.endswith(SIGN_IN_PATH):
            raise ValueError(f"web_sign_in.redirect_url must end with {SIGN_IN_PATH}, where the page takes people back")

    @property
    def sign_in_redirect(self) -> str:
        """Return the URL that Taskcluster leads people back to who sign in."""
        if self.web_sign_in.redirect_url is not None:
            return str(self.web_sign_in.redirect_url)
        return str(self.public_url).rstrip("/") + SIGN_IN_PATH

    @cached_property
    def has_credentials(self) -> bool:
        """Return True if callers need credentials. Otherwise the service answers on loopback only."""
        return bool(self.tokens) or self.taskcluster_logins or self.web_sign_in.client_id is not None

    @property
    def sqlite(self) -> bool:
        return self.database_url.get_secret_value().startswith("sqlite")


def load(**overrides: Any) -> Settings:
    """Return the settings of this process. Raises SettingsError."""
    return read(Settings, **overrides)
