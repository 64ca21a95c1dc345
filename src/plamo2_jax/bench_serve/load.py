"""The load: when requests are sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np

from plamo2_jax.bench_serve.client import Client, Record
from plamo2_jax.bench_serve.config import BenchConfig

Prompt = str | list[int]


def arrivals(config: BenchConfig) -> list[float]:
    """Return the seconds at which the requests of an open loop arrive: a Poisson process, cut at `duration`."""
    rng = np.random.default_rng([config.seed, 3])
    times = np.cumsum(rng.exponential(1 / config.rate, config.requests))
    return times[times <= config.duration].tolist()


async def run_load(
    client: Client,
    config: BenchConfig,
    prompts: Sequence[Prompt],
    output_tokens: Sequence[int],
    on_end: Callable[[Record], None],
) -> list[Record]:
    """Send all requests and wait for their ends.

    Args:
        client: sends them; its clock starts anew.
        config: the load.
        prompts: one for each request.
        output_tokens: `max_tokens` of each request.
        on_end: called with the record of each request that has ended.

    Returns:
        The records of the requests that were to be sent, in the order of their arrival.
    """
    run = _open_loop if config.rate is not None else _closed_loop
    return await run(client, config, prompts, output_tokens, on_end)


async def _open_loop(
    client: Client,
    config: BenchConfig,
    prompts: Sequence[Prompt],
    output_tokens: Sequence[int],
    on_end: Callable[[Record], None],
) -> list[Record]:
    records: list[Record] = []
    running: set[asyncio.Task[None]] = set()

    async def send(record: Record) -> None:
        await client.send(record, prompts[record.index])
        on_end(record)

    times = arrivals(config)
    client.restart()
    async with asyncio.TaskGroup() as group:
        for index, time in enumerate(times):
            await asyncio.sleep(max(0.0, time - client.now()))
            record = Record(index, output_tokens[index], scheduled=time, sent=time, ended=time)
            records.append(record)
            if len(running) >= config.max_in_flight:
                record.error = "not sent"
                record.detail = f"{config.max_in_flight} requests were in flight"
                on_end(record)
                continue
            task = group.create_task(send(record))
            running.add(task)
            task.add_done_callback(running.discard)
    return records


async def _closed_loop(
    client: Client,
    config: BenchConfig,
    prompts: Sequence[Prompt],
    output_tokens: Sequence[int],
    on_end: Callable[[Record], None],
) -> list[Record]:
    records: list[Record] = []
    indices = iter(range(config.requests))

    async def work() -> None:
        for index in indices:
            if client.now() > config.duration:
                return
            record = Record(index, output_tokens[index], scheduled=client.now())
            records.append(record)
            await client.send(record, prompts[index])
            on_end(record)

    client.restart()
    async with asyncio.TaskGroup() as group:
        for _ in range(min(config.concurrency, config.requests)):
            group.create_task(work())
    return records
