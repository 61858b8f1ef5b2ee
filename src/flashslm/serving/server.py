"""Load an exported directory and serve it until a signal says stop."""

import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import uvicorn

from flashslm.config import WeightFormat
from flashslm.export.text_model import TextModel
from flashslm.hardware import is_lack_of_memory
from flashslm.inference.continuous import ContinuousBatch
from flashslm.serving.app import Endpoints, build_app
from flashslm.serving.chat import ChatTemplate
from flashslm.serving.metrics import ServerMetrics
from flashslm.serving.scheduler import BatchScheduler


@dataclass(frozen=True)
class ServeOptions:
    """`max_context` in text tokens, None: all that the model has; `drain_s`: how long running requests may still take
    when the server is to stop; `weights`, None: those that the directory names.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    name: str = ""
    max_batch_size: int = 8
    max_context: int | None = None
    max_waiting: int = 64
    drain_s: int = 60
    api_key: str = ""
    weights: WeightFormat | None = None


def serve(directory: Path, options: ServeOptions, on_ready: Callable[[str, BatchScheduler], None]) -> None:
    """Serve until SIGTERM or SIGINT: then no request is accepted any more, and those accepted are finished.

    `on_ready` is given the model's name with its address, and the scheduler. Raises ValueError for an address that
    other machines reach without an API key, for one that is taken, and for a directory or sizes that do not fit.
    """
    if not _is_loopback(options.host) and not options.api_key:
        raise ValueError(
            f"--host {options.host} can be reached from other machines: set FLASHSLM_API_KEY, which clients then send "
            "as `Authorization: Bearer KEY`, or listen on 127.0.0.1"
        )
    text_model = TextModel.open(directory)
    bound = _bind(options.host, options.port)
    with bound:
        scheduler = BatchScheduler(_batch(text_model, options), options.max_waiting, ServerMetrics())
        name = options.name or directory.resolve().name
        endpoints = Endpoints(text_model, scheduler, ChatTemplate(text_model), name, int(time.time()))
        app = build_app(endpoints, options.api_key, options.host)
        config = uvicorn.Config(
            app, lifespan="on", log_level="warning", access_log=False, timeout_graceful_shutdown=options.drain_s
        )
        host = f"[{options.host}]" if ":" in options.host else options.host
        url = f"http://{host}:{bound.getsockname()[1]}/v1"
        server = _Server(config, lambda: on_ready(f"{name} at {url}", scheduler))
        for number in (signal.SIGTERM, signal.SIGINT):  # until uvicorn takes them; it raises them again at its end
            signal.signal(number, server.handle_exit)
        server.run(sockets=[bound])


class _Server(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, config: uvicorn.Config, on_listening: Callable[[], None]) -> None:
        super().__init__(config)
        self.on_listening = on_listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.on_listening()


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _bind(host: str, port: int) -> socket.socket:
    """A socket that does not listen yet: a client is refused until the model is loaded."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise ValueError(
            f"cannot listen on {host}, port {port}: {error.strerror}: give another --host or --port"
        ) from error
    return bound


def _batch(text_model: TextModel, options: ServeOptions) -> ContinuousBatch:
    """The engine, warm: kernels compile before the first request."""
    positions = text_model.text_positions
    max_context = positions if options.max_context is None else options.max_context
    if not 2 <= max_context <= positions:
        raise ValueError(
            f"--max-context is {max_context}: allowed are 2 to {positions}, the model's positions for text"
        )
    try:
        weights = options.weights or text_model.weights
        batch = ContinuousBatch(text_model.load(), options.max_batch_size, max_context, weights=weights)
        batch.generate([[text_model.bos_id]], min(2, max_context - 1), lambda _: False)
    except (RuntimeError, MemoryError) as error:
        if not is_lack_of_memory(error):
            raise
        raise ValueError(
            f"{options.max_batch_size} rows of {max_context} tokens do not fit into the device's memory: lower "
            f"--max-batch-size or --max-context ({error})"
        ) from error
    return batch
