"""Groups of chains side by side, each in a process of its own.

A sampler whose steps are many small operations keeps one core busy, however many there are. Its chains do not see each
other, so groups of them can be drawn by forked processes: what a fork inherits (model, client, state) need not be
pickled. A group has a random generator of its own, so that the draws are the same, bit for bit, where no process can be
forked and the groups take turns instead.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import warnings
from collections.abc import Callable, Generator, Iterator
from multiprocessing.connection import Connection

import torch
from torch import Tensor

from pplleak.errors import BadInput

Draw = dict[str, Tensor]  # name -> (chains, …)
Chain = Callable[[int], Iterator[Draw]]  # group -> its draws, without an end


def side_by_side(chain: Chain, groups: int, seed: int, device: torch.device) -> Generator[Draw]:
    """The draws of all groups, one at a time, the groups' chains one after the other: name -> (all chains, …).

    Args:
        chain: group k -> its draws, by torch's generator.
        groups: the first one is drawn here, the others in processes of their own, which end with the iterator.
        seed: group k begins at a seed that is made of this one and k.
        device: where the draws are; none is forked where the machine has an accelerator, since its runtime, and
            autograd's threads that wait for it, do not survive that.
    """
    here = [_seeded(chain, k, seed) for k in range(groups)]
    if groups == 1 or not _can_fork(device):
        yield from map(_joined, zip(*here, strict=True))
        return
    with contextlib.ExitStack() as stack:
        threads = torch.get_num_threads()
        stack.callback(torch.set_num_threads, threads)
        torch.set_num_threads(max(1, threads // groups))
        others = [stack.enter_context(_forked(draws)) for draws in here[1:]]
        for draw in here[0]:
            yield _joined([draw, *(_received(other) for other in others)])


def shares(count: int, groups: int) -> list[slice]:
    """`count` chains in groups of about the same size, none of them empty."""
    sizes = [len(part) for part in torch.arange(count).tensor_split(min(groups, count))]
    return [slice(sum(sizes[:k]), sum(sizes[: k + 1])) for k in range(len(sizes))]


def _seeded(chain: Chain, k: int, seed: int) -> Iterator[Draw]:
    """The draws of group k, whose random numbers are those of its own seed whatever is drawn between two of them."""
    draws = chain(k)
    state = torch.Generator().manual_seed(seed * 1009 + k).get_state()
    while True:
        outer = torch.get_rng_state()
        torch.set_rng_state(state)
        try:
            draw = next(draws)
            state = torch.get_rng_state()
        finally:
            torch.set_rng_state(outer)
        yield draw


def _joined(draws: list[Draw] | tuple[Draw, ...]) -> Draw:
    return {name: torch.cat([draw[name] for draw in draws]) for name in draws[0]}


def _can_fork(device: torch.device) -> bool:
    daemon = multiprocessing.current_process().daemon  # which may have no children
    alone = device.type == "cpu" and not torch.accelerator.is_available()
    return alone and not daemon and "fork" in multiprocessing.get_all_start_methods()


@contextlib.contextmanager
def _forked(draws: Iterator[Draw]) -> Iterator[Connection]:
    """The end of a pipe through which a new process sends these draws, a few ahead; it ends with the block."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(draws, send, receive), daemon=True)
    with warnings.catch_warnings():  # that a process with threads is forked: torch's own data loaders do the same
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    send.close()
    try:
        yield receive
    finally:
        process.kill()
        process.join()
        receive.close()


def _send(draws: Iterator[Draw], send: Connection, receive: Connection) -> None:
    receive.close()  # so that the pipe breaks, and this process ends, when its parent is killed
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which keeps what was drawn
    try:
        for draw in draws:
            send.send({name: value.numpy() for name, value in draw.items()})
    except BrokenPipeError:
        return
    except Exception as error:
        send.send(error)


def _received(other: Connection) -> Draw:
    try:
        got = other.recv()
    except EOFError as error:
        raise BadInput("a process that drew a group of the chains was killed, perhaps for want of memory: draw them in "
                       "this one, by setting processes to 1") from error  # fmt: skip
    if isinstance(got, Exception):
        raise got
    return {name: torch.from_numpy(value) for name, value in got.items()}
