"""LiteLLM as a client library against a running hive, as its users would write it.

OPENAI_BASE_URL, OPENAI_API_KEY and HIVE_MODEL come from `hivectl up --print-env`; HIVE_SCRIPTED is a scripted worker's
model, HIVE_GONE one that nobody serves any more; HIVE_NARROW_KEY may call neither, HIVE_POOR_KEY one request a minute.
"""

import json
import os

import litellm
from pydantic import BaseModel

SCRIPTED = os.environ["HIVE_SCRIPTED"]
ASKED = {
    "model": "openai/" + os.environ["HIVE_MODEL"],
    "api_base": os.environ["OPENAI_BASE_URL"],
    "messages": [{"role": "user", "content": "Name a colour."}],
    "temperature": 0,
    "max_retries": 0,
}


class Colour(BaseModel):
    name: str
    warm: bool


def answers_whole_and_streamed():
    whole = litellm.completion(**ASKED, max_tokens=8)
    chunks = list(litellm.completion(**ASKED, max_tokens=8, stream=True, stream_options={"include_usage": True}))
    built = litellm.stream_chunk_builder(chunks, messages=ASKED["messages"])
    assert built.choices[0].message.content == whole.choices[0].message.content != "", (built, whole)
    assert built.usage.total_tokens == whole.usage.total_tokens > 0, (built.usage, whole.usage)


def calls_a_tool():
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]
    for stream in (False, True):
        answer = litellm.completion(**ASKED, tools=tools, tool_choice="required", max_tokens=40, stream=stream)
        answer = litellm.stream_chunk_builder(list(answer)) if stream else answer
        (call,) = answer.choices[0].message.tool_calls
        assert call.function.name == "weather" and set(json.loads(call.function.arguments)) == {"city"}, call
        assert answer.choices[0].finish_reason == "tool_calls", answer


def fills_a_class_of_the_users():
    answer = litellm.completion(**ASKED, response_format=Colour, max_tokens=40)
    Colour.model_validate_json(answer.choices[0].message.content)


def embeds():
    asked = {"model": "openai/" + SCRIPTED, "api_base": os.environ["OPENAI_BASE_URL"], "input": ["One", "Two"]}
    first, second = litellm.embedding(**asked).data
    assert len(first["embedding"]) == len(second["embedding"]) > 0 and first != second


def raises(kind, status, **how):
    try:
        for chunk in litellm.completion(**{**ASKED, "model": "openai/" + SCRIPTED, **how}):
            pass
    except kind as error:
        assert type(error) is kind and error.status_code == status, (type(error), error)
    else:
        raise AssertionError(f"{kind.__name__} was expected")


def says(script):
    return [{"role": "user", "content": json.dumps(script)}]


answers_whole_and_streamed()
calls_a_tool()
fills_a_class_of_the_users()
embeds()
raises(litellm.BadRequestError, 400, temperature=9)
raises(litellm.ContextWindowExceededError, 400, messages=[{"role": "user", "content": "word " * 5000}])
raises(litellm.AuthenticationError, 401, api_key="wrong")
# It takes every `invalid_request_error` that it has no better name for, a 403 among them, by this one.
raises(litellm.BadRequestError, 403, api_key=os.environ["HIVE_NARROW_KEY"])
raises(litellm.NotFoundError, 404, model="openai/no-such-model")
litellm.completion(**{**ASKED, "model": "openai/" + SCRIPTED}, api_key=os.environ["HIVE_POOR_KEY"])
raises(litellm.RateLimitError, 429, api_key=os.environ["HIVE_POOR_KEY"])
raises(litellm.ServiceUnavailableError, 503, model="openai/" + os.environ["HIVE_GONE"])
raises(litellm.Timeout, 408, messages=says({"first_token_ms": 9000}), timeout=0.2)
lost = says({"tokens": ["a", " b", " c"], "fault": {"at": 2, "kind": "truncate"}})
raises(litellm.exceptions.MidStreamFallbackError, 500, messages=lost, stream=True)
print("litellm: all good")
