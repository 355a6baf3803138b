// A dialog keeps the Tab key within itself and passes over what lies in a component's shadow tree. While it is open, each
// such tree with something to reach is a stop, which hands the focus on to its own.
export default function ({ parentElement }) {
  const dialog = parentElement.querySelector("span").getRootNode().host.closest("[role=dialog]");
  const own = '[tabindex="0"], a[href]:not([tabindex]), button:not([tabindex], [disabled])';
  const stop = (host) => host.shadowRoot?.querySelector(own);
  function mark(event) {
    if (event.key !== "Tab") return;
    for (const host of dialog.querySelectorAll("*")) if (host.shadowRoot) stop(host) ? (host.tabIndex = 0) : host.removeAttribute("tabindex");
  }
  function handOn({ target }) {
    if (target.shadowRoot && !target.shadowRoot.activeElement) stop(target)?.focus();
  }
  document.addEventListener("keydown", mark, true); // before the dialog looks for its next stop
  dialog.addEventListener("focusin", handOn);
  return () => {
    document.removeEventListener("keydown", mark, true);
    dialog.removeEventListener("focusin", handOn);
  };
}
