// A text whose words are buttons: one stop of the Tab key, the arrow keys go on from word to word.
export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".passage");
  root.setAttribute("aria-label", data.label);
  root.setAttribute("aria-keyshortcuts", "ArrowLeft ArrowRight Home End");
  const focused = root.getRootNode().activeElement;
  const held = root.contains(focused) ? focused.dataset.word : undefined;
  root.dir = "auto";
  // A user's words are never read as HTML.
  root.replaceChildren(...data.pieces.map(([said, tint, number, fate]) =>
    number === null ? between(said, fate) : word(said, tint, number, fate)));
  const words = [...root.querySelectorAll(".word")];
  const first = words.find((each) => each.dataset.word === held) ?? words.find((each) => each.dataset.word === String(data.chosen));
  reach(first ?? words[0]);
  if (held !== undefined) first?.focus({ preventScroll: true });
  root.onkeydown = (event) => {
    const place = words.indexOf(event.target);
    const onward = getComputedStyle(root).direction === "rtl" ? -1 : 1;
    const steps = { ArrowLeft: -onward, ArrowRight: onward, ArrowUp: -1, ArrowDown: 1, Home: -place, End: words.length - 1 - place };
    if (place < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter" || event.key === " ") event.target.click();
    else if (event.key in steps) words[place + steps[event.key]]?.focus();
    else return;
    event.preventDefault();
  };

  function between(said, fate) {
    if (!fate) return document.createTextNode(said);
    const made = document.createElement("span"), about = document.createElement("span");
    made.className = fate;
    made.title = data.fates[fate];
    about.className = "said"; // for screen readers, which do not say what a span's title is
    about.textContent = ` (${data.fates[fate]}:) `;
    made.append(about, said);
    return made;
  }

  function word(said, tint, number, fate) {
    const made = document.createElement("span"); // a button would be a box, which breaks the order of right-to-left words
    made.setAttribute("role", "button");
    made.className = "word" + (tint < 0 ? " against" : tint > 0 ? " for" : "") + (fate && " " + fate);
    if (fate) made.title = data.fates[fate]; // the description of a button
    made.style.setProperty("--tint", Math.round(100 * Math.abs(tint)) + "%");
    made.textContent = said;
    made.dataset.word = number;
    made.setAttribute("aria-pressed", String(number === data.chosen));
    made.onclick = () => setTriggerValue("picked", number);
    made.onfocus = () => reach(made);
    return made;
  }

  function reach(one) {
    words.forEach((each) => (each.tabIndex = each === one ? 0 : -1));
  }
}
