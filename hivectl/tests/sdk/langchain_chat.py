"""LangChain against a running hive, as its users would write it.

OPENAI_BASE_URL, OPENAI_API_KEY and HIVE_MODEL come from `hivectl up --print-env`.
"""

import os

import langchain_openai
import openai
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

MODEL = os.environ["HIVE_MODEL"]


def model(**arguments):
    return ChatOpenAI(model=MODEL, temperature=0, max_retries=0, **arguments)


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class City(BaseModel):
    """A city and its country."""

    city: str
    country: str


question = [SystemMessage("You are brief."), HumanMessage("Name a city in France.")]
answer = model(max_tokens=12).invoke(question)
assert answer.content and answer.usage_metadata["output_tokens"] <= 12, answer
pieces = list(model(max_tokens=12, stream_usage=True).stream(question))
assert "".join(piece.content for piece in pieces) == answer.content, pieces
total = sum(piece.usage_metadata["total_tokens"] for piece in pieces if piece.usage_metadata)
assert total == answer.usage_metadata["total_tokens"], total

called = model(max_tokens=60).bind_tools([add], tool_choice="add").invoke("What is 3 and 4?")
(call,) = called.tool_calls
assert call["name"] == "add" and set(call["args"]) == {"a", "b"}, called
result = add.invoke(call["args"])
history = [HumanMessage("What is 3 and 4?"), called, ToolMessage(str(result), tool_call_id=call["id"])]
assert isinstance(model(max_tokens=8).invoke(history), AIMessage)

for method in ("json_schema", "function_calling"):
    city = model(max_tokens=60).with_structured_output(City, method=method).invoke("Name a city in France.")
    assert isinstance(city, City), (method, city)

try:
    ChatOpenAI(model="no-such-model", max_retries=0).invoke("hi")
except openai.NotFoundError as error:
    assert error.code == "model_not_found", error
else:
    raise AssertionError("a model that is not there answered")
print(f"langchain-openai {getattr(langchain_openai, '__version__', '')}: all good")
