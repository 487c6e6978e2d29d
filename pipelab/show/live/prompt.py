"""Why does a slider answer twice as fast under `make lab`? Jupyter's server holds no small message back.

Whoever sends several small messages over TCP waits, unless told not to, until the first is acknowledged (Nagle), which
the other side puts off for up to 40 ms. A kernel's answer to a slider is three messages. `make lab` starts the server
with this connection; `benchmarks/draw.md` says what it brings.
"""

from typing import Any

from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection


class PromptConnection(ZMQChannelsWebsocketConnection):
    """Jupyter's connection of a browser with a kernel, each message sent at once.

    >>> from jupyter_server.serverapp import ServerApp
    >>> ServerApp(kernel_websocket_connection_class=PromptConnection).kernel_websocket_connection_class.__name__
    'PromptConnection'
    """

    def connect(self) -> Any:
        """Also by `ServerApp.kernel_websocket_connection_class` of a server of one's own."""
        self.websocket_handler.set_nodelay(True)
        return super().connect()
