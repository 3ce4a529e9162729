"""Templates of strangers, rendered in child processes with limits on time, memory and output."""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from service.engine.fair import FairSlots
from service.settings import RenderLimits
from service.slugids import replace_ids
from service.store.models import NOBODY

log = structlog.get_logger()


class TemplateError(Exception):
    """The template cannot be rendered, however often it is tried; the message is for its author."""


class SpentError(TemplateError):
    """The child was ended at one of its limits, which can be because this machine has too much to do."""


@dataclass(frozen=True)
class Rendering:
    """The result of a template with task ids in it, and the ids that `as_slugid` and `ownTaskId` returned."""

    result: list[Any]
    ids: frozenset[str]


@dataclass(frozen=True)
class Rendered:
    """The answer of a child: JSON that is not parsed yet, because parsed it can take a hundred times the memory."""

    answer: bytes

    @property
    def small(self) -> bool:
        """Return True if the answer is parsed in no time; a larger one must not be parsed on the event loop."""
        return len(self.answer) <= 64 * 1024

    def parse(self, task_id: Callable[[str], str]) -> Rendering:
        """Parse the answer; `task_id` derives the ids that labels stand for. Raises TemplateError."""
        head, *lines = self.answer.split(b"\n")
        ids = {placeholder: task_id(label) for placeholder, label in json.loads(head)["labels"].items()}
        try:
            # line by line, so that other threads get their turns
            result = [replace_ids(json.loads(line), ids) for line in lines]
        except RecursionError:
            raise TemplateError("nested too deeply") from None
        return Rendering(result, frozenset(ids.values()))


class Renderer:
    """Up to `processes` children, shared fairly; each is started when it is first needed, and kept."""

    def __init__(self, limits: RenderLimits, processes: int = 2) -> None:
        self._limits = limits
        self._free: list[asyncio.subprocess.Process] = []
        self._slots = FairSlots(processes)

    async def start(self) -> None:
        """Start one child, so that the first push does not wait for it."""
        self._free.append(await self._spawn())

    async def taskcluster_yml(self, text: str, context: dict[str, Any], share: str = NOBODY) -> Rendered:
        """Render the tasks that a `.taskcluster.yml` of version 1 describes. Raises TemplateError."""
        return await self._ask({"yaml": text, "context": context}, share)

    async def template(self, template: Any, context: dict[str, Any], share: str = NOBODY) -> Rendered:
        """Render a JSON-e template: a `result` of one value. Raises TemplateError."""
        return await self._ask({"template": template, "context": context}, share)

    async def actions(self, document: bytes, share: str = NOBODY) -> Rendered:
        """List the actions of an `actions.json`: a `result` of one list (`render_actions`). Raises TemplateError."""
        return await self._ask({"actions": True}, share, document)

    async def action(self, document: bytes, wanted: dict[str, Any], share: str = NOBODY) -> Rendered:
        """Render one action of an `actions.json`: a `result` of one value (`render_actions`). Raises TemplateError."""
        return await self._ask({"actions": True, "action": wanted}, share, document)

    async def close(self) -> None:
        """End the children."""
        while self._free:
            await _kill(self._free.pop())

    async def _ask(self, request: dict[str, Any], share: str, document: bytes = b"") -> Rendered:
        """Return a child's answer to a request. `document` is sent as it is, for to encode a large one takes long."""
        body = json.dumps(request).encode() + b"\n" + document
        async with self._slots.use(share):
            answer = None
            while answer is None:
                kept = bool(self._free)
                answer = await self._try(self._free.pop() if kept else await self._spawn(), body)
                if answer is None and not kept:  # a kept child may have died of something else meanwhile
                    raise SpentError(
                        f"cannot be rendered within {self._limits.memory_mib} MiB of memory "
                        f"and {self._limits.seconds:g} s"
                    )
        if answer.startswith(_ERROR):
            raise TemplateError(json.loads(answer)["error"])
        return Rendered(answer)

    async def _try(self, child: asyncio.subprocess.Process, body: bytes) -> bytes | None:
        """Return the child's answer, None if it died. It is kept for the next request unless it used up its memory."""
        try:
            answer = await asyncio.wait_for(self._exchange(child, body), self._limits.seconds)
        except TimeoutError:
            await self._replace(child)
            raise SpentError(f"takes longer than {self._limits.seconds:g} s to render") from None
        except (asyncio.IncompleteReadError, ConnectionError):
            await _kill(child)
            return None
        except BaseException:
            await _kill(child)
            raise
        if answer.startswith(_ERROR) and answer.endswith(_SPENT):  # a rendered result may end in the same way
            await self._replace(child)
        else:
            self._free.append(child)
        return answer

    async def _replace(self, child: asyncio.subprocess.Process) -> None:
        """End a child and start the next at once, so that its share does not take a child that others kept warm."""
        await _kill(child)
        self._free.append(await self._spawn())

    async def _spawn(self) -> asyncio.subprocess.Process:
        limits = self._limits
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-m", "service.engine.render_child"),
            *(str(limits.memory_mib), str(limits.seconds)),
            *(str(limits.output_mib * 1024 * 1024), str(limits.tasks), str(limits.nodes)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={"PATH": os.defpath},  # none of our settings: they hold secrets
            start_new_session=True,  # Ctrl-C is for us; the child ends when its input does
        )

    async def _exchange(self, child: asyncio.subprocess.Process, body: bytes) -> bytes:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(len(body).to_bytes(4, "big") + body)
        await child.stdin.drain()
        size = int.from_bytes(await child.stdout.readexactly(4), "big")
        if size > self._limits.output_mib * 1024 * 1024:
            raise ConnectionError("the child answers more than it may")
        return await child.stdout.readexactly(size)


_ERROR, _SPENT = b'{"error": ', b'"spent": true}'
"""The beginning of an answer that is an error, and its end if the child has used up its memory."""


async def _kill(child: asyncio.subprocess.Process) -> None:
    if child.returncode is None:
        try:
            child.kill()
        except ProcessLookupError:
            log.debug("child-gone", pid=child.pid)
    await child.wait()
