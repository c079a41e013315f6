// The exceptions that the official openai package for Node promises, one by one, against a running hive.
// OPENAI_BASE_URL and OPENAI_API_KEY come from `hivectl up --print-env`; HIVE_SCRIPTED is a scripted worker's model,
// HIVE_GONE one that nobody serves any more; HIVE_NARROW_KEY may call neither, HIVE_POOR_KEY one request a minute.
import assert from "node:assert/strict";
import OpenAI from "openai";

const { HIVE_SCRIPTED: scripted, HIVE_GONE, HIVE_NARROW_KEY, HIVE_POOR_KEY } = process.env;
const ask = (said, { key, options, ...more } = {}) =>
  new OpenAI({ maxRetries: 0, ...(key && { apiKey: key }) }).chat.completions.create(
    { model: scripted, messages: [{ role: "user", content: said }], ...more },
    options,
  );
const slow = '{"first_token_ms": 20000}';

await ask("hi", { key: HIVE_POOR_KEY });
const refusals = [
  [OpenAI.BadRequestError, 400, "invalid_request", ask("hi", { temperature: 9 })],
  [OpenAI.BadRequestError, 400, "context_length_exceeded", ask("word ".repeat(5000))],
  [OpenAI.AuthenticationError, 401, "invalid_api_key", ask("hi", { key: "wrong" })],
  [OpenAI.PermissionDeniedError, 403, "model_not_allowed", ask("hi", { key: HIVE_NARROW_KEY })],
  [OpenAI.NotFoundError, 404, "model_not_found", ask("hi", { model: "no-such-model" })],
  [OpenAI.APIError, 413, "request_too_large", ask("x".repeat(9_000_000))],
  [OpenAI.RateLimitError, 429, "rate_limit_exceeded", ask("hi", { key: HIVE_POOR_KEY })],
  [OpenAI.InternalServerError, 502, "worker_failed", ask('{"fault": {"kind": "http_500"}}')],
  [OpenAI.InternalServerError, 503, "no_worker", ask("hi", { model: HIVE_GONE })],
  [OpenAI.InternalServerError, 504, "deadline_exceeded", ask(slow, { options: { headers: { "x-hive-deadline-ms": "50" } } })],
];
const raises = ([kind, status, code, refused]) =>
  assert.rejects(refused, (error) => {
    assert.equal(error.constructor, kind, error);
    assert.deepEqual([error.status, error.code, Boolean(error.requestID)], [status, code, true]);
    return true;
  });
await Promise.all(refusals.map(raises));
// An operator's hand.
const control = (method, path) =>
  fetch(process.env.HIVE_CONTROL_URL + path, { method, headers: { authorization: `Bearer ${process.env.HIVE_ADMIN_KEY}` } });
const cancelled = raises([OpenAI.ConflictError, 409, "cancelled", ask(slow)]);
for (let running; !running; ) {
  const requests = await (await control("GET", "/control/v1/requests?limit=20")).json();
  running = requests.find((request) => request.state === "running");
  if (running) await control("POST", `/control/v1/requests/${running.id}/cancel`);
}
await cancelled;
await assert.rejects(ask(slow, { options: { timeout: 200 } }), OpenAI.APIConnectionTimeoutError);
let text = "";
await assert.rejects(async () => {
  const lost = await ask('{"tokens": ["a", " b", " c"], "fault": {"at": 2, "kind": "truncate"}}', { stream: true });
  for await (const chunk of lost) text += chunk.choices[0]?.delta?.content ?? "";
}, (error) => error instanceof OpenAI.APIError && error.code === "worker_lost");
assert.equal(text, "a b");
console.log("openai for node: all good");
