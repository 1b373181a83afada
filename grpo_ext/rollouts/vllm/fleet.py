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
        reviving: set[str] = set()

        def lane(server: Server, life: int) -> None:
            while (place := work.take(server, life)) is not None:
                settled = False
                try:
                    work.put(place, send(server, work.jobs[place]))
                    settled = True
                except ServerDown as error:
                    self._take_out(server, error, life)
                    work.give_back(place)
                    settled = True
                except Refused as error:
                    work.fail(error)
                finally:
                    if not settled:
                        work.fail(RuntimeError(f"A request to {server.url} broke off; its own message is above."))

        def start(server: Server) -> None:
            share = math.ceil(len(work.jobs) / len(self.servers))
            for _ in range(min(share, MOST_AT_ONCE)):
                threading.Thread(target=lane, args=(server, server.life), daemon=True).start()

        def comeback(server: Server) -> None:
            try:
                revive(server)
            except (ServerDown, Refused) as error:
                self._take_out(server, error, server.life)
            else:
                logger.info("vLLM server %s is back.", server.url)
                server.take_back()
                start(server)
            finally:
                with work.changed:
                    reviving.discard(server.url)
                    work.changed.notify_all()

        for server in self.servers:
            if server.alive:
                start(server)
        # Seconds without a server since the last result; one that comes back and dies again has changed nothing
        before, down, done = time.monotonic(), 0.0, 0
        with work.changed:
            while work.open:
                now = time.monotonic()
                if len(work.results) > done:
                    down, done = 0.0, len(work.results)
                elif not any(server.alive for server in self.servers):
                    down += now - before
                before = now
                if down > self.patience:
                    work.error = self._nobody()
                    break
                for server in self.servers:
                    if not server.alive and now >= server.next_try and server.url not in reviving:
                        reviving.add(server.url)
                        threading.Thread(target=comeback, args=(server,), daemon=True).start()
                work.changed.wait(timeout=self._pause(now, now - down))
            # Lanes that wait for more work end here
            work.changed.notify_all()
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
                self._take_out(server, error, life)
            except Refused as error:
                refusals.append(error)
                if not all_of_them:
                    self._take_out(server, error, life)
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
                raise self._nobody()
            time.sleep(self._pause(time.monotonic(), started))

    def _pause(self, now: float, last_up: float) -> float:
        """Seconds until there may be something to do."""
        tries = [server.next_try - now for server in self.servers if not server.alive]
        return min(max(min([*tries, last_up + self.patience - now]), 0.01), 1.0)

    def _take_out(self, server: Server, error: Exception, life: int) -> None:
        if server.take_out(str(error), life):
            logger.warning("vLLM server taken out, its prompts go to the others: %s", error)

    def _nobody(self) -> ConnectionError:
        down = [server for server in self.servers if not server.alive]
        reasons = "; ".join(server.reason for server in down)
        return ConnectionError(
            f"{len(down)} of {len(self.servers)} vLLM servers did not come up within {self.patience:.0f} s "
            f"(`vllm_server_timeout`): {reasons}."
        )
