"""Simulation of requests to replicas of a core model: queues, batches and load balancing."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import simpy

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

Balancing = Literal["round-robin", "random", "least-outstanding"]
BALANCING: tuple[Balancing, ...] = get_args(Balancing)
Service = Callable[[int, random.Random], float]
"""Draws the seconds of a batch, given its size."""

_TINY = 1e-9  # seconds; the error of the simulation's clock is smaller


@dataclass(frozen=True, slots=True)
class Replica:
    """The settings of each replica.

    Attributes:
        service: Seconds of a batch.
        max_batch: Maximum batch size of the core model.
        queue_delay: Seconds that the oldest request waits for a batch to fill while an instance is idle.
        instances: Number of batches that run at the same time.
        max_queue: Requests that may wait; further ones are refused. None for no limit.
        constant: Seconds of a request outside the core model and its queue.
    """

    service: Service
    max_batch: int = 1
    queue_delay: float = 0.0
    instances: int = 1
    max_queue: int | None = None
    constant: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a simulation.

    Attributes:
        latencies: Seconds of the answered requests, in ascending order.
        refused: Requests that found a full queue.
        utilization: Share of the time in which an instance computed, over all replicas.
        batch: Mean number of pictures in a batch.
    """

    latencies: list[float]
    refused: int
    utilization: float
    batch: float

    def percentile(self, share: float) -> float:
        """Return a percentile of the latencies in seconds; infinite if nothing was answered."""
        return float(np.quantile(self.latencies, share, method="inverted_cdf")) if self.latencies else math.inf


def poisson(rate: float, *, number: int, source: random.Random) -> Iterator[float]:
    """Yield the times of `number` independent arrivals, `rate` per second."""
    now = 0.0
    for _ in range(number):
        now += source.expovariate(rate)
        yield now


class _Running:
    """One replica in a simulation."""

    def __init__(self, env: simpy.Environment, replica: Replica, source: random.Random) -> None:
        self._env = env
        self._replica = replica
        self._source = source
        self._waiting: deque[float] = deque()  # times of arrival
        self._arrived = env.event()
        self.outstanding = self.batches = self.refused = 0
        self.busy = 0.0
        self.latencies: list[float] = []
        for _ in range(replica.instances):
            env.process(self._instance())

    def take(self) -> None:
        """Queue a request that arrives now, or refuse it."""
        limit = self._replica.max_queue
        if limit is not None and len(self._waiting) >= limit:
            self.refused += 1
            return
        self.outstanding += 1
        self._waiting.append(self._env.now)
        # Wake the idle instances, and create the event of the next arrival.
        self._arrived.succeed()
        self._arrived = self._env.event()

    def _instance(self) -> Generator[simpy.Event, object, None]:
        replica = self._replica
        while True:
            if not self._waiting:
                yield self._arrived
                continue
            left = self._waiting[0] + replica.queue_delay - self._env.now
            if len(self._waiting) < replica.max_batch and left > _TINY:
                yield self._arrived | self._env.timeout(left)
                continue
            batch = [self._waiting.popleft() for _ in range(min(replica.max_batch, len(self._waiting)))]
            seconds = replica.service(len(batch), self._source)
            yield self._env.timeout(seconds)
            self.busy += seconds
            self.batches += 1
            self.outstanding -= len(batch)
            self.latencies += [self._env.now - moment + replica.constant for moment in batch]


def simulate(
    arrivals: Iterable[float], replica: Replica, *, replicas: int, balancing: Balancing, source: random.Random
) -> Outcome:
    """Simulate requests to identical replicas until all are answered.

    Args:
        arrivals: Times in ascending order, seconds.
        replica: The settings of each replica.
        replicas: Number of replicas.
        balancing: How requests are spread over them.
        source: Draws service times and, for `random`, the replica.
    """
    env = simpy.Environment()
    running = [_Running(env, replica, source) for _ in range(replicas)]
    moments = list(arrivals)

    def arrive() -> Generator[simpy.Event, object, None]:
        for index, moment in enumerate(moments):
            yield env.timeout(max(0.0, moment - env.now))
            if balancing == "round-robin":
                chosen = running[index % replicas]
            elif balancing == "random":
                chosen = source.choice(running)
            else:
                chosen = min(running, key=lambda one: one.outstanding)
            chosen.take()

    env.process(arrive())
    env.run()
    latencies = sorted(latency for one in running for latency in one.latencies)
    seconds = env.now - moments[0] if moments else 0.0
    batches = sum(one.batches for one in running)
    return Outcome(
        latencies=latencies,
        refused=sum(one.refused for one in running),
        utilization=sum(one.busy for one in running) / (seconds * replicas * replica.instances) if seconds else 0.0,
        batch=len(latencies) / batches if batches else 0.0,
    )
