// What the browser keeps: the conversation, the settings and the language in localStorage; the API key until the tab is closed.

export const defaults = { system: "", temperature: 0.8, topP: 0.95, maxTokens: 1024, seed: "" };

function read(storage, name, otherwise) {
  try {
    return JSON.parse(storage().getItem(`plamo2.${name}`)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

/** Keep a value; returns whether the browser could. */
function write(storage, name, value) {
  try {
    storage().setItem(`plamo2.${name}`, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

// A browser that blocks storage throws at the mere access.
const local = () => localStorage;
const session = () => sessionStorage;

export const loadMessages = () => {
  const found = read(local, "messages", []);
  const valid = (message) => typeof message?.content === "string" && ["user", "assistant"].includes(message.role);
  return Array.isArray(found) ? found.filter(valid) : [];
};
export const saveMessages = (messages) => write(local, "messages", messages);
export const loadSettings = () => ({ ...defaults, ...read(local, "settings", {}) });
export const saveSettings = (settings) => write(local, "settings", settings);
export const loadModel = () => read(local, "model", "");
export const saveModel = (model) => write(local, "model", model);
export const loadLanguage = () => read(local, "language", navigator.language.toLowerCase().startsWith("ja") ? "ja" : "en");
export const saveLanguage = (language) => write(local, "language", language);
export const loadKey = () => read(session, "key", "");
export const saveKey = (key) => write(session, "key", key);
