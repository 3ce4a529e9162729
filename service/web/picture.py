"""The timeline of a push, from the commit to its last task: what is drawn where. The template only writes it down."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from service.api.push_view import PushTask
from service.api.schemas.pushes import PushRead
from service.web.rendering import format_duration
from service.web.words import tone_of

MOST_ROWS = 200
"""Tasks that have a row of their own; more are grouped by kind."""

MOST_LINES = 8
"""Dependencies of a task that are drawn."""

ROW, TOP, LEFT, WIDTH, RIGHT = 20, 26, 240, 1_000, 8
"""Sizes in units of the picture: the height of a row, the head with times, the names, the whole, and the margin."""

MAX_NAME = 34

FAR = timedelta(hours=1)
"""A commit that was noticed later than this is not drawn to scale: the rest would be too small to see."""

MOST_TICKS = 5

_STEPS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1_200, 1_800, 3_600, 7_200, 14_400, 21_600, 43_200, 86_400)
"""Seconds between two ticks."""


@dataclass
class Bar:
    """A piece of time in a row."""

    x: float
    width: float
    tone: str  # the class of its colour; `queued` while a task waits for a worker
    text: str


@dataclass
class PictureRow:
    """A row of the picture: a step, a task, or the tasks of one kind."""

    name: str
    y: float
    bars: list[Bar]
    text: str  # what a person who does not see it is told
    task_id: str | None = None
    lines: list[tuple[float, float, float, float]] = field(default_factory=list)  # from what it depends on

    @property
    def short_name(self) -> str:
        return self.name if len(self.name) <= MAX_NAME else f"{self.name[: MAX_NAME - 1]}…"


@dataclass
class Picture:
    """A timeline."""

    rows: list[PictureRow]
    ticks: list[tuple[float, str]]
    begin: datetime
    end: datetime
    grouped: bool

    @property
    def height(self) -> int:
        return TOP + ROW * len(self.rows) + 4


@dataclass
class _Span:
    begin: datetime
    end: datetime
    tone: str
    text: str


@dataclass
class _Line:
    """A row before it has a place."""

    name: str
    spans: list[_Span]
    text: str
    task_id: str | None = None
    dependencies: Sequence[str] = ()


def draw(push: PushRead, tasks: Sequence[PushTask], at: datetime) -> Picture:
    """Return the picture of a push as it is at this time."""
    lines = _steps_of(push, at)
    grouped = len(tasks) > MOST_ROWS
    lines += _by_kind(tasks, at) if grouped else sorted((_line(task, at) for task in tasks), key=_order)
    moments = [moment for line in lines for span in line.spans for moment in (span.begin, span.end)]
    begin, end = min(moments, default=at), max(moments, default=at)
    end = max(end, begin + timedelta(seconds=1))
    scale = (WIDTH - LEFT - RIGHT) / (end - begin).total_seconds()

    def place(moment: datetime) -> float:
        return round(LEFT + (moment - begin).total_seconds() * scale, 1)

    rows = []
    for number, line in enumerate(lines):
        bars = [
            Bar(place(span.begin), max(2.0, round(place(span.end) - place(span.begin), 1)), span.tone, span.text)
            for span in line.spans
        ]
        rows.append(PictureRow(line.name, TOP + ROW * number, bars, line.text, line.task_id))
    _connect(rows, lines)
    return Picture(rows, _ticks(begin, end, place), begin, end, grouped)


def _steps_of(push: PushRead, at: datetime) -> list[_Line]:
    late = push.noticed_at - push.date > FAR
    words = f"noticed after {format_duration(push.date, push.noticed_at)}"
    noticed = [] if late else [_Span(min(push.date, push.noticed_at), push.noticed_at, "good", words)]
    lines = [_Line("commit to notice", noticed, f"{words}, not drawn" if late else words)]
    steps = [(f"resultset ({each.environment})", each.state, each.at) for each in push.resultsets]
    if push.graph is not None:
        steps.append(("task graph", push.graph.state, push.graph.at))
    for name, state, ended_at in steps:
        end = max(ended_at or at, push.noticed_at)
        text = f"{state}, {format_duration(push.noticed_at, end)}"
        lines.append(_Line(name, [_Span(push.noticed_at, end, tone_of(state), text)], text))
    return lines


def _line(task: PushTask, at: datetime) -> _Line:
    spans: list[_Span] = []
    for run in () if task.state is None else task.state.runs:
        begin = run.scheduled or run.started
        if begin is None:
            continue
        name = f"run {run.run_id}"
        if run.started is not None:
            spans.append(_Span(begin, max(begin, run.started), "queued", f"{name} waited"))
            end = run.ended or at
            text = f"{name} {run.state}, {format_duration(run.started, end)}"
            spans.append(_Span(run.started, max(end, run.started), tone_of(run.state), text))
        else:
            end = run.ended or at
            tone = "queued" if run.ended is None else tone_of(run.state)
            spans.append(_Span(begin, max(begin, end), tone, f"{name} {run.state}, {format_duration(begin, end)}"))
    state = "planned" if task.task_id is None else "not reported" if task.state is None else task.state.state
    text = f"{state}; {'; '.join(span.text for span in spans if span.tone != 'queued')}".removesuffix("; ")
    return _Line(task.name, [span for span in spans if _is_seen(span)], text, task.task_id, task.dependencies)


def _is_seen(span: _Span) -> bool:
    return span.tone != "queued" or span.end > span.begin


def _order(line: _Line) -> tuple[bool, float]:
    """Return where a line belongs: by its begin, and without one at the end."""
    begins = [span.begin.timestamp() for span in line.spans]
    return not begins, min(begins, default=0.0)


def _by_kind(tasks: Iterable[PushTask], at: datetime) -> list[_Line]:
    """Return a line for each kind: from its first run to its last, in the colour of the worst."""
    kinds: dict[str, list[PushTask]] = defaultdict(list)
    for task in tasks:
        kinds[task.kind or "other"].append(task)
    lines = []
    for kind, of_kind in kinds.items():
        spans = [span for task in of_kind for span in _line(task, at).spans if span.tone != "queued"]
        states = Counter(task.state.state if task.state is not None else "not reported" for task in of_kind)
        text = ", ".join(f"{number} {state}" for state, number in states.most_common(10))
        tones = {span.tone for span in spans}
        worst = next((tone for tone in ("bad", "busy", "wait", "mute", "good") if tone in tones), "mute")
        whole = [_Span(min(s.begin for s in spans), max(s.end for s in spans), worst, text)] if spans else []
        lines.append(_Line(f"{kind} ({len(of_kind)})", whole, text))
    return sorted(lines, key=_order)[:MOST_ROWS]


def _connect(rows: Sequence[PictureRow], lines: Sequence[_Line]) -> None:
    """Draw to each task a line from the end of each task that it depends on."""
    by_id = {row.task_id: row for row in rows if row.task_id is not None and row.bars}
    for row, line in zip(rows, lines, strict=True):
        for dependency in line.dependencies[:MOST_LINES] if row.bars else ():
            if (other := by_id.get(dependency)) is not None and other is not row:
                last, first = other.bars[-1], row.bars[0]
                row.lines.append((round(last.x + last.width, 1), other.y + ROW / 2, first.x, row.y + ROW / 2))


def _ticks(begin: datetime, end: datetime, place: Callable[[datetime], float]) -> list[tuple[float, str]]:
    seconds = (end - begin).total_seconds()
    step = next((step for step in _STEPS if seconds / step <= MOST_TICKS), None)
    step = step if step is not None else int(seconds / MOST_TICKS) + 1
    moments = [begin + timedelta(seconds=number * step) for number in range(int(seconds / step) + 1)]
    return [(place(moment), f"+{format_duration(begin, moment)}") for moment in moments]
