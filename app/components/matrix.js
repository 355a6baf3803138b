// A confusion matrix whose cells are buttons: one stop in the tab order, arrow keys move within it.
export default function ({ data, parentElement, setTriggerValue }) {
  const box = parentElement.querySelector(".matrix"), size = data.names.length;
  const held = [...box.querySelectorAll("button")].indexOf(box.getRootNode().activeElement);
  const most = Math.max(1, ...data.counts.flatMap((row, y) => row.filter((_, x) => x !== y)));
  const table = element("table");
  table.append(element("caption", data.label));
  const head = element("thead"), titles = element("tr");
  titles.append(element("td"), ...data.names.map((name) => titled("col", name)));
  head.append(titles);
  const body = element("tbody"), buttons = [];
  data.counts.forEach((row, y) => {
    const line = element("tr");
    line.append(titled("row", data.names[y]));
    row.forEach((count, x) => {
      const cell = element("td"), button = element("button", count || "");
      const place = y * size + x, chosen = place === data.selected;
      cell.className = x === y ? "right" : "";
      button.type = "button";
      button.style.setProperty("--share", x === y ? 0 : count / most);
      button.tabIndex = chosen || (data.selected === null && place === 0) ? 0 : -1;
      button.setAttribute("aria-pressed", chosen);
      button.setAttribute("aria-label", `${count} images labelled ${data.names[y]}, predicted ${data.names[x]}`);
      button.title = button.getAttribute("aria-label");
      button.onclick = () => setTriggerValue("picked", place);
      button.onkeydown = (event) => move(event, x, y);
      buttons.push(button);
      cell.append(button);
      line.append(cell);
    });
    body.append(line);
  });
  table.append(head, body);
  box.replaceChildren(table);
  buttons[held]?.focus({ preventScroll: true });

  function move(event, x, y) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    const [nx, ny] = [(x + step[0] + size) % size, (y + step[1] + size) % size];
    buttons.forEach((button) => (button.tabIndex = -1));
    buttons[ny * size + nx].tabIndex = 0;
    buttons[ny * size + nx].focus();
  }

  function titled(scope, name) {
    const made = element("th", name);
    made.scope = scope;
    made.title = name;
    return made;
  }

  function element(tag, text) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    return made;
  }
}
