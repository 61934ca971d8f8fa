// The AI SDK with its provider for servers that speak OpenAI's interface.
const assert = require("node:assert");
const { createOpenAICompatible } = require("@ai-sdk/openai-compatible");
const { generateObject, generateText, jsonSchema, embed, streamText, tool } = require("ai");
const { url, key, run, QUESTION } = require("./steps.cjs");

const provider = createOpenAICompatible({
  name: "sharpwave", baseURL: `${url}/v1`, apiKey: key, includeUsage: true, supportsStructuredOutputs: true,
});
const asked = { model: provider("base"), prompt: QUESTION, maxOutputTokens: 12, maxRetries: 0 };
const place = jsonSchema({
  type: "object",
  properties: { city: { type: "string", enum: ["Lisbon", "Porto"] } },
  required: ["city"],
  additionalProperties: false,
});

async function generate() {
  const { text, usage } = await generateText(asked);
  assert(text && usage.outputTokens > 0, JSON.stringify(usage));
}

async function stream() {
  const result = streamText({ ...asked, onError: ({ error }) => { throw error; } });
  let text = "";
  for await (const piece of result.textStream) text += piece;
  assert(text && (await result.usage).outputTokens > 0);
}

async function toolCall() {
  const ran = [];
  const weather = tool({
    description: "The weather of a city",
    inputSchema: place,
    execute: async ({ city }) => ran.push(city) && "sunny",
  });
  const providerOptions = { sharpwave: { parallel_tool_calls: false } }; // a small model calls until it is cut
  await generateText({ ...asked, maxOutputTokens: 60, tools: { weather }, toolChoice: "required", providerOptions });
  assert(["Lisbon", "Porto"].includes(ran[0]), String(ran));
}

async function object() {
  const { object } = await generateObject({ ...asked, maxOutputTokens: 60, schema: place });
  assert(["Lisbon", "Porto"].includes(object.city));
}

async function embedding() {
  const model = provider.textEmbeddingModel("text-embedding-ada-002");
  const { embedding } = await embed({ model, value: "one", maxRetries: 0 });
  assert(embedding.length > 100);
}

run(generate, stream, toolCall, object, embedding);
