// OpenAI's client for Node.
const assert = require("node:assert");
const { OpenAI } = require("openai");
const { url, key, run, QUESTION, TIMEOUT_MS } = require("./steps.cjs");

const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, timeout: TIMEOUT_MS, maxRetries: 0 });
const asked = { model: "base", messages: [{ role: "user", content: QUESTION }], max_tokens: 12 };
const parameters = {
  type: "object",
  properties: { city: { type: "string", enum: ["Lisbon", "Porto"] } },
  required: ["city"],
  additionalProperties: false,
};

async function chat() {
  const reply = await client.chat.completions.create(asked);
  assert(reply.choices[0].message.content && reply.usage.total_tokens > 0);
}

async function stream() {
  let text = "";
  for await (const chunk of await client.chat.completions.create({ ...asked, stream: true }))
    text += chunk.choices[0]?.delta?.content ?? "";
  assert(text);
}

async function toolCall() {
  const reply = await client.chat.completions.create({
    ...asked,
    max_tokens: 60,
    tools: [{ type: "function", function: { name: "weather", parameters, strict: true } }],
    tool_choice: { type: "function", function: { name: "weather" } },
  });
  const [call] = reply.choices[0].message.tool_calls;
  assert(parameters.properties.city.enum.includes(JSON.parse(call.function.arguments).city));
}

async function embeddings() {
  const reply = await client.embeddings.create({ model: "text-embedding-ada-002", input: ["one", "two"] });
  assert.equal(reply.data.length, 2);
  const norm = reply.data[0].embedding.reduce((sum, x) => sum + x * x, 0);
  assert(Math.abs(norm - 1) < 1e-3, `squared length ${norm}`);
}

async function responses() {
  const first = await client.responses.create({ model: "base", input: QUESTION, max_output_tokens: 12 });
  assert(first.output_text);
  const stream = await client.responses.create({
    model: "base", input: "And of Spain?", previous_response_id: first.id, max_output_tokens: 12, stream: true,
  });
  const types = [];
  for await (const event of stream) types.push(event.type);
  assert(types.includes("response.output_text.delta"), String(types));
}

run(chat, stream, toolCall, embeddings, responses);
