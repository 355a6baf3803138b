// Keeps a text in the visitor's own browser, and gives it back to a new session.
export default function ({ data, setTriggerValue }) {
  try {
    if (data.text !== null) localStorage.setItem(data.name, data.text);
    else if (localStorage.getItem(data.name)) setTriggerValue("loaded", localStorage.getItem(data.name));
  } catch {} // a browser may forbid storage: then the text lasts as long as the session
}
