"""The official openai package against a running hive, as its users would write it.

OPENAI_BASE_URL, OPENAI_API_KEY and HIVE_MODEL come from `hivectl up --print-env`.
"""

import json
import os
import time
from typing import Literal

import openai
import pydantic
from openai import OpenAI

MODEL = os.environ["HIVE_MODEL"]
QUESTION = [{"role": "user", "content": "Name three colours of the rainbow."}]
client = OpenAI()


def lists_models():
    listed = [model.id for model in client.models.list()]
    assert MODEL in listed, listed
    model = client.models.retrieve(MODEL)
    assert (model.id, model.object) == (MODEL, "model"), model


def chats_with_exact_usage():
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=12, temperature=0)
    choice, usage = answer.choices[0], answer.usage
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion" and answer.model == MODEL
    assert choice.message.role == "assistant" and choice.message.content, choice
    assert choice.finish_reason in ("stop", "length"), choice
    assert 0 < usage.completion_tokens <= 12, usage
    assert usage.prompt_tokens > 0 and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage
    return choice.message.content, usage


def streams_the_same_text_token_by_token(text, usage):
    stream = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=12, temperature=0,
        stream=True, stream_options={"include_usage": True},
    )
    pieces, arrivals, finish, last = [], [], None, None
    for chunk in stream:
        last = chunk
        for choice in chunk.choices:
            if choice.delta.content:
                pieces.append(choice.delta.content)
                arrivals.append(time.monotonic())
            finish = choice.finish_reason or finish
    assert "".join(pieces) == text, (pieces, text)
    assert len(pieces) > 1 and arrivals[-1] > arrivals[0], "all tokens came at once"
    assert finish in ("stop", "length")
    assert last.choices == [] and last.usage == usage, (last, usage)


def leaves_out_the_usage_when_not_asked():
    stream = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=3, stream=True)
    assert all(chunk.usage is None for chunk in stream)


def stops_at_a_stop_text(text):
    word = text.split()[2]
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=12, temperature=0, stop=[word]
    )
    assert word not in answer.choices[0].message.content and answer.choices[0].finish_reason == "stop", answer


def raises(kind, code, **arguments):
    try:
        client.with_options(max_retries=0).chat.completions.create(**{"model": MODEL, "messages": QUESTION} | arguments)
    except openai.APIStatusError as error:
        assert type(error) is kind, error
        assert error.code == code and error.request_id, (error.code, error.request_id)
        return error
    raise AssertionError(f"{kind.__name__} was expected")


def raises_the_class_its_documentation_promises():
    assert raises(openai.NotFoundError, "model_not_found", model="no-such-model").param == "model"
    assert raises(openai.BadRequestError, "invalid_request", messages=[]).param == "messages"
    raises(openai.BadRequestError, "invalid_request", max_tokens=-1)
    raises(openai.BadRequestError, "context_length_exceeded", messages=[{"role": "user", "content": "many words " * 9000}])
    try:
        OpenAI(api_key="wrong", max_retries=0).models.list()
    except openai.AuthenticationError as error:
        assert error.code == "invalid_api_key", error
    else:
        raise AssertionError("a wrong key was let in")


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}


def must_call_the_tool_it_is_told_to(**how):
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "How is the weather in Paris?"}]}
    asked |= {"tools": [WEATHER], "temperature": 0, "max_tokens": 60} | how
    choice = client.chat.completions.create(**asked).choices[0]
    (call,) = choice.message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert choice.finish_reason == "tool_calls" and choice.message.content is None, choice
    assert call.function.name == "get_weather" and set(arguments) == {"city", "unit"} and arguments["unit"] in "CF", call
    name, streamed, finish = None, "", None
    for chunk in client.chat.completions.create(**asked, stream=True):
        for part in chunk.choices:
            for delta in part.delta.tool_calls or []:
                assert delta.index == 0
                name = name or delta.function.name
                streamed += delta.function.arguments or ""
            finish = part.finish_reason or finish
    assert (name, json.loads(streamed), finish) == ("get_weather", arguments, "tool_calls"), (name, streamed, finish)
    # What the tool says goes back, and the model goes on from there.
    history = asked["messages"] + [
        choice.message,
        {"role": "tool", "tool_call_id": call.id, "content": "18 degrees and sunny"},
    ]
    again = client.chat.completions.create(model=MODEL, messages=history, tools=[WEATHER], tool_choice="none", max_tokens=8)
    assert again.choices[0].message.tool_calls is None and again.choices[0].message.content, again


def parses_into_a_model_of_the_users():
    class Colour(pydantic.BaseModel):
        name: str
        warmth: Literal["warm", "cold"] | None

    class Colours(pydantic.BaseModel):
        first: Colour
        second: Colour

    asked = {"model": MODEL, "messages": QUESTION, "temperature": 0, "response_format": Colours}
    parsed = client.chat.completions.parse(**asked, max_tokens=200).choices[0].message.parsed
    assert isinstance(parsed, Colours), parsed
    try:
        client.chat.completions.parse(**asked, max_tokens=3)
    except openai.LengthFinishReasonError:
        pass
    else:
        raise AssertionError("a cut answer was taken for a whole one")


def answers_several_times_in_order_and_repeatably():
    asked = {"model": MODEL, "messages": QUESTION, "n": 3, "seed": 7, "temperature": 1.0, "max_tokens": 6}
    answers = [client.chat.completions.create(**asked) for _ in range(2)]
    texts = [[choice.message.content for choice in answer.choices] for answer in answers]
    assert [choice.index for choice in answers[0].choices] == [0, 1, 2], answers[0]
    assert texts[0] == texts[1] and len(set(texts[0])) > 1, texts
    assert answers[0].usage.completion_tokens <= 18, answers[0].usage


def tells_how_likely_each_token_was(text):
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=12, temperature=0, logprobs=True, top_logprobs=2
    )
    tokens = answer.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == text, (tokens, text)
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in tokens), tokens


def goes_on_from_a_text():
    asked = {"model": MODEL, "prompt": ["One, two, three,", "A, B, C,"], "max_tokens": 4, "temperature": 0}
    answer = client.completions.create(**asked, echo=True)
    assert [choice.index for choice in answer.choices] == [0, 1], answer
    assert answer.choices[0].text.startswith("One, two, three,") and answer.object == "text_completion", answer
    pieces = ["", ""]
    for chunk in client.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            pieces[choice.index] += choice.text
    whole = [choice.text for choice in client.completions.create(**asked).choices]
    assert pieces == whole, (pieces, whole)


lists_models()
text, usage = chats_with_exact_usage()
streams_the_same_text_token_by_token(text, usage)
leaves_out_the_usage_when_not_asked()
stops_at_a_stop_text(text)
raises_the_class_its_documentation_promises()
must_call_the_tool_it_is_told_to(tool_choice="required", parallel_tool_calls=False)
must_call_the_tool_it_is_told_to(tool_choice={"type": "function", "function": {"name": "get_weather"}})
parses_into_a_model_of_the_users()
answers_several_times_in_order_and_repeatably()
tells_how_likely_each_token_was(text)
goes_on_from_a_text()
print(f"openai {openai.__version__}: all good")
