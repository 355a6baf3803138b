// Keeps tags in the visitor's own browser, by change, and gives all that is kept to a new session.
export default function ({ data, setTriggerValue }) {
  try {
    const { name, change, known } = data;
    if (change && sessionStorage.getItem(name) !== change.id) {
      let kept = {};
      try {
        kept = JSON.parse(localStorage.getItem(name)) || {};
      } catch {} // whoever wrote that, it is of no use
      for (const [bundle, tags] of Object.entries(change.bundles)) {
        const own = { ...kept[bundle], ...tags };
        kept[bundle] = Object.fromEntries(Object.entries(own).filter(([, text]) => text));
      }
      localStorage.setItem(name, JSON.stringify(kept));
      sessionStorage.setItem(name, change.id);
    }
    if (!known && localStorage.getItem(name)) setTriggerValue("loaded", localStorage.getItem(name));
  } catch {} // a browser may forbid storage: then tags last as long as the session
}
