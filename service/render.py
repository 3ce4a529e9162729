"""Renders templates in child processes with limits on time, memory and output; one that exceeds them is killed."""

import asyncio
import base64
import json
import os
import sys
from typing import Any

import structlog

from service.settings import RenderLimits

log = structlog.get_logger()


class TemplateError(Exception):
    """The template cannot be rendered, however often it is tried; the message is for whoever wrote it."""


class Renderer:
    """Up to `processes` children, started when first needed and kept: starting one takes longer than most renders."""

    def __init__(self, limits: RenderLimits, processes: int = 2) -> None:
        self._limits = limits
        self._free: list[asyncio.subprocess.Process] = []
        self._slots = asyncio.Semaphore(processes)

    async def start(self) -> None:
        """Start one child, so that the first push need not wait for it."""
        self._free.append(await self._spawn())

    async def taskcluster_yml(self, text: str, context: dict[str, Any], key: bytes) -> list[Any]:
        """The tasks that a `.taskcluster.yml` of version 1 describes. Raises TemplateError."""
        tasks: list[Any] = await self._ask({"yaml": text, "context": context}, key)
        return tasks

    async def template(self, template: Any, context: dict[str, Any], key: bytes) -> Any:
        """A rendered JSON-e template. Raises TemplateError."""
        return await self._ask({"template": template, "context": context}, key)

    async def close(self) -> None:
        while self._free:
            await _kill(self._free.pop())

    async def _ask(self, request: dict[str, Any], key: bytes) -> Any:
        body = json.dumps({**request, "key": base64.b64encode(key).decode()}).encode()
        async with self._slots:
            answer = None
            while answer is None:
                kept = bool(self._free)
                answer = await self._try(self._free.pop() if kept else await self._spawn(), body)
                if answer is None and not kept:  # one that was kept may have died of something else meanwhile
                    raise TemplateError(
                        f"cannot be rendered within {self._limits.memory_mib} MiB of memory "
                        f"and {self._limits.seconds:g} s"
                    )
        if "error" in answer:
            raise TemplateError(answer["error"])
        return answer["result"]

    async def _try(self, child: asyncio.subprocess.Process, body: bytes) -> dict[str, Any] | None:
        """The child's answer; None: it has died. It is kept for the next request unless it used up what it has."""
        try:
            answer = await asyncio.wait_for(self._exchange(child, body), self._limits.seconds)
        except TimeoutError:
            await _kill(child)
            raise TemplateError(f"takes longer than {self._limits.seconds:g} s to render") from None
        except (asyncio.IncompleteReadError, ConnectionError):
            await _kill(child)
            return None
        except BaseException:
            await _kill(child)
            raise
        if answer.get("spent"):
            await _kill(child)
        else:
            self._free.append(child)
        return answer

    async def _spawn(self) -> asyncio.subprocess.Process:
        limits = self._limits
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-m", "service.render_child"),
            *(str(limits.memory_mib), str(limits.output_mib * 1024 * 1024), str(limits.seconds)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={"PATH": os.defpath},  # none of our settings: they hold secrets
            start_new_session=True,  # Ctrl-C is for us; the child ends when its input does
        )

    async def _exchange(self, child: asyncio.subprocess.Process, body: bytes) -> dict[str, Any]:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(len(body).to_bytes(4, "big") + body)
        await child.stdin.drain()
        size = int.from_bytes(await child.stdout.readexactly(4), "big")
        if size > self._limits.output_mib * 1024 * 1024:
            raise ConnectionError("the child answers more than it may")
        answer: dict[str, Any] = json.loads(await child.stdout.readexactly(size))
        return answer


async def _kill(child: asyncio.subprocess.Process) -> None:
    if child.returncode is None:
        try:
            child.kill()
        except ProcessLookupError:
            log.debug("child-gone", pid=child.pid)
    await child.wait()
