// Node's fetch against a hive whose worker says nothing for longer than that fetch waits: its limits of 300 s for headers
// and between two pieces of a body are lowered to 2 s, and the hive's own comments come as much sooner.
// OPENAI_BASE_URL and OPENAI_API_KEY come from `hivectl up --print-env`; HIVE_SCRIPTED is a scripted worker's model.
import assert from "node:assert/strict";
import { Agent, fetch } from "undici";

const dispatcher = new Agent({ headersTimeout: 2000, bodyTimeout: 2000 });
const ask = (stream) =>
  fetch(`${process.env.OPENAI_BASE_URL}/chat/completions`, {
    method: "POST",
    dispatcher,
    headers: { authorization: `Bearer ${process.env.OPENAI_API_KEY}`, "content-type": "application/json" },
    body: JSON.stringify({
      model: process.env.HIVE_SCRIPTED,
      stream,
      messages: [{ role: "user", content: '{"tokens": ["at", " last"], "first_token_ms": 6000, "interval_ms": 6000}' }],
    }),
  });

// The limits hold: an answer in one piece cannot be kept alive.
await assert.rejects(ask(false), (error) => error.cause.code === "UND_ERR_HEADERS_TIMEOUT");
const began = performance.now();
const text = await (await ask(true)).text();
assert(performance.now() - began > 6000);
assert.match(text, /: ping/);
const chunks = text.split("\n").filter((line) => line.startsWith("data: {")).map((line) => JSON.parse(line.slice(6)));
assert.equal(chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join(""), "at last");
assert(text.endsWith("data: [DONE]\n\n"));
console.log("undici: all good");
