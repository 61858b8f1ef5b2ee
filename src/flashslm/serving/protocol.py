"""The requests of OpenAI's API that this server takes, and its errors."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError, field_validator, model_validator

from flashslm.inference.sampling import Sampling

# Parameters that are taken only at the value that changes nothing, as clients send them.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
}
# Parameters that say nothing about the text.
IGNORED = ("user", "metadata", "store", "service_tier", "parallel_tool_calls")

MOST_FIELDS = 64  # of an object: a body could have a million, each with an error
MOST_MESSAGES = 10_000  # of a chat, and parts of a message: to check a million takes half a minute
Stop = Annotated[str, Field(min_length=1)]


class ApiError(Exception):
    """An answer other than 200, in the form of OpenAI's errors."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class _Strict(BaseModel):
    """Takes nothing that it does not know."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, given: Any) -> Any:
        if isinstance(given, dict) and len(given) > MOST_FIELDS:
            raise ValueError(f"has {len(given)} fields: at most {MOST_FIELDS} are read")
        return given


class StreamOptions(_Strict):
    include_usage: bool = False


class TextRequest(_Strict):
    """What both endpoints take. A null is the default, as in OpenAI's API."""

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: list[Stop] = Field([], max_length=4)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        given = {name: value for name, value in given.items() if value is not None and name not in IGNORED}
        wrong = [name for name, allowed in NEUTRAL.items() if name in given and given[name] not in allowed]
        if wrong:
            only = "; ".join(f"{name} is {given[name]!r:.60}: only {NEUTRAL[name][0]!r} is supported" for name in wrong)
            raise ValueError(only)
        return {name: value for name, value in given.items() if name not in NEUTRAL}

    @field_validator("stop", mode="before")
    @classmethod
    def _several(cls, given: Any) -> Any:
        return [given] if isinstance(given, str) else given

    @property
    def wanted_tokens(self) -> int | None:
        """How many new tokens are asked for at most."""
        return self.max_tokens

    @property
    def most_likely(self) -> int | None:
        """How many alternatives to score beside each token; None: no scores are asked for."""
        raise NotImplementedError

    def sampling(self, seed: int) -> Sampling:
        """`seed` counts where the request has none."""
        return Sampling(self.temperature, self.top_k, self.top_p, seed if self.seed is None else self.seed)


class CompletionRequest(TextRequest):
    """A prompt as text, which the token that begins every text is put before, or as token ids, taken as they are."""

    prompt: str | list[int]
    logprobs: int | None = Field(None, ge=0, le=5)

    @field_validator("prompt", mode="before")
    @classmethod
    def _one(cls, given: Any) -> Any:
        inner = given[0] if isinstance(given, list) and len(given) == 1 and not isinstance(given[0], int) else given
        are_ids = isinstance(inner, list) and inner and all(type(i) is int and i >= 0 for i in inner)
        if isinstance(inner, str) or are_ids:
            return inner
        raise ValueError("expected one prompt: a text or a list of token ids; several are several requests")

    @property
    def most_likely(self) -> int | None:
        return self.logprobs


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class Message(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[TextPart], FailFast(), Field(max_length=MOST_MESSAGES)]
    name: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _parts(cls, given: Any) -> Any:
        return [{"type": "text", "text": given}] if isinstance(given, str) else given

    def plain(self) -> dict[str, str]:
        """As chat templates read it."""
        return {"role": self.role, "content": "".join(part.text for part in self.content)}


class ChatRequest(TextRequest):
    messages: Annotated[list[Message], FailFast()] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @model_validator(mode="after")
    def _scores_are_asked_for(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self

    @property
    def most_likely(self) -> int | None:
        return self.top_logprobs if self.logprobs else None


AnyRequest = TypeVar("AnyRequest", bound=TextRequest)


def parse(kind: type[AnyRequest], body: bytes) -> AnyRequest:
    """Raises ApiError 400 that names every problem, of a list's items the first."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        places = [str(problem["loc"][0]) if problem["loc"] else "" for problem in problems]
        texts = dict.fromkeys(_worded(problem["loc"], problem["type"], problem["msg"]) for problem in problems)
        raise ApiError(400, "; ".join(texts), "invalid_value", param=places[0] or None) from error


def _worded(place: tuple[int | str, ...], kind: str, message: str) -> str:
    where = ".".join(map(str, place))
    if kind == "extra_forbidden":
        return f"{where} is not supported"
    message = message.removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
