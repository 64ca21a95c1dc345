// The interface in English and Japanese.

const english = {
  skip: "Skip to the message field",
  model: "Model",
  tools: "Chat",
  settings: "Settings",
  new: "New chat",
  welcome: "Ask a question to begin.",
  conversation: "Conversation",
  message: "Message",
  send: "Send",
  stop: "Stop",
  hint: "Enter sends. Shift+Enter starts a new line. Esc stops the answer.",
  you: "You",
  copy: "Copy",
  copied: "Copied",
  copyCode: "Copy code",
  again: "Regenerate",
  system: "System prompt",
  systemExample: "For example: Answer in one sentence.",
  temperature: "Temperature",
  temperatureNote: "0 always takes the most likely token.",
  topP: "Top-p",
  topPNote: "Sample from the most likely tokens that together reach this probability.",
  maxTokens: "Maximum tokens",
  seed: "Seed",
  random: "random",
  defaults: "Restore defaults",
  done: "Done",
  key: "API key",
  useKey: "Use this key",
  thinking: "Waiting for the answer",
  ended: "The answer is complete.",
  tokens: ({ completion }) => `${completion} ${completion === 1 ? "token" : "tokens"}`,
  rate: ({ rate }) => `${rate} tokens/s`,
  first: ({ seconds }) => `first token after ${seconds} s`,
  prompt: ({ prompt, cached }) => `prompt ${prompt} tokens${cached ? ` (${cached} from the cache)` : ""}`,
  seedOf: ({ seed }) => `seed ${seed}`,
  stopped: "stopped",
  length: "ended at the maximum number of tokens",
  aborted: "ended early by the server",
  unreachable: "The server cannot be reached. Check that it is running, then try again.",
  cut: "The connection ended before the answer was complete. Try again.",
  refusedKey: "The server needs an API key. Enter one to continue.",
  busy: ({ seconds }) => `The server is busy. Try again in ${seconds} ${seconds === 1 ? "second" : "seconds"}.`,
  status: ({ status, detail }) => `The server refused the request (HTTP ${status})${detail ? `: ${detail}` : "."}`,
  failed: ({ detail }) => `The server could not finish the answer: ${detail}`,
  noModel: "The server has no model.",
  unsaved: "The browser cannot save this conversation: its storage is full or disabled.",
};

const japanese = {
  skip: "メッセージ欄へ移動",
  model: "モデル",
  tools: "チャット",
  settings: "設定",
  new: "新しいチャット",
  welcome: "質問を入力してください。",
  conversation: "会話",
  message: "メッセージ",
  send: "送信",
  stop: "停止",
  hint: "Enterで送信、Shift+Enterで改行、Escで回答を停止します。",
  you: "あなた",
  copy: "コピー",
  copied: "コピーしました",
  copyCode: "コードをコピー",
  again: "もう一度回答",
  system: "システムプロンプト",
  systemExample: "例：一文で答えてください。",
  temperature: "温度",
  temperatureNote: "0のとき、常に最も確率の高いトークンを選びます。",
  topP: "Top-p",
  topPNote: "確率の合計がこの値に達するまでの上位のトークンから選びます。",
  maxTokens: "最大トークン数",
  seed: "シード",
  random: "ランダム",
  defaults: "初期値に戻す",
  done: "完了",
  key: "APIキー",
  useKey: "このキーを使う",
  thinking: "回答を待っています",
  ended: "回答が完了しました。",
  tokens: ({ completion }) => `${completion}トークン`,
  rate: ({ rate }) => `毎秒${rate}トークン`,
  first: ({ seconds }) => `最初の文字まで${seconds}秒`,
  prompt: ({ prompt, cached }) => `入力${prompt}トークン${cached ? `（キャッシュ${cached}）` : ""}`,
  seedOf: ({ seed }) => `シード${seed}`,
  stopped: "停止しました",
  length: "最大トークン数に達しました",
  aborted: "サーバーが回答を打ち切りました",
  unreachable: "サーバーに接続できません。サーバーが動いていることを確かめて、もう一度お試しください。",
  cut: "回答の途中で接続が切れました。もう一度お試しください。",
  refusedKey: "このサーバーにはAPIキーが必要です。キーを入力してください。",
  busy: ({ seconds }) => `サーバーが混み合っています。${seconds}秒後にもう一度お試しください。`,
  status: ({ status, detail }) => `サーバーがリクエストを受け付けませんでした（HTTP ${status}）${detail ? `：${detail}` : "。"}`,
  failed: ({ detail }) => `サーバーが回答を完了できませんでした：${detail}`,
  noModel: "サーバーにモデルがありません。",
  unsaved: "この会話はブラウザーに保存されません。保存領域がいっぱいか、無効になっています。",
};

export const languages = { en: english, ja: japanese };

/** Return a text of the interface; `values` fill its places. */
export function text(language, name, values = {}) {
  const found = languages[language][name];
  return typeof found === "function" ? found(values) : found;
}

/** Write the interface in a language: texts, labels and placeholders of all marked elements under `root`. */
export function translate(root, language) {
  for (const element of root.querySelectorAll("[data-text]")) element.textContent = text(language, element.dataset.text);
  for (const element of root.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", text(language, element.dataset.label));
  }
  for (const element of root.querySelectorAll("[data-placeholder]")) {
    element.placeholder = text(language, element.dataset.placeholder);
  }
}
