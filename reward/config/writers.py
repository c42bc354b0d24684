"""Who writes judgements, critiques and revisions."""

from typing import Annotated, Literal

from pydantic import Field

from rollouts.config import Section


class PolicyWriterConfig(Section):
    """The policy itself, on the engine that writes the rollouts."""

    kind: Literal["policy"] = "policy"


class FrozenWriterConfig(Section):
    """The policy as it stood when the loop began: a judge that training cannot bend. No second model in memory."""

    kind: Literal["frozen"] = "frozen"


class LocalWriterConfig(Section):
    """Another model on this machine, beside the one that is trained."""

    kind: Literal["local"] = "local"
    source: str
    """As `model.source`."""
    dtype: Literal["float32", "bfloat16", "auto"] = "auto"
    max_batch: int = Field(64, ge=1)
    """Completions decoded at once; bounds memory."""
    max_model_len: int | None = Field(None, ge=2)
    """Longest question plus reply, in tokens; None is the model's own limit."""
    chat_template: str | None = None
    """Jinja template for models that bring none."""


class OpenAIWriterConfig(Section):
    """Any endpoint that speaks OpenAI's chat completions: a `vllm serve`, a gateway, a vendor."""

    kind: Literal["openai"] = "openai"
    base_url: str = Field("https://api.openai.com/v1", pattern=r"^https?://\S+$")
    """An address that begins with http:// or https://, up to the version: the client adds /chat/completions."""
    model: str
    """Name that the endpoint knows the model by."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """Environment variable that holds the key; it never stands in a config. None sends none."""
    timeout: float = Field(60.0, gt=0)
    """Seconds of silence after which an attempt is given up. An endpoint that goes on dripping is given up after
    (retries + 1) · (timeout + 120)."""
    retries: int = Field(2, ge=0, le=20)
    """Further attempts after a timeout, a refused connection or a busy endpoint, with growing pauses."""
    concurrency: int = Field(8, ge=1)
    """Requests under way at once."""
    max_consecutive_failures: int = Field(16, ge=1)
    """So many questions in a row without a reply stop the run: the endpoint is down."""


WriterConfig = Annotated[
    PolicyWriterConfig | FrozenWriterConfig | LocalWriterConfig | OpenAIWriterConfig, Field(discriminator="kind")
]
