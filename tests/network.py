"""A server in a thread and its clients in threads, over real connections."""

import threading
import time

from across import BASE

from cutlayer.join import join
from cutlayer.recipes.recipe import make
from cutlayer.serve import Serving

RELAY, COPIES = make({**BASE, "scheme": "vanilla"}), make({**BASE, "scheme": "splitfed_v1"})


class Dead(BaseException):
    """A client's process is gone."""


class Net:
    """A server in a thread, and clients in threads that may die after some batches and come back."""

    def __init__(self, recipe, out, **how):
        self.recipe, self.out, self.lines, self.result, self.error = recipe, out, [], None, None
        self.serving = Serving(recipe, out / "server", listen="127.0.0.1:0", say=self.lines.append, **how)
        self.port = self.serving.gate.port
        self.threads, self.failed = [], {}
        self.server = threading.Thread(target=self._serve)
        self.server.start()

    def _serve(self):
        try:
            self.result = self.serving.run()
        except Exception as error:
            self.error = error

    def join(self, name, dies_after=None, port=None, slow=0.0, **how):
        """Start a client; it dies after so many batches, each of which takes `slow` seconds more."""
        seen = 0

        def tick():
            nonlocal seen
            seen += 1
            time.sleep(slow)
            if dies_after is not None and seen > dies_after:
                raise Dead

        def client():
            try:
                join(
                    how.pop("recipe", self.recipe), self.out / name, server=f"127.0.0.1:{port or self.port}", name=name, tick=tick,
                    **{"patience": 15.0, "say": self.lines.append, **how},
                )  # fmt: skip
            except Dead:
                pass
            except Exception as error:
                self.failed[name] = error

        thread = threading.Thread(target=client)
        thread.start()
        self.threads.append(thread)
        return thread

    def wait(self, timeout=60):
        """Wait for the end and return the result."""
        self.server.join(timeout)
        assert not self.server.is_alive(), self.lines
        for thread in self.threads:
            thread.join(timeout)
        if self.error:
            raise self.error
        assert not self.failed, self.failed
        return self.result

    def said(self, text):
        return any(text in line for line in self.lines)


def until(true, timeout=15.0):
    end = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)
