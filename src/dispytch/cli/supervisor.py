"""The process above the workers: starts them, starts them again, and hands signals on."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from dispytch.cli.errors import CONFIGURATION, FAILURE, USAGE
from dispytch.cli.logs import configure
from dispytch.cli.serving import RunOptions
from dispytch.cli.watching import Files

__all__ = ["Supervisor"]

logger: logging.Logger = logging.getLogger("dispytch")

_LOOK = 0.3
"""Seconds between two looks at files and at what is due."""
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 30.0
_LIVED = 30.0
"""Seconds after which a worker has shown that it can live: its back-off begins anew."""
_GRACE = 5.0
"""Seconds that workers have for ending after they were cancelled."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Worker:
    """A place for a process, and the process that is in it."""

    def __init__(self, options: RunOptions, command: Sequence[str] | None) -> None:
        self.options: RunOptions = options
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._failures = 0
        self.number: int = options.worker
        self.starts: int = 0
        self.due_at: float | None = None
        """When it is to be started again."""
        self.is_there: bool = False
        """Whether a process runs, or is to be started in place of one that died. Read by the probes' thread."""

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        self.due_at = None
        self.is_there = True
        self._started_at = time.monotonic()
        self.starts += 1
        # A process group of its own: Ctrl-C in a terminal is for the supervisor, which hands it on once.
        command = self._command or [sys.executable, "-m", "dispytch.cli.worker", json.dumps(asdict(self.options))]
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, with our own module, or with the command that this process is
            command,
            stdin=subprocess.PIPE,
            env={**os.environ, "DISPYTCH_WORKER": str(self.number)},
            process_group=0,
        )

    def ended(self) -> int | None:
        """The exit code of a process that has ended since this was last asked; negative for a signal."""
        if self._process is None or (code := self._process.poll()) is None:
            return None
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None
        return code

    def signal(self, number: int) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    def delay(self) -> float:
        """Sets when it is started again, and tells the seconds until then."""
        now = time.monotonic()
        self._failures = 1 if now - self._started_at >= _LIVED else self._failures + 1
        seconds = min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** (self._failures - 1))
        self.due_at = now + seconds
        return seconds


class Supervisor:
    """Keeps workers running until a signal comes.

    Args:
        options: What each of them runs.
        watched: The folder whose Python files have them start again; ``None`` not to watch.
        command: The program that each of them is, if not ``dispytch.cli.worker``; it calls `follow_supervisor`.
    """

    def __init__(self, options: RunOptions, watched: Path | None, command: Sequence[str] | None = None) -> None:
        self._options = options
        self._watched = watched
        self._workers = [_Worker(replace(options, worker=number + 1), command) for number in range(options.workers)]
        self._is_probed = options.http is not None or options.heartbeat is not None
        self._signals: deque[int] = deque()
        self._stopping = 0  # how many signals there were
        self._reloading = False
        self._cancelled_at: float | None = None
        self._code = 0

    def run(self) -> int:
        """Returns the exit code."""
        configure(self._options.log_format, self._options.log_level, config=self._options.log_config)
        with self._woken_by_signals() as wakeup, self._probes():
            count = len(self._workers)
            logger.info(
                "Supervisor %d starts %d worker%s of %s%s.",
                os.getpid(),
                count,
                "" if count == 1 else "s",
                self._options.target,
                "" if self._watched is None else f", and watches the Python files of {self._watched}",
            )
            files = None if self._watched is None else Files(self._watched)
            for worker in self._workers:
                worker.start()
            while self._is_needed():
                if select.select([wakeup], [], [], _LOOK)[0]:
                    os.read(wakeup, 4096)
                while self._signals:
                    self._stop(self._signals.popleft())
                self._collect()
                if self._stopping:
                    self._end_stubborn()
                    continue
                if files is not None and (changed := files.changed()) and not self._reloading:
                    self._reload(changed)
                if self._reloading and not any(worker.pid for worker in self._workers):
                    self._reloading = False
                    for worker in self._workers:
                        worker.starts = 0
                        worker.start()
                for worker in self._workers:
                    if worker.due_at is not None and time.monotonic() >= worker.due_at and not self._reloading:
                        worker.start()
        return self._code

    @contextmanager
    def _probes(self) -> Iterator[None]:
        """Tells how the workers are doing, if that was asked for; each tells it to this process by a socket."""
        if not self._is_probed:
            yield
            return
        from dispytch.cli.probes import Fleet, Place, probes, socket_of
        from dispytch.health.threads import BackgroundThread

        def places() -> list[Place]:
            return [Place(worker.number, worker.pid) for worker in self._workers if worker.is_there]

        with TemporaryDirectory(prefix="dispytch-") as folder:
            for worker in self._workers:
                worker.options = replace(worker.options, socket=socket_of(Path(folder), worker.number))
            fleet = Fleet(Path(folder), places)
            with BackgroundThread(*probes(fleet, self._options.http, self._options.heartbeat)):
                yield

    def _is_needed(self) -> bool:
        if any(worker.pid for worker in self._workers):
            return True
        if self._stopping:
            return False
        return self._watched is not None or any(worker.due_at is not None for worker in self._workers)

    def _stop(self, number: int) -> None:
        name = signal.Signals(number).name
        self._stopping += 1
        if self._stopping == 1:
            logger.info("%s: the workers drain; once more cancels.", name)
        else:
            logger.warning("%s again: the workers are cancelled.", name)
            self._code = 128 + number
            self._cancelled_at = self._cancelled_at or time.monotonic()
        for worker in self._workers:
            worker.is_there = worker.pid is not None
        self._signal_all(signal.SIGTERM)

    def _signal_all(self, number: int) -> None:
        for worker in self._workers:
            worker.signal(number)

    def _end_stubborn(self) -> None:
        if self._cancelled_at is not None and time.monotonic() > self._cancelled_at + _GRACE:
            self._signal_all(signal.SIGKILL)

    def _reload(self, changed: list[str]) -> None:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        logger.info("%s%s changed: draining, then starting again.", ", ".join(changed[:3]), more)
        self._reloading = True
        for worker in self._workers:
            worker.due_at = None
        self._signal_all(signal.SIGTERM)

    def _collect(self) -> None:
        for worker in self._workers:
            pid = worker.pid
            if (code := worker.ended()) is not None:
                self._ended(worker, pid, code)

    def _ended(self, worker: _Worker, pid: int | None, code: int) -> None:
        how = f"by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"with exit code {code}"
        if self._stopping or self._reloading:
            if code not in (0, -signal.SIGTERM) and not self._cancelled_at:  # it may not have got so far as to drain
                logger.warning("Worker %d (pid %s) ended %s.", worker.number, pid, how)
                self._code = self._code or (0 if self._reloading else FAILURE)
        elif code == 0:
            logger.info("Worker %d (pid %s) has ended by itself, and is not started again.", worker.number, pid)
        elif self._watched is not None:
            logger.error(
                "Worker %d (pid %s) died %s; the next change of a file starts it again.", worker.number, pid, how
            )
        elif code in (CONFIGURATION, USAGE) and worker.starts == 1:
            logger.error("Worker %d cannot run, and trying again would not help: stopping.", worker.number)
            self._code = USAGE if code == USAGE else FAILURE
            self._stopping = self._stopping or 1
            self._signal_all(signal.SIGTERM)
        else:
            seconds = worker.delay()
            logger.error("Worker %d (pid %s) died %s; starting it again in %g s.", worker.number, pid, how, seconds)
        worker.is_there = worker.due_at is not None

    @contextmanager
    def _woken_by_signals(self) -> Iterator[int]:
        """Notes signals, and gives a file that can be read when one came, or when a worker has ended."""
        wakeup, end = os.pipe()
        os.set_blocking(end, False)
        previous_fd = signal.set_wakeup_fd(end, warn_on_full_buffer=False)
        previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda number, frame: None)
        try:
            yield wakeup
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(previous_fd)
            os.close(wakeup)
            os.close(end)

    def _note(self, number: int, frame: object) -> None:
        self._signals.append(number)
