// As ../steps.py: URL and KEY are the arguments; prints `ok STEP` or `failed STEP: WHY` for each step.
const [url, key] = process.argv.slice(2);

async function run(...steps) {
  for (const step of steps) {
    const name = step.name.replace(/([A-Z])/g, " $1").toLowerCase();
    try {
      await step();
      console.log(`ok ${name}`);
    } catch (error) {
      console.error(error);
      console.log(`failed ${name}: ${String(error).replace(/\s+/g, " ")}`);
      process.exitCode = 1;
    }
  }
}

const QUESTION = "What is the capital of France?";
module.exports = { url, key, run, QUESTION, TIMEOUT_MS: 180_000 };
