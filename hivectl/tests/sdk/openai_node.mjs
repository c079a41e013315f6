// The official openai package for Node against a running hive, as its users would write it.
// OPENAI_BASE_URL, OPENAI_API_KEY and HIVE_MODEL come from `hivectl up --print-env`.
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI();
const model = process.env.HIVE_MODEL;
const messages = [{ role: "user", content: "Name three colours of the rainbow." }];

const listed = [];
for await (const each of client.models.list()) listed.push(each.id);
assert(listed.includes(model), listed);

const whole = await client.chat.completions.create({ model, messages, max_tokens: 12, temperature: 0 });
assert(whole.choices[0].message.content);
assert.equal(whole.usage.total_tokens, whole.usage.prompt_tokens + whole.usage.completion_tokens);

const stream = await client.chat.completions.create({
  model, messages, max_tokens: 12, temperature: 0, stream: true, stream_options: { include_usage: true },
});
let text = "", usage = null, pieces = 0;
for await (const chunk of stream) {
  const piece = chunk.choices[0]?.delta?.content;
  if (piece) { text += piece; pieces += 1; }
  usage = chunk.usage ?? usage;
}
assert.equal(text, whole.choices[0].message.content);
assert.deepEqual(usage, whole.usage);
assert(pieces > 1);

const helper = client.chat.completions.stream({ model, messages, max_tokens: 6, temperature: 0 });
const final = await helper.finalChatCompletion();
assert.equal(final.choices[0].finish_reason, "length");

const parameters = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "get_weather", strict: true, parameters } }];
const called = await client.chat.completions
  .stream({ model, messages, tools, tool_choice: "required", parallel_tool_calls: false, max_tokens: 60, temperature: 0 })
  .finalChatCompletion();
const [call] = called.choices[0].message.tool_calls;
assert.equal(called.choices[0].finish_reason, "tool_calls");
assert.equal(call.function.name, "get_weather");
assert.deepEqual(Object.keys(JSON.parse(call.function.arguments)), ["city"]);

const parsed = await client.chat.completions.parse({
  model, messages, max_tokens: 60, temperature: 0,
  response_format: { type: "json_schema", json_schema: { name: "place", strict: true, schema: parameters } },
});
assert.equal(typeof JSON.parse(parsed.choices[0].message.content).city, "string");

await assert.rejects(
  client.chat.completions.create({ model: "no-such-model", messages }, { maxRetries: 0 }),
  (error) => error instanceof OpenAI.NotFoundError && error.code === "model_not_found" && Boolean(error.requestID),
);
console.log("openai for node: all good");
