"""A stream that does not end by itself: prints `began` with its first token, and the code of the error it ends with."""

import json
import os
import urllib.request

END = 2  # The model's token for the end of an answer; without it there is none.
body = {
    "model": os.environ["HIVE_MODEL"],
    "messages": [{"role": "user", "content": "Tell a story."}],
    "stream": True,
    "max_tokens": 7000,
    "logit_bias": {str(END): -100},
}
request = urllib.request.Request(
    os.environ["OPENAI_BASE_URL"] + "/chat/completions",
    json.dumps(body).encode(),
    {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "Content-Type": "application/json"},
)
began, last = False, ""
with urllib.request.urlopen(request, timeout=60) as answer:
    for line in answer:
        text = line.decode().strip().removeprefix("data: ")
        if text:
            last = text
        if not began and '"content":"' in text and '"content":""' not in text:
            began = True
            print("began", flush=True)
assert last != "[DONE]", "it ended by itself"
print(json.loads(last)["error"]["code"])
