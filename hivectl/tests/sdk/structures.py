"""instructor and pydantic-ai against a running hive, as their users would write it.

OPENAI_BASE_URL, OPENAI_API_KEY and HIVE_MODEL come from `hivectl up --print-env`; HIVE_SCRIPTED is a scripted worker's
model, HIVE_GONE one that nobody serves any more.
"""

import os
from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

MODEL, SCRIPTED = os.environ["HIVE_MODEL"], os.environ["HIVE_SCRIPTED"]
SETTINGS = {"temperature": 0, "max_tokens": 60}
QUESTION = "Describe the colour red."


class Colour(BaseModel):
    """A colour of the rainbow."""

    name: str = Field(max_length=20)
    warmth: Literal["warm", "cold"]


def instructor_fills_a_class_in_every_mode():
    messages = [{"role": "user", "content": QUESTION}]
    for mode in (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA):
        client = instructor.from_openai(OpenAI(max_retries=0), mode=mode)
        asked = {"model": MODEL, "messages": messages, "response_model": Colour, "max_retries": 0, **SETTINGS}
        assert isinstance(client.create(**asked), Colour), mode
        *_, last = client.create_partial(**asked)
        assert last.warmth in ("warm", "cold"), (mode, last)


def model(name=MODEL, key=os.environ["OPENAI_API_KEY"]):
    client = OpenAIProvider(base_url=os.environ["OPENAI_BASE_URL"], api_key=key)
    return OpenAIChatModel(name, provider=client)


def pydantic_ai_answers_whole_and_streamed():
    agent = Agent(model(), model_settings={**SETTINGS, "max_tokens": 8}, instructions="You are brief.", retries=0)
    whole = agent.run_sync(QUESTION)
    with_events = agent.run_stream_sync(QUESTION)
    pieces = list(with_events.stream_text(delta=True, debounce_by=None))
    assert "".join(pieces) == whole.output and len(pieces) > 1, (pieces, whole.output)
    assert with_events.usage.output_tokens == whole.usage.output_tokens > 0, (with_events.usage, whole.usage)


def pydantic_ai_fills_a_class_in_every_mode():
    for output in (ToolOutput(Colour), NativeOutput(Colour)):
        answer = Agent(model(), output_type=output, model_settings=SETTINGS, retries=0).run_sync(QUESTION)
        assert isinstance(answer.output, Colour), (output, answer)


def pydantic_ai_calls_a_tool_and_goes_on():
    heard = []
    agent = Agent(model(), output_type=ToolOutput(Colour), model_settings=SETTINGS, retries=0)

    # One call is enough; a model this small would go on calling.
    async def once(context, tool):
        return tool if context.run_step == 1 else None

    @agent.tool_plain(prepare=once)
    def favourite(of: Literal["Ann", "Ben"]) -> str:
        """Somebody's favourite colour."""
        heard.append(of)
        return "red"

    assert isinstance(agent.run_sync("What is Ann's favourite colour?").output, Colour)
    assert heard


def raises(status, name=SCRIPTED, **settings):
    key = settings.pop("key", os.environ["OPENAI_API_KEY"])
    prompt = settings.pop("prompt", "hi")
    try:
        Agent(model(name, key), model_settings=settings, retries=0).run_sync(prompt)
    except ModelHTTPError as error:
        assert (error.status_code, error.model_name) == (status, name) and error.body["message"], error
    else:
        raise AssertionError(f"{status} was expected")


instructor_fills_a_class_in_every_mode()
pydantic_ai_answers_whole_and_streamed()
pydantic_ai_fills_a_class_in_every_mode()
pydantic_ai_calls_a_tool_and_goes_on()
raises(400, temperature=9)
raises(401, key="wrong")
raises(403, key=os.environ["HIVE_NARROW_KEY"])
raises(404, name="no-such-model")
raises(413, prompt="x" * 9_000_000)
raises(503, name=os.environ["HIVE_GONE"])
print("instructor, pydantic-ai: all good")
