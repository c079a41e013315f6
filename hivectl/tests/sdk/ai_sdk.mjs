// Vercel's AI SDK against a running hive, as its users would write it, by both of its providers for such servers.
// OPENAI_BASE_URL, OPENAI_API_KEY and HIVE_MODEL come from `hivectl up --print-env`; HIVE_SCRIPTED is a scripted worker's
// model, HIVE_GONE one that nobody serves any more; HIVE_NARROW_KEY may call neither, HIVE_POOR_KEY one request a minute.
import assert from "node:assert/strict";
import {
  APICallError, NoObjectGeneratedError, Output, embedMany, generateObject, generateText, stepCountIs, streamObject,
  streamText, tool,
} from "ai";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { z } from "zod";

const { OPENAI_BASE_URL: baseURL, HIVE_MODEL: model, HIVE_SCRIPTED: scripted } = process.env;
const providers = {
  openai: (apiKey) => {
    const provider = createOpenAI({ baseURL, apiKey });
    return { chat: (id) => provider.chat(id), embedding: (id) => provider.embedding(id) };
  },
  "openai-compatible": (apiKey) => {
    const settings = { name: "hive", baseURL, apiKey, includeUsage: true, supportsStructuredOutputs: true };
    const provider = createOpenAICompatible(settings);
    return { chat: (id) => provider.chatModel(id), embedding: (id) => provider.embeddingModel(id) };
  },
};
const weather = (execute) => tool({
  description: "The weather in a city.",
  inputSchema: z.object({ city: z.string().max(20), unit: z.enum(["C", "F"]).nullable() }),
  execute,
});
const colour = z.object({ name: z.string().max(20), warm: z.boolean() });

for (const [name, provider] of Object.entries(providers)) {
  const { chat, embedding } = provider(process.env.OPENAI_API_KEY);
  await answersWholeAndStreamed(chat(model));
  await callsToolsAndGoesOn(chat(model));
  await fillsAnObject(chat(model));
  await embedsManyInOrder(embedding(scripted));
  await raisesWhatItsDocumentationPromises(provider);
  console.log(`${name}: all good`);
}

async function answersWholeAndStreamed(model) {
  const asked = {
    model, maxOutputTokens: 12, temperature: 0, system: "You are brief.", prompt: "Name three colours.", maxRetries: 0,
  };
  const whole = await generateText(asked);
  assert(whole.text && ["stop", "length"].includes(whole.finishReason), whole.finishReason);
  assert.equal(whole.usage.inputTokens + whole.usage.outputTokens, whole.usage.totalTokens);
  const stream = streamText(asked);
  let pieces = 0, text = "";
  for await (const piece of stream.textStream) { pieces += 1; text += piece; }
  assert(pieces > 1);
  assert.equal(text, whole.text);
  assert.equal((await stream.usage).totalTokens, whole.usage.totalTokens);
  assert.equal((await stream.response).id.slice(0, 9), "chatcmpl-");
}

async function callsToolsAndGoesOn(model) {
  const heard = [];
  const asked = {
    model, maxOutputTokens: 60, temperature: 0, prompt: "How is the weather in Rome?", maxRetries: 0,
    tools: { weather: weather(async (input) => { heard.push(input); return `sunny in ${input.city}`; }) },
    // The first step must call, the second must answer.
    stopWhen: stepCountIs(2),
    prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber ? "none" : { type: "tool", toolName: "weather" } }),
  };
  const whole = await generateText(asked);
  assert.deepEqual(whole.steps.map((step) => step.finishReason === "tool-calls"), [true, false]);
  assert.equal(whole.steps[0].toolCalls[0].toolName, "weather");
  const stream = streamText(asked);
  await stream.consumeStream();
  assert.equal((await stream.steps).length, 2);
  assert.equal(heard.length, 2);
  assert.deepEqual(heard[0], heard[1]);
  assert.deepEqual(Object.keys(heard[0]), ["city", "unit"]);
}

async function fillsAnObject(model) {
  const asked = { model, maxOutputTokens: 60, temperature: 0, prompt: "Describe the colour red.", maxRetries: 0 };
  const { object } = await generateObject({ ...asked, schema: colour });
  assert.equal(typeof object.warm, "boolean");
  const stream = streamObject({ ...asked, schema: colour });
  for await (const _ of stream.partialObjectStream);
  assert.deepEqual(await stream.object, object);
  const { output } = await generateText({ ...asked, output: Output.choice({ options: ["warm", "cold"] }) });
  assert(["warm", "cold"].includes(output), output);
  await assert.rejects(
    generateObject({ ...asked, maxOutputTokens: 2, schema: colour }),
    (error) => NoObjectGeneratedError.isInstance(error) && error.finishReason === "length",
  );
}

async function embedsManyInOrder(model) {
  const { embeddings, usage } = await embedMany({ model, values: ["sunny", "rainy", "sunny"], maxRetries: 0 });
  assert.deepEqual(embeddings[0], embeddings[2]);
  assert.notDeepEqual(embeddings[0], embeddings[1]);
  assert(usage.tokens > 0);
}

async function raisesWhatItsDocumentationPromises(provider) {
  const ask = (more, key = process.env.OPENAI_API_KEY) =>
    generateText({ prompt: "hi", maxRetries: 0, ...more, model: provider(key).chat(more.model ?? scripted) });
  const refusals = [
    [400, false, "invalid_request", () => ask({ temperature: 9 })],
    [400, false, "context_length_exceeded", () => ask({ prompt: "word ".repeat(5000) })],
    [401, false, "invalid_api_key", () => ask({}, "wrong")],
    [403, false, "model_not_allowed", () => ask({}, process.env.HIVE_NARROW_KEY)],
    [404, false, "model_not_found", () => ask({ model: "no-such-model" })],
    [413, false, "request_too_large", () => ask({ prompt: "x".repeat(9_000_000) })],
    [429, true, "rate_limit_exceeded", async () => { for (;;) await ask({}, process.env.HIVE_POOR_KEY); }],
    [502, true, "worker_failed", () => ask({ prompt: '{"fault": {"kind": "http_500"}}' })],
    [503, true, "no_worker", () => ask({ model: process.env.HIVE_GONE })],
    [504, true, "deadline_exceeded", () => ask({ prompt: '{"first_token_ms": 9000}', headers: { "x-hive-deadline-ms": "50" } })],
  ];
  for (const [status, isRetryable, code, refused] of refusals) {
    await assert.rejects(refused, (error) => {
      assert(APICallError.isInstance(error), error);
      const told = JSON.parse(error.responseBody).error;
      assert.deepEqual([error.statusCode, error.isRetryable, told.code], [status, isRetryable, code]);
      // The message is ours, not the status line that stands in where an envelope cannot be read.
      assert.equal(error.message, told.message);
      return true;
    });
  }
  const late = ask({ prompt: '{"first_token_ms": 9000}', abortSignal: AbortSignal.timeout(50) });
  await assert.rejects(late, { name: "TimeoutError" });
  const errors = [];
  const prompt = '{"tokens": ["a", " b", " c", " d"], "fault": {"at": 3, "kind": "truncate"}}';
  const model = provider(process.env.OPENAI_API_KEY).chat(scripted);
  const lost = streamText({ model, prompt, maxRetries: 0, onError: ({ error }) => errors.push(error) });
  let text = "";
  for await (const piece of lost.textStream) text += piece;
  assert.equal(text, "a b c");
  assert.match(JSON.stringify(errors), /worker_lost/);
  assert.equal(await lost.finishReason, "error");
}
