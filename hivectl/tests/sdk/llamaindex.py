"""LlamaIndex against a running hive, as its users would write it.

OPENAI_BASE_URL, OPENAI_API_KEY and HIVE_MODEL come from `hivectl up --print-env`; HIVE_SCRIPTED is a scripted worker's
model, which also embeds.
"""

import os

import openai
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

HIVE = {"api_base": os.environ["OPENAI_BASE_URL"], "api_key": os.environ["OPENAI_API_KEY"], "max_retries": 0}


def model(name=os.environ["HIVE_MODEL"], **more):
    abilities = {"is_chat_model": True, "is_function_calling_model": True, "context_window": 8192}
    return OpenAILike(**{**HIVE, "model": name, "temperature": 0, **abilities, **more})


class Colour(BaseModel):
    """A colour of the rainbow."""

    name: str
    warm: bool


def weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


QUESTION = [ChatMessage(role="system", content="You are brief."), ChatMessage(role="user", content="Name a colour.")]


def chats_and_streams_the_same():
    whole = model(max_tokens=8).chat(QUESTION).message.content
    pieces = [piece.delta for piece in model(max_tokens=8).stream_chat(QUESTION)]
    assert whole and len(pieces) > 1 and "".join(pieces) == whole, (whole, pieces)


def goes_on_from_a_text():
    told = model(max_tokens=4, is_chat_model=False)
    assert "".join(piece.delta for piece in told.stream_complete("One, two,")) == told.complete("One, two,").text != ""


def calls_its_tool():
    tool = FunctionTool.from_defaults(weather)
    answer = model(max_tokens=40).chat_with_tools([tool], user_msg="How is the weather in Rome?", tool_required=True)
    (call,) = model().get_tool_calls_from_response(answer)
    assert call.tool_name == "weather" and set(call.tool_kwargs) == {"city"}, call
    assert str(tool(**call.tool_kwargs)).startswith("sunny in "), call


def fills_a_class_of_the_users():
    for how in ({"should_use_structured_outputs": True}, {}):
        colour = model(max_tokens=40, **how).as_structured_llm(Colour).chat(QUESTION).raw
        assert isinstance(colour, Colour), (how, colour)


def retrieves_what_is_nearest():
    embedder = OpenAILikeEmbedding(model_name=os.environ["HIVE_SCRIPTED"], **HIVE)
    texts = ["bees make honey", "rivers run to the sea"]
    index = VectorStoreIndex.from_documents([Document(text=text) for text in texts], embed_model=embedder)
    (found,) = index.as_retriever(similarity_top_k=1).retrieve(texts[1])
    assert found.text == texts[1], found


def raises(kind, **how):
    """Its errors are those of the openai package."""
    try:
        list(model(**{"name": os.environ["HIVE_SCRIPTED"], **how}).stream_chat(QUESTION))
    except kind as error:
        assert type(error) is kind, error
    else:
        raise AssertionError(f"{kind.__name__} was expected")


chats_and_streams_the_same()
goes_on_from_a_text()
calls_its_tool()
fills_a_class_of_the_users()
retrieves_what_is_nearest()
raises(openai.AuthenticationError, api_key="wrong")
raises(openai.PermissionDeniedError, api_key=os.environ["HIVE_NARROW_KEY"])
raises(openai.NotFoundError, name="no-such-model")
raises(openai.BadRequestError, additional_kwargs={"top_p": 9})
raises(openai.InternalServerError, name=os.environ["HIVE_GONE"])
print("llama-index: all good")
