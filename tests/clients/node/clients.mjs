// Clients of Node against a running gateway: node clients.mjs URL, URL being that of /v1. Prints a line for each, with
// its version; ends with 1 when one of them did not get what it asked for.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import OpenAI from "openai";
import Anthropic from "@anthropic-ai/sdk";
import { Ollama } from "ollama";
import { generateObject, generateText, streamText, tool } from "ai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { z } from "zod";

const url = process.argv[2].replace(/\/$/, "");
const root = url.replace(/\/v1$/, "");
const openai = new OpenAI({ baseURL: url, apiKey: "unused", maxRetries: 0 });
const anthropic = new Anthropic({ baseURL: root, apiKey: "unused", maxRetries: 0 });
const ollama = new Ollama({ host: root });
const vercel = createOpenAICompatible({ name: "swarm", baseURL: url, supportsStructuredOutputs: true });
const model = (await openai.models.list()).data[0].id;
const messages = [{ role: "user", content: "Ada Lovelace, 36, as JSON." }];
const person = {
  type: "object",
  properties: { name: { type: "string", maxLength: 20 }, age: { type: "integer", minimum: 0, maximum: 130 } },
  required: ["name", "age"],
  additionalProperties: false,
};
const Person = z.object({ name: z.string().max(20), age: z.int().min(0).max(130) });

function isPerson(value) {
  const found = Person.parse(value);
  return `${found.name.length} characters, ${found.age} years`;
}

const trials = {
  "openai chat, streamed": async () => {
    const whole = await openai.chat.completions.create({ model, messages, max_tokens: 12, temperature: 0 });
    let text = "";
    const stream = await openai.chat.completions.create({
      model, messages, max_tokens: 12, temperature: 0, stream: true, stream_options: { include_usage: true },
    });
    let usage;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, whole.choices[0].message.content);
    assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
    return `${usage.completion_tokens} tokens`;
  },
  "openai tools, streamed": async () => {
    const runner = openai.chat.completions.stream({
      model, messages, tool_choice: "required",
      tools: [{ type: "function", function: { name: "keep", parameters: person } }],
    });
    const [call] = (await runner.finalChatCompletion()).choices[0].message.tool_calls;
    return isPerson(JSON.parse(call.function.arguments));
  },
  "openai json_schema": async () => {
    const format = { type: "json_schema", json_schema: { name: "person", strict: true, schema: person } };
    const told = await openai.chat.completions.create({ model, messages, response_format: format });
    return isPerson(JSON.parse(told.choices[0].message.content));
  },
  "openai responses": async () => {
    const first = await openai.responses.create({ model, input: "Name a river.", max_output_tokens: 12 });
    const stream = openai.responses.stream({
      model, input: "Another.", previous_response_id: first.id, max_output_tokens: 12,
    });
    const told = await stream.finalResponse();
    assert.ok(told.usage.input_tokens > first.usage.input_tokens);
    return told.status;
  },
  "openai cancelled": async () => {
    const stream = await openai.chat.completions.create({ model, messages, max_tokens: 2000, stream: true });
    let chunks = 0;
    for await (const _ of stream) if (++chunks === 3) break;
    return `after ${chunks} chunks`;
  },
  "@anthropic-ai/sdk messages": async () => {
    const asked = { model, max_tokens: 12, temperature: 0, messages };
    const whole = await anthropic.messages.create(asked);
    const final = await anthropic.messages.stream(asked).finalMessage();
    assert.deepEqual(final.content, whole.content);
    const counted = await anthropic.messages.countTokens({ model, messages });
    assert.equal(counted.input_tokens, whole.usage.input_tokens + (whole.usage.cache_read_input_tokens ?? 0));
    return whole.stop_reason;
  },
  "@anthropic-ai/sdk tools": async () => {
    const told = await anthropic.messages.stream({
      model, max_tokens: 400, messages, tool_choice: { type: "tool", name: "keep" },
      tools: [{ name: "keep", input_schema: person }],
    }).finalMessage();
    return isPerson(told.content.find((block) => block.type === "tool_use").input);
  },
  "ollama chat, generate": async () => {
    const options = { temperature: 0, num_predict: 12 };
    const whole = await ollama.chat({ model, messages, options });
    let text = "";
    for await (const part of await ollama.chat({ model, messages, options, stream: true })) text += part.message.content;
    assert.equal(text, whole.message.content);
    assert.ok((await ollama.generate({ model, prompt: "A river", options })).done);
    assert.equal((await ollama.list()).models[0].name, model);
    return `${whole.eval_count} tokens`;
  },
  "ollama format": async () => {
    const told = await ollama.chat({ model, messages, format: person });
    return isPerson(JSON.parse(told.message.content));
  },
  "ai generateText, streamText": async () => {
    const asked = { model: vercel(model), prompt: "A river", maxOutputTokens: 12, temperature: 0, maxRetries: 0 };
    const whole = await generateText(asked);
    let text = "";
    for await (const part of streamText(asked).textStream) text += part;
    assert.equal(text, whole.text);
    return `${whole.usage.outputTokens} tokens`;
  },
  "ai generateObject": async () => {
    const told = await generateObject({ model: vercel(model), schema: Person, prompt: "Ada, 36", maxRetries: 0 });
    return isPerson(told.object);
  },
  "ai tools": async () => {
    let kept;
    await generateText({
      model: vercel(model), prompt: "Ada, 36", toolChoice: "required", maxRetries: 0,
      tools: { keep: tool({ inputSchema: Person, execute: async (value) => (kept = value) }) },
    });
    return isPerson(kept);
  },
};

let failed = 0;
for (const [name, trial] of Object.entries(trials)) {
  const own = name.split(" ")[0];
  const version = JSON.parse(readFileSync(new URL(`node_modules/${own}/package.json`, import.meta.url))).version;
  try {
    console.log(`ok      ${name} ${version}: ${await trial()}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED  ${name} ${version}: ${error.stack ?? error}`);
  }
}
process.exit(failed ? 1 : 0);
