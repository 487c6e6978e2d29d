"""How do tensors get from rank to rank? One small interface, `Transport`, for every kind of machine."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pipelab.action import Action


class Message(NamedTuple):
    """A tensor under way: when it arrives on the clock of the run, and which action made it."""

    tensor: Tensor
    arrival: float
    giver: Action


class Layout(NamedTuple):
    """Shape and dtype of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> "Layout":
        """That of a tensor."""
        return cls(tuple(tensor.shape), tensor.dtype)

    def empty(self) -> Tensor:
        """A tensor of this layout."""
        return torch.empty(self.shape, dtype=self.dtype)


class Aborted(Exception):
    """Another rank failed first; this one stops."""


class Transport(Protocol):
    """What a worker needs of a machine."""

    buffers: int
    """Bytes of the buffers that it keeps for messages; 0 where messages need none."""

    def held_up_by(self, step: Action) -> Action | None:
        """The send whose message must have been taken before this one's can be handed over, if there is any."""

    def send(self, step: Action, message: Message) -> None:
        """Hand over the message of this send, such as `0SEND_F3`; waits for the receiver only where it is told to."""

    def receive(self, step: Action) -> Message:
        """Wait for the message of the send that feeds a receive. Raises Aborted, or TimeoutError naming the send."""
