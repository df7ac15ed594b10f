"""The shapes of request bodies, as TGI's router declares them; members that it does not know are ignored."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from rag_tuned_memory.serving.base import Message
from rag_tuned_memory.serving.server import wire_json as w


@dataclass(frozen=True, slots=True)
class Parameters:
    """How to generate; the ``parameters`` of TGI's native routes. The defaults are those of an absent member."""

    adapter_id: str | None = None
    best_of: int | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    typical_p: float | None = None
    do_sample: bool = False
    max_new_tokens: int | None = None
    return_full_text: bool | None = None
    stop: tuple[str, ...] = ()
    truncate: int | None = None
    watermark: bool = False
    details: bool = False
    decoder_input_details: bool = False
    seed: int | None = None
    top_n_tokens: int | None = None
    grammar: tuple[str, Any] | None = None

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn: one of sampling's parameters is enough, as TGI has it."""
        asked = (self.temperature, self.top_k, self.top_p, self.typical_p)
        return self.do_sample or any(value is not None for value in asked)


def _json_text(reader: w.Reader) -> Any:
    """A JSON schema, or the text of one; what is no JSON is left to the check of the grammar."""
    return reader.value()


GRAMMAR = w.tagged(
    {
        "json": _json_text,
        "json_object": _json_text,
        "regex": w.text,
        "json_schema": w.struct("JsonSchemaConfig", {"name": w.optional(w.text), "schema": w.required(w.anything)}),
    }
)
PARAMETERS = w.struct(
    "GenerateParameters",
    {
        "best_of": w.optional(w.integer("usize")),
        "temperature": w.optional(w.number),
        "repetition_penalty": w.optional(w.number),
        "frequency_penalty": w.optional(w.number),
        "top_k": w.optional(w.integer("i32")),
        "top_p": w.optional(w.number),
        "typical_p": w.optional(w.number),
        "do_sample": w.boolean,
        "max_new_tokens": w.optional(w.integer("u32")),
        "return_full_text": w.optional(w.boolean),
        "stop": w.sequence(w.text),
        "truncate": w.optional(w.integer("usize")),
        "watermark": w.boolean,
        "details": w.boolean,
        "decoder_input_details": w.boolean,
        "seed": w.optional(w.integer("u64")),
        "top_n_tokens": w.optional(w.integer("u32")),
        "grammar": w.optional(GRAMMAR),
        "adapter_id": w.optional(w.text),
    },
)
GENERATE = w.struct(
    "GenerateRequest",
    {"inputs": w.required(w.text), "parameters": PARAMETERS, "add_special_tokens": w.boolean, "stream": w.boolean},
)
LOAD_LORA = w.struct(
    "LoadLoRAAdapterRequest",
    {"lora_name": w.required(w.text), "lora_path": w.required(w.text), "load_inplace": w.boolean},
)
UNLOAD_LORA = w.struct("UnloadLoRAAdapterRequest", {"lora_name": w.required(w.text)})


def _message(reader: w.Reader) -> Message:
    if reader.peek() != b"{":
        w.struct("Message", {})(reader)
    found = reader.members(lambda key: w.text(reader) if key == "role" else reader.value())
    if "role" not in found:
        reader.fail("missing field `role`")
    content = _content(found.get("content"))
    if content is None:
        reader.fail("data did not match any variant of untagged enum MessageBody")
    return Message(found["role"], content)


def _content(value: Any) -> str | None:
    """A message's text; None where it has none, or has pictures."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return None
    texts = [part.get("text") for part in value if isinstance(part, dict) and part.get("type") == "text"]
    told = [one for one in texts if isinstance(one, str)]
    return "".join(told) if len(told) == len(value) else None


_PROMPT_TEXTS = w.sequence(w.text)


def _prompt(reader: w.Reader) -> list[str]:
    given: list[str] = _PROMPT_TEXTS(reader) if reader.peek() == b"[" else [w.text(reader)]
    return given


_OPENAI = {
    "model": w.optional(w.text),
    "max_tokens": w.optional(w.integer("u32")),
    "frequency_penalty": w.optional(w.number),
    "temperature": w.optional(w.number),
    "top_p": w.optional(w.number),
    "seed": w.optional(w.integer("u64")),
    "stop": w.optional(w.sequence(w.text)),
    "stream": w.optional(w.boolean),
    "stream_options": w.optional(w.struct("StreamOptions", {"include_usage": w.boolean})),
}
_FUNCTION = w.struct("FunctionDefinition", {"name": w.required(w.text)})
CHAT = w.struct(
    "ChatRequest",
    {
        "messages": w.required(w.sequence(_message)),
        **_OPENAI,
        "max_completion_tokens": w.optional(w.integer("u32")),
        "presence_penalty": w.optional(w.number),
        "logprobs": w.optional(w.boolean),
        "top_logprobs": w.optional(w.integer("u32")),
        "n": w.optional(w.integer("u32")),
        "response_format": w.optional(GRAMMAR),
        "tools": w.optional(w.sequence(w.struct("Tool", {"function": w.required(_FUNCTION)}))),
        "tool_choice": w.anything,
    },
)
COMPLETION = w.struct(
    "CompletionRequest",
    {"prompt": w.required(_prompt), **_OPENAI, "suffix": w.optional(w.text), "echo": w.optional(w.boolean)},
)


def parameters_of(found: dict[str, Any] | None) -> Parameters:
    """The parameters of a native body."""
    given = dict(found or {})
    given["stop"] = tuple(given.get("stop", ()))
    return Parameters(**given)


def openai_parameters(found: dict[str, Any], adapter: str | None) -> Parameters:
    """The parameters that TGI makes of an OpenAI body: sampling is on unless the temperature is 0."""
    temperature, presence = found.get("temperature"), found.get("presence_penalty")
    return Parameters(
        adapter_id=adapter,
        temperature=temperature or None,
        do_sample=temperature != 0,
        repetition_penalty=None if presence is None else presence + 2.0,
        frequency_penalty=found.get("frequency_penalty"),
        top_p=found.get("top_p"),
        max_new_tokens=found.get("max_completion_tokens") or found.get("max_tokens"),
        return_full_text=False,
        stop=tuple(found.get("stop") or ()),
        details=True,
        seed=found.get("seed"),
        top_n_tokens=found.get("top_logprobs") if found.get("logprobs") else None,
        grammar=found.get("response_format"),
    )


def compact(value: Any) -> str:
    """JSON as the router writes it: no spaces, and text as it is."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
