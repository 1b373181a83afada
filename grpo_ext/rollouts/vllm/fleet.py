"""Work spread over servers of which some may die: nothing is lost, nothing is done twice."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from grpo_ext.rollouts.vllm.server import Refused, Server, ServerDown

logger = logging.getLogger("grpo_ext")

Job = TypeVar("Job")
Result = TypeVar("Result")

# Requests under way at one server, which computes them together.
MOST_AT_ONCE = 256


class _Work(Generic[Job, Result]):
    """Jobs that are waiting, and the results of the others."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = list(jobs)
        self.changed = threading.Condition()
        self.waiting = deque(range(len(jobs)))
        self.results: dict[int, Result] = {}
        self.error: Exception | None = None

    @property
    def open(self) -> bool:
        return self.error is None and len(self.results) < len(self.jobs)

    def take(self, server: Server, life: int) -> int | None:
        """The next job, once there is one; None when all are done or the server is out."""
        with self.changed:
            while self.open and server.alive and server.life == life:
                if self.waiting:
                    return self.waiting.popleft()
                # A job may come back from a server that dies
                self.changed.wait()
            return None

    def put(self, place: int, result: Result) -> None:
        with self.changed:
            self.results[place] = result
            self.changed.notify_all()

    def give_back(self, place: int) -> None:
        with self.changed:
            self.waiting.appendleft(place)
            self.changed.notify_all()

    def fail(self, error: Exception) -> None:
        with self.changed:
            self.error = self.error or error
            self.changed.notify_all()


class Fleet:
    """Servers that share the work.

    Args:
        servers: at least one.
        patience: seconds without any server up after which a run stops.
    """

    def __init__(self, servers: Sequence[Server], patience: float = 240.0) -> None:
        self.servers, self.patience = list(servers), patience

    def run(
        self, jobs: Sequence[Job], send: Callable[[Server, Job], Result], revive: Callable[[Server], None]
    ) -> list[Result]:
        """Have each job done once.

        Args:
            jobs: what is to be done.
            send: does a job at a server; `ServerDown` gives the job to another one.
            revive: brings a server that was out up to date; `ServerDown` or `Refused` leaves it out.

        Returns:
            Results in the order of the jobs.

        Raises:
            Refused: a server refused a job.
            ConnectionError: no server was up for `patience` seconds.
        """
        work: _Work[Job, Result] = _Work(jobs)
        shift = _Shift(self, work, send, revive)
        for server in self.servers:
            if server.alive:
                shift.start(server)
        shift.wait()
        if work.error is not None:
            raise work.error
        return [work.results[place] for place in range(len(work.jobs))]

    def each(self, action: Callable[[Server], None], all_of_them: bool = False) -> None:
        """Do something at every server that is up or due for another try.

        Args:
            action: `ServerDown` takes the server out.
            all_of_them: wait for each server, not for one; and let `Refused` stop the run.

        Raises:
            Refused: with `all_of_them`, a server refused.
            ConnectionError: after `patience` seconds no server is up, or with `all_of_them` one is missing.
        """
        started = time.monotonic()
        done: set[str] = set()
        refusals: list[Refused] = []

        def one(server: Server) -> None:
            life, was_alive = server.life, server.alive
            try:
                action(server)
            except ServerDown as error:
                self.take_out(server, error, life)
            except Refused as error:
                refusals.append(error)
                if not all_of_them:
                    self.take_out(server, error, life)
            else:
                done.add(server.url)
                if not was_alive:
                    server.take_back()

        while True:
            now = time.monotonic()
            due = [s for s in self.servers if s.url not in done and (s.alive or now >= s.next_try)]
            threads = [threading.Thread(target=one, args=(server,), daemon=True) for server in due]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if refusals and (all_of_them or not any(server.alive for server in self.servers)):
                raise refusals[0]
            if len(done) == len(self.servers) or (done and not all_of_them):
                return
            if time.monotonic() - started > self.patience:
                raise self.nobody()
            time.sleep(self.pause(time.monotonic(), started))

    def pause(self, now: float, last_up: float) -> float:
        """Seconds until there may be something to do.

        Args:
            now: seconds, monotonic.
            last_up: when a server was last up, counted back from `now`.
        """
        tries = [server.next_try - now for server in self.servers if not server.alive]
        return min(max(min([*tries, last_up + self.patience - now]), 0.01), 1.0)

    def take_out(self, server: Server, error: Exception, life: int) -> None:
        """Leave a server out until it answers again, unless it has come back since.

        Args:
            server: the one that failed.
            error: how.
            life: `server.life` when the request was sent.
        """
        if server.take_out(str(error), life):
            logger.warning("vLLM server taken out, its prompts go to the others: %s", error)

    def nobody(self) -> ConnectionError:
        """The error of a run without servers."""
        down = [server for server in self.servers if not server.alive]
        reasons = "; ".join(server.reason for server in down)
        return ConnectionError(
            f"{len(down)} of {len(self.servers)} vLLM servers did not come up within {self.patience:.0f} s "
            f"(`vllm_server_timeout`): {reasons}."
        )


class _Shift(Generic[Job, Result]):
    """The threads that do the work of one run: lanes with requests, and comebacks of servers that were out."""

    def __init__(
        self,
        fleet: Fleet,
        work: _Work[Job, Result],
        send: Callable[[Server, Job], Result],
        revive: Callable[[Server], None],
    ) -> None:
        self.fleet, self.work, self.send, self.revive = fleet, work, send, revive
        self.reviving: set[str] = set()

    def start(self, server: Server) -> None:
        """Open the lanes of a server that is up."""
        share = math.ceil(len(self.work.jobs) / len(self.fleet.servers))
        for _ in range(min(share, MOST_AT_ONCE)):
            threading.Thread(target=self._lane, args=(server, server.life), daemon=True).start()

    def _lane(self, server: Server, life: int) -> None:
        work = self.work
        while (place := work.take(server, life)) is not None:
            settled = False
            try:
                work.put(place, self.send(server, work.jobs[place]))
                settled = True
            except ServerDown as error:
                self.fleet.take_out(server, error, life)
                work.give_back(place)
                settled = True
            except Refused as error:
                work.fail(error)
            finally:
                if not settled:
                    work.fail(RuntimeError(f"A request to {server.url} broke off; its own message is above."))

    def _comeback(self, server: Server) -> None:
        try:
            self.revive(server)
        except (ServerDown, Refused) as error:
            self.fleet.take_out(server, error, server.life)
        else:
            logger.info("vLLM server %s is back.", server.url)
            server.take_back()
            self.start(server)
        finally:
            with self.work.changed:
                self.reviving.discard(server.url)
                self.work.changed.notify_all()

    def wait(self) -> None:
        """Return when all work is done, or the run has failed."""
        work, fleet = self.work, self.fleet
        # Seconds without a server since the last result; one that comes back and dies again has changed nothing
        before, down, done = time.monotonic(), 0.0, 0
        with work.changed:
            while work.open:
                now = time.monotonic()
                if len(work.results) > done:
                    down, done = 0.0, len(work.results)
                elif not any(server.alive for server in fleet.servers):
                    down += now - before
                before = now
                if down > fleet.patience:
                    work.error = fleet.nobody()
                    break
                for server in fleet.servers:
                    if not server.alive and now >= server.next_try and server.url not in self.reviving:
                        self.reviving.add(server.url)
                        threading.Thread(target=self._comeback, args=(server,), daemon=True).start()
                work.changed.wait(timeout=fleet.pause(now, now - down))
            # Lanes that wait for more work end here
            work.changed.notify_all()
