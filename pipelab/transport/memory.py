"""Ranks as threads of one process: a message is a place in a dictionary."""

import threading
from collections.abc import Callable

from pipelab.action import Action
from pipelab.transport import Aborted, Message


class Shared:
    """What threads share and wait for, nobody longer than `timeout` seconds."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._changed = threading.Condition()
        self._aborted = False

    def abort(self) -> None:
        """Wake everybody with Aborted."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()

    def _wait(self, there: Callable[[], bool], late: Callable[[], str]) -> None:
        """Within `_changed`, until it is there. Raises Aborted, or TimeoutError with the sentence `late`."""
        if not self._changed.wait_for(lambda: self._aborted or there(), self.timeout):
            raise TimeoutError(late())
        if self._aborted:
            raise Aborted


class Mailboxes(Shared):
    """One place for every message, found under the send's own name; nobody waits longer than `timeout` seconds.

    >>> import torch
    >>> mailboxes = Mailboxes(timeout=1)
    >>> mailboxes.send(Action.parse("0SEND_F3"), Message(torch.ones(2), 0.5, Action.parse("0F3")))
    >>> mailboxes.receive(Action.parse("0SEND_F3")).arrival
    0.5
    """

    def __init__(self, timeout: float) -> None:
        super().__init__(timeout)
        self.buffers = 0
        self._messages: dict[Action, Message] = {}

    def held_up_by(self, step: Action) -> None:
        """There is a place for every message."""

    def send(self, step: Action, message: Message) -> None:
        """Put the message where the receiver will look."""
        with self._changed:
            self._messages[step] = message._replace(tensor=message.tensor.contiguous())
            self._changed.notify_all()

    def receive(self, step: Action) -> Message:
        """Take the message that the send `step` left. Raises Aborted, or TimeoutError naming the send."""
        with self._changed:
            self._wait(
                lambda: step in self._messages,
                lambda: f"{step} did not come within {self.timeout:g} s; raise the timeout for slow stages",
            )
            return self._messages.pop(step)
