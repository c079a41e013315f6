"""The exceptions that the official openai package promises, one by one, against a running hive.

OPENAI_BASE_URL, OPENAI_API_KEY, HIVE_CONTROL_URL and HIVE_ADMIN_KEY come from `hivectl up --print-env`; HIVE_SCRIPTED is a
scripted worker's model, HIVE_GONE one that nobody serves any more; HIVE_NARROW_KEY may call neither, HIVE_POOR_KEY one
request a minute.
"""

import json
import os
import threading
import urllib.request

import openai
from openai import OpenAI

SLOW = {"first_token_ms": 20000}


def ask(said="hi", key=os.environ["OPENAI_API_KEY"], model=os.environ["HIVE_SCRIPTED"], **how):
    said = json.dumps(said) if isinstance(said, dict) else said
    options = {name: how.pop(name) for name in ("timeout",) if name in how}
    chat = OpenAI(api_key=key, max_retries=0, **options).chat.completions
    return chat.create(model=model, messages=[{"role": "user", "content": said}], **how)


def raises(kind, status, code, *said, **how):
    try:
        ask(*said, **how)
    except openai.APIStatusError as error:
        assert (type(error), error.status_code, error.code) == (kind, status, code), (error, error.code)
        assert error.request_id and error.type and error.body["message"], error.body
    else:
        raise AssertionError(f"{kind.__name__} was expected")


def operator(method, path):
    headers = {"Authorization": "Bearer " + os.environ["HIVE_ADMIN_KEY"]}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(os.environ["HIVE_CONTROL_URL"] + path, method=method, headers=headers)) as answer:
        return json.loads(answer.read() or b"null")


def cancel_what_runs():
    while True:
        for request in operator("GET", "/control/v1/requests?limit=20"):
            if request["state"] == "running":
                return operator("POST", f"/control/v1/requests/{request['id']}/cancel")


raises(openai.BadRequestError, 400, "invalid_request", temperature=9)
raises(openai.BadRequestError, 400, "context_length_exceeded", "word " * 5000)
raises(openai.AuthenticationError, 401, "invalid_api_key", key="wrong")
raises(openai.PermissionDeniedError, 403, "model_not_allowed", key=os.environ["HIVE_NARROW_KEY"])
raises(openai.NotFoundError, 404, "model_not_found", model="no-such-model")
operators_hand = threading.Thread(target=cancel_what_runs)
operators_hand.start()
raises(openai.ConflictError, 409, "cancelled", SLOW)
operators_hand.join()
raises(openai.APIStatusError, 413, "request_too_large", "x" * 9_000_000)
ask(key=os.environ["HIVE_POOR_KEY"])
raises(openai.RateLimitError, 429, "rate_limit_exceeded", key=os.environ["HIVE_POOR_KEY"])
raises(openai.InternalServerError, 502, "worker_failed", {"fault": {"kind": "http_500"}})
raises(openai.InternalServerError, 503, "no_worker", model=os.environ["HIVE_GONE"])
raises(openai.InternalServerError, 504, "deadline_exceeded", SLOW, extra_headers={"x-hive-deadline-ms": "50"})
try:
    ask(SLOW, timeout=0.2)
except openai.APITimeoutError:
    pass
else:
    raise AssertionError("a client's own limit was not kept")
text = ""
try:
    for chunk in ask({"tokens": ["a", " b", " c"], "fault": {"at": 2, "kind": "truncate"}}, stream=True):
        text += chunk.choices[0].delta.content or ""
except openai.APIError as error:
    assert (type(error), error.code, text) == (openai.APIError, "worker_lost", "a b"), (error, text)
else:
    raise AssertionError("a cut stream was taken for a whole one")
print(f"openai {openai.__version__}: all good")
