"""The official openai package against a running hive, as its users would write it.

OPENAI_BASE_URL, OPENAI_API_KEY and HIVE_MODEL come from `hivectl up --print-env`.
"""

import os
import time

import openai
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


lists_models()
text, usage = chats_with_exact_usage()
streams_the_same_text_token_by_token(text, usage)
leaves_out_the_usage_when_not_asked()
stops_at_a_stop_text(text)
raises_the_class_its_documentation_promises()
print(f"openai {openai.__version__}: all good")
