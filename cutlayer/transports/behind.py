"""A server that is behind its clients, with messages that nobody waits for: by count, or in a thread of its own."""

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import nullcontext

import torch

from ..wire import Message

Serve = Callable[[], Iterable[Message]]


class Behind:
    """Serves in order, and lets `lag` things wait until somebody waits for an answer."""

    def __init__(self, lag: int) -> None:
        self.lag = lag
        self.waiting: deque[Serve] = deque()

    def put(self, serve: Serve) -> list[Message]:
        """Take what is to be served, and return replies that are there."""
        self.waiting.append(serve)
        return self._down_to(self.lag)

    def drain(self) -> list[Message]:
        """Serve everything and return the replies."""
        return self._down_to(0)

    def _down_to(self, left: int) -> list[Message]:
        replies: list[Message] = []
        while len(self.waiting) > left:
            replies += self.waiting.popleft()()
        return replies

    def close(self) -> None:
        pass


class Overlapped:
    """Serves in order in a thread of its own, and on CUDA on a stream of its own, at most `bound` things behind."""

    def __init__(self, bound: int, cuda: bool, core: int | None = None) -> None:
        self.queue: queue.Queue[Serve | None] = queue.Queue(bound)
        self.replies: list[Message] = []
        self.error: BaseException | None = None
        self.closed = False
        self.stream = torch.cuda.Stream() if cuda else None
        self.core = core
        self.thread = threading.Thread(target=self._serve, name="cutlayer-server", daemon=True)
        self.thread.start()

    def put(self, serve: Serve) -> list[Message]:
        self._check()
        if self.stream is not None:
            sent = torch.cuda.current_stream().record_event()
            serve = self._after(sent, serve)
        self.queue.put(serve)
        return []

    def _after(self, sent: torch.cuda.Event, serve: Serve) -> Serve:
        assert self.stream is not None
        stream = self.stream

        def served() -> Iterable[Message]:
            stream.wait_event(sent)
            return serve()

        return served

    def drain(self) -> list[Message]:
        self.queue.join()
        self._check()
        if self.stream is not None:
            self.stream.synchronize()
        replies, self.replies = self.replies, []
        return replies

    def _check(self) -> None:
        if self.error is not None:
            raise self.error

    def _serve(self) -> None:
        if self.core is not None:
            os.sched_setaffinity(0, {self.core})
        with torch.cuda.stream(self.stream) if self.stream is not None else nullcontext():
            while (serve := self.queue.get()) is not None:
                try:
                    if self.error is None and not self.closed:  # else what is left is only taken off: nobody waits for ever
                        self.replies += serve()
                except BaseException as error:
                    self.error = error
                finally:
                    self.queue.task_done()

    def close(self) -> None:
        """Drop what is not served yet and wait for what is: a thread that computes aborts an interpreter that ends."""
        self.closed = True
        self.queue.put(None)
        self.thread.join()
