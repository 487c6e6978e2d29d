"""Ranks as threads of one process: a message is a place in a dictionary."""

import threading

from pipelab.action import Action
from pipelab.transport import Aborted, Message


class Mailboxes:
    """One place for every message, found under the send's own name; nobody waits longer than `timeout` seconds.

    >>> import torch
    >>> mailboxes = Mailboxes(timeout=1)
    >>> mailboxes.send(Action.parse("0SEND_F3"), Message(torch.ones(2), 0.5, Action.parse("0F3")))
    >>> mailboxes.receive(Action.parse("0SEND_F3")).arrival
    0.5
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.buffers = 0
        self._changed = threading.Condition()
        self._messages: dict[Action, Message] = {}
        self._aborted = False

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
            there = self._changed.wait_for(lambda: self._aborted or step in self._messages, self.timeout)
            if self._aborted:
                raise Aborted
            if not there:
                raise TimeoutError(f"{step} did not come within {self.timeout:g} s; raise the timeout for slow stages")
            return self._messages.pop(step)

    def abort(self) -> None:
        """Wake every waiting rank with Aborted."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()
