"""Processes of one gloo group, started once, that run the functions which tests hand them."""

import os
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

PATIENCE = 300  # seconds for one function, the imports of its module included


class Processes:
    """A group of processes, started with the first function and anew after one that did not come back."""

    def __init__(self, world: int):
        self.world = world
        self._members: list[tuple[Any, Connection]] = []
        self._folder = tempfile.TemporaryDirectory()

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call function(*arguments) in all processes, in a process group of its own; return what each returns.

        AssertionError with the traceback of the first that raised, or if one does not come back.
        """
        if not self._members:
            self._start()
        fresh = tempfile.mktemp(dir=self._folder.name)
        for _, connection in self._members:
            connection.send((function, arguments, fresh))
        answers: dict[int, tuple[Any, str]] = {}
        connections = [connection for _, connection in self._members]
        while len(answers) < self.world:
            ready = wait([c for i, c in enumerate(connections) if i not in answers], PATIENCE)
            for connection in ready:
                rank = connections.index(connection)
                try:
                    answers[rank] = connection.recv()
                except EOFError:
                    answers[rank] = None, f"process {rank} ended: exit code {self._members[rank][0].exitcode}"
            failed = [error for _, error in answers.values() if error]
            if failed or not ready:  # the others may wait for it
                self.close()
                raise AssertionError(failed[0] if failed else f"only processes {[*answers]} came back")
        return [answers[rank][0] for rank in range(self.world)]

    def _start(self) -> None:
        context = mp.get_context("spawn")
        for rank in range(self.world):
            own, other = context.Pipe()
            process = context.Process(target=_serve, args=(rank, self.world, other), daemon=True)
            process.start()
            other.close()
            self._members.append((process, own))

    def close(self) -> None:
        """End the processes."""
        for process, connection in self._members:
            connection.close()
            process.kill()
            process.join()
        self._members = []


def _serve(rank: int, world: int, connection: Connection) -> None:
    """Run what comes until nothing more can."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # with torch.utils.deterministic.fill_uninitialized_memory: NaN
    while True:
        try:
            function, arguments, path = connection.recv()
        except EOFError:
            return
        dist.init_process_group("gloo", store=dist.FileStore(path, world), rank=rank, world_size=world)
        torch.manual_seed(0)
        try:
            answer = function(*arguments), ""
        except BaseException:
            answer = None, f"process {rank} of {world}: {traceback.format_exc()}"
        connection.send(answer)
        if not answer[1]:
            dist.barrier()  # whoever leaves first would close what others still speak through
        dist.destroy_process_group()
