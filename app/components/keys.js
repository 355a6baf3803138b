// Keys that work anywhere on the page, unless a control has the focus that uses them itself.
export default function ({ data, setTriggerValue }) {
  const own = "input, textarea, select, [contenteditable=true], [role=slider], [role=radio], [role=combobox], [role=listbox], [role=dialog] *";
  function pressed(event) {
    const path = event.composedPath();
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (path.some((element) => element.matches && element.matches(own))) return;
    if (event.key === "/" && data.find) {
      const field = document.querySelector(`input[aria-label="${data.find}"]`);
      if (field) (event.preventDefault(), field.focus(), field.select());
    } else if (data.keys.includes(event.key)) {
      event.preventDefault();
      setTriggerValue("pressed", event.key);
    }
  }
  document.addEventListener("keydown", pressed);
  return () => document.removeEventListener("keydown", pressed);
}
