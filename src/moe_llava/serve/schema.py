"""What the API takes and gives: OpenAI's chat completions, and the routing beside it."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from moe_llava.generate.engine import Decoding

MAX_ANSWERS = 8
# Every mistake in a body costs a thousand times its bytes to describe: lists stop at the first, objects are small.
MAX_FIELDS = 64
MAX_ITEMS = 4096
MIN_TEMPERATURE = 1e-3


def _whole(text: str) -> str:
    """JSON can say half a character (a lone surrogate), which no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text holds half a character (a lone surrogate)") from None
    return text


Text = Annotated[str, AfterValidator(_whole)]


class Taken(BaseModel):
    """A field that would change the answer and is not known is refused, not ignored; null is a field left out."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _given(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        if len(fields) > MAX_FIELDS:
            raise ValueError(f"{len(fields):,} fields; at most {MAX_FIELDS} are taken")
        return {name: value for name, value in fields.items() if value is not None}


class TextPart(Taken):
    type: Literal["text"]
    text: Text


class ImageUrl(Taken):
    url: Text = Field(description="data:image/...;base64,... or, where the server allows it, http(s)")
    detail: Literal["auto", "low", "high"] | None = Field(None, description="taken and of no effect")


class ImagePart(Taken):
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]
Parts = Annotated[list[Part], Field(max_length=MAX_ITEMS, fail_fast=True)]


class Message(Taken):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Parts
    name: str | None = Field(None, description="taken and of no effect")


class StreamOptions(Taken):
    include_usage: bool = False
    include_obfuscation: bool | None = Field(None, description="taken and of no effect")


StopString = Annotated[Text, Field(min_length=1, max_length=200)]
StopStrings = Annotated[list[StopString], Field(max_length=4, fail_fast=True)]
Messages = Annotated[list[Message], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)]


class ChatRequest(Taken):
    """A conversation that waits for its next answer."""

    messages: Messages
    model: str | None = None
    max_tokens: int | None = Field(None, ge=1, description="by default what is left of the context, at most 512")
    max_completion_tokens: int | None = Field(None, ge=1, description="the newer name of max_tokens")
    temperature: float = Field(0.0, ge=0, le=2, description="0 takes the likeliest token")
    top_p: float = Field(1.0, gt=0, le=1)
    stop: StopString | StopStrings | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n: int = Field(1, ge=1, le=MAX_ANSWERS)
    stream: bool = False
    stream_options: StreamOptions | None = None
    routing: bool = Field(False, description="tell the experts of each generated token and each image patch")
    # What clients send by habit: taken where it asks for nothing.
    user: str | None = None
    metadata: dict[str, Any] | None = Field(None, max_length=MAX_FIELDS)
    store: Literal[False] | None = None
    frequency_penalty: float = Field(0, ge=0, le=0)
    presence_penalty: float = Field(0, ge=0, le=0)
    logprobs: Literal[False] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(given)

    def decoding(self, max_new_tokens: int, choice: int) -> Decoding:
        """How one of the `n` answers is decoded; each has a seed of its own."""
        seed = None if self.seed is None else (self.seed + choice) % 2**63
        # Below, the division of the logits would overflow; the likeliest token is the limit.
        temperature = self.temperature if self.temperature >= MIN_TEMPERATURE else 0.0
        return Decoding(max_new_tokens, temperature, self.top_p, seed)


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TokenRouting(BaseModel):
    token: str
    token_id: int
    experts: list[list[int]] = Field(description="for each sparse layer the experts chosen, the heaviest first")
    weights: list[list[float]]


class ImageRouting(BaseModel):
    rows: int | None = Field(description="of the grid of patches; null where they fill none")
    columns: int | None
    experts: list[list[list[int]]] = Field(description="for each patch, in reading order, for each sparse layer")
    weights: list[list[list[float]]]


class Routing(BaseModel):
    """What the answers share: the model's sparse layers, and the images of the prompt."""

    layers: list[int]
    num_experts: int
    top_k: int
    images: list[ImageRouting]


class ChoiceRouting(BaseModel):
    tokens: list[TokenRouting]


class Reply(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str


FinishReason = Literal["stop", "length"]


class Choice(BaseModel):
    index: int
    message: Reply
    finish_reason: FinishReason
    logprobs: None = None
    routing: ChoiceRouting | None = None


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    routing: Routing | None = None


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "moe-llava"
    context: int = Field(description="tokens of prompt and answer together")
    image_tokens: int = Field(description="tokens that one image takes; 0 for a text-only model")


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    status: Literal["ok", "stopping"]
    running: int
    waiting: int


class Problem(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorReply(BaseModel):
    error: Problem


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The body of a refusal; what cannot be written as UTF-8, for it quotes the sender, is written as an escape."""
    message = message.encode(errors="backslashreplace").decode()
    param = param and param.encode(errors="backslashreplace").decode()
    return ErrorReply(error=Problem(message=message, type=kind, param=param, code=code)).model_dump()
