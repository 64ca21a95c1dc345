// Requests to the server, and the events of a streamed answer.

/** Why there is no answer, or only a part of one. `text` names a text of the interface, `values` fill its places. */
export class Problem extends Error {
  constructor(text, values = {}) {
    super(text);
    this.text = text;
    this.values = values;
  }
}

/** Return the names of the models that the server has. */
export async function listModels(key) {
  const response = await request("v1/models", key, {});
  return (await response.json()).data.map((model) => model.id);
}

/** Yield the chunks of a chat completion. `signal` ends the request, and the server stops computing. */
export async function* streamChat(body, key, signal) {
  const response = await request("v1/chat/completions", key, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  for await (const data of events(response.body, signal)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Problem("failed", { detail: oneLine(chunk.error.message) });
    yield chunk;
  }
  throw new Problem("cut");
}

async function request(path, key, options) {
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Problem("unreachable");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  if (response.status === 401) return new Problem("refusedKey");
  if (response.status === 429 || response.status === 503) {
    const seconds = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
    return new Problem("busy", { seconds: seconds > 0 ? seconds : 5 });
  }
  let detail = "";
  try {
    detail = oneLine((await response.json()).error.message);
  } catch {
    // The status says enough.
  }
  return new Problem("status", { status: response.status, detail });
}

/** Yield the data of server-sent events. Lines may be cut anywhere, also inside a character. */
async function* events(stream, signal) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  for (;;) {
    let read;
    try {
      read = await reader.read();
    } catch (error) {
      throw signal.aborted ? error : new Problem("cut");
    }
    if (read.done) return;
    const lines = (rest + read.value).split("\n");
    rest = lines.pop();
    for (const line of lines.map((each) => each.replace(/\r$/, ""))) {
      if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
      else if (line === "" && data.length) {
        yield data.join("\n");
        data = [];
      }
    }
  }
}

function oneLine(message) {
  return String(message ?? "").replace(/\s+/g, " ").slice(0, 300);
}
