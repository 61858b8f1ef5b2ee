"""The HTTP endpoints: OpenAI's models, completions and chat completions, health and metrics."""

import asyncio
import hmac
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from flashslm.export.text_model import TextModel
from flashslm.inference.stops import TextStream
from flashslm.serving.chat import ChatTemplate
from flashslm.serving.generation import Failed, Finished, Generation, GenerationEvent, TextPiece
from flashslm.serving.protocol import ApiError, ChatRequest, CompletionRequest, TextRequest, parse
from flashslm.serving.replies import ChatReply, CompletionReply, Reply, usage
from flashslm.serving.scheduler import BatchScheduler, EngineFailed, QueueFull

MAX_BODY_BYTES = 16 * 2**20
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]", "[")  # the last is what Starlette 1.0 reads of "[::1]:8000"
CLIENT_CLOSED = 499  # for the metrics; its client does not read it
Handler = Callable[[Request], Awaitable[Response]]
EventQueue = asyncio.Queue[GenerationEvent]


@dataclass(frozen=True)
class Endpoints:
    """The handlers of one served model."""

    text_model: TextModel
    scheduler: BatchScheduler
    chat: ChatTemplate
    name: str
    created: int  # seconds since the epoch

    @property
    def max_context(self) -> int:
        return self.scheduler.batch.max_context

    async def health(self, _: Request) -> Response:
        failure = self.scheduler.failure
        return JSONResponse({"status": failure or "ok"}, status_code=503 if failure else 200)

    async def metrics(self, _: Request) -> Response:
        return Response(self.scheduler.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        self._check_model(request.path_params["name"])
        return JSONResponse(self._model())

    async def completions(self, request: Request) -> Response:
        body = await run_in_threadpool(parse, CompletionRequest, await _read(request))
        self._check_model(body.model)
        prompt_ids = await run_in_threadpool(self._prompt_ids, body)
        wanted = body.wanted_tokens or min(DEFAULT_COMPLETION_TOKENS, max(1, self.max_context - len(prompt_ids)))
        return await self._answer(request, body, prompt_ids, wanted, CompletionReply(self.name, self._tokenizer))

    async def chat_completions(self, request: Request) -> Response:
        body = await run_in_threadpool(parse, ChatRequest, await _read(request))
        self._check_model(body.model)
        prompt_ids = await run_in_threadpool(self._chat_ids, body)
        wanted = body.wanted_tokens or max(1, self.max_context - len(prompt_ids))
        return await self._answer(request, body, prompt_ids, wanted, ChatReply(self.name, self._tokenizer))

    @property
    def _tokenizer(self) -> Any:
        return self.text_model.tokenizer

    def _model(self) -> dict[str, Any]:
        facts = {"id": self.name, "object": "model", "created": self.created, "owned_by": "flashslm"}
        return facts | {"max_model_len": self.max_context}

    def _check_model(self, name: str) -> None:
        if name != self.name:
            raise ApiError(
                404, f"model {name!r:.80} is not served here: '{self.name}' is", "model_not_found", param="model"
            )

    def _prompt_ids(self, body: CompletionRequest) -> list[int]:
        if isinstance(body.prompt, str):
            self._check_bound(body.prompt, body)
            return self.text_model.encode(body.prompt)
        self._check_length(len(body.prompt), body.wanted_tokens or 1)
        largest, vocabulary = max(body.prompt), self.text_model.architecture.vocab_size
        if largest >= vocabulary:
            text = f"prompt has token {largest}: below {vocabulary} is allowed"
            raise ApiError(400, text, "invalid_value", param="prompt")
        return body.prompt

    def _chat_ids(self, body: ChatRequest) -> list[int]:
        text = self.chat.render(body.messages)
        self._check_bound(text, body)
        return self.chat.encode(text)

    def _check_bound(self, text: str, body: TextRequest) -> None:
        """Refuse a text that is too long whatever its tokens are: encoding megabytes takes seconds."""
        # A chat template may write the first token itself, which is then not put before the text.
        fewest = self.text_model.fewest_tokens(text) - 1
        if fewest >= self.max_context:
            self._check_length(fewest, body.wanted_tokens or 1, "at least ")

    def _check_length(self, prompt_tokens: int, wanted: int, bound: str = "") -> None:
        if prompt_tokens + wanted > self.max_context:
            text = f"the prompt has {bound}{prompt_tokens} tokens and {wanted} are to follow"
            raise ApiError(400, f"{text}: at most {self.max_context} fit", "context_length_exceeded")

    async def _answer(
        self, request: Request, body: TextRequest, prompt_ids: list[int], wanted: int, reply: Reply
    ) -> Response:
        self._check_length(len(prompt_ids), wanted)
        events: EventQueue = asyncio.Queue()
        stream = TextStream(self.text_model.stop_strings(body.stop))
        sampling = body.sampling(secrets.randbits(63))
        emit = _into(events, asyncio.get_running_loop())
        generation = Generation(prompt_ids, wanted, sampling, stream, emit, body.most_likely)
        self._submit(generation)
        if body.stream:
            chunks = _chunks(generation, events, reply, body.stream_options.include_usage)
            return GenerationStream(generation, chunks)
        return await _unless_gone(request, generation, _whole(generation, events, reply))

    def _submit(self, generation: Generation) -> None:
        try:
            self.scheduler.submit(generation)
        except QueueFull as error:
            headers = {"Retry-After": str(error.retry_after_s)}
            raise ApiError(429, str(error), "queue_full", headers=headers) from error
        except EngineFailed as error:
            raise ApiError(503, str(error), "engine_failed") from error


class GenerationStream(StreamingResponse):
    """Server-sent events; a client that goes away before the end cancels its request."""

    def __init__(self, generation: Generation, chunks: AsyncIterator[str]) -> None:
        super().__init__(chunks, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.generation.cancel()


def build_app(endpoints: Endpoints, api_key: str, host: str) -> Starlette:
    """`api_key` guards everything but /health, where one is given; without it only names of this machine, and `host`,
    are answered, so that no web page can reach the server under a name of its own.
    """

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        endpoints.scheduler.start()
        yield
        await run_in_threadpool(endpoints.scheduler.close)

    def guarded(path: str, handler: Handler, method: str = "GET") -> Route:
        async def checked(request: Request) -> Response:
            given = request.headers.get("authorization", "")
            if api_key and not hmac.compare_digest(given.encode("latin-1"), f"Bearer {api_key}".encode()):
                raise ApiError(401, "the header `Authorization: Bearer KEY` lacks the server's key", "invalid_api_key")
            return await handler(request)

        return Route(path, checked, methods=[method])

    async def refuse(_: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            text = f"{error.detail}: see docs/serving.md for what is served"
            error = ApiError(error.status_code, text, "not_served", headers=error.headers)
        elif not isinstance(error, ApiError):  # Starlette raises it again afterwards, so that the log has it
            error = ApiError(500, f"the server failed: {type(error).__name__}", "internal_error")
        endpoints.scheduler.metrics.refused.labels(str(error.status)).inc()
        return JSONResponse(error.body, status_code=error.status, headers=error.headers)

    routes = [
        Route("/health", endpoints.health),
        guarded("/metrics", endpoints.metrics),
        guarded("/v1/models", endpoints.models),
        guarded("/v1/models/{name:path}", endpoints.model),
        guarded("/v1/completions", endpoints.completions, "POST"),
        guarded("/v1/chat/completions", endpoints.chat_completions, "POST"),
    ]
    hosts = ["*"] if api_key else [*LOOPBACK_NAMES, host]
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)]
    handlers = {ApiError: refuse, HTTPException: refuse, Exception: refuse}
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=lifespan)


async def _read(request: Request) -> bytes:
    """The body. Raises ApiError for one that is not JSON by its header (a web page can send such) or too large."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"Content-Type is '{kind}': expected application/json", "invalid_content_type")
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY_BYTES:
                raise ApiError(413, f"the body is larger than {MAX_BODY_BYTES} bytes", "body_too_large")
    except ClientDisconnect as error:
        raise ApiError(CLIENT_CLOSED, "the client went away before the end of its body", "client_closed") from error
    return bytes(body)


def _into(events: EventQueue, loop: asyncio.AbstractEventLoop) -> Callable[[GenerationEvent], None]:
    """Hands events from the engine's thread to the event loop."""

    def emit(event: GenerationEvent) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(events.put_nowait, event)

    return emit


async def _chunks(generation: Generation, events: EventQueue, reply: Reply, with_usage: bool) -> AsyncIterator[str]:
    for chunk in reply.first():
        yield _sent(chunk)
    while not isinstance(event := await events.get(), Finished):
        if isinstance(event, Failed):
            yield _sent(ApiError(500, event.message, "engine_failed").body)
            return
        if event.text or event.score:
            yield _sent(reply.chunk(event.text, event.score))
    yield _sent(reply.chunk("", None, event.reason))
    if with_usage:
        yield _sent(reply.usage_chunk(generation))
    yield "data: [DONE]\n\n"


def _sent(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"


async def _whole(generation: Generation, events: EventQueue, reply: Reply) -> Response:
    pieces: list[TextPiece] = []
    while not isinstance(event := await events.get(), Finished):
        if isinstance(event, Failed):
            raise ApiError(500, event.message, "engine_failed")
        pieces.append(event)
    scores = None if generation.most_likely is None else [piece.score for piece in pieces if piece.score]
    body = reply.whole("".join(piece.text for piece in pieces), scores, event.reason)
    return JSONResponse(body | {"usage": usage(generation)})


async def _unless_gone(request: Request, generation: Generation, work: Awaitable[Response]) -> Response:
    """What `work` gives, unless the client goes away first: then its request is cancelled."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else Response(status_code=CLIENT_CLOSED)
    finally:
        generation.cancel()
        working.cancel()
        leaving.cancel()
