// The picture of the point under the pointer: Plotly says which point, a sheet of small pictures has its picture.
const SIZE = 84; // pixels on the page
export default function ({ data }) {
  const sheets = data.sheets.map((sheet) => {
    const image = new Image();
    image.src = sheet.src;
    const places = sheet.numbers && new Map(sheet.numbers.map((number, place) => [number, place]));
    return { ...sheet, image, places };
  });
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIZE;
  canvas.setAttribute("aria-hidden", "true");
  canvas.dataset.natscope = "hover";
  canvas.style.cssText =
    "position:fixed;z-index:1000;pointer-events:none;border-radius:6px;display:none;box-shadow:0 1px 6px #0008";
  document.body.append(canvas);
  let plot = null;

  function shown(event) {
    const number = [event.points[0]?.customdata].flat()[0];
    const pointer = event.event;
    for (const sheet of sheets) {
      const place = sheet.places ? sheet.places.get(number) : number - sheet.first;
      if (!(place >= 0 && place < sheet.count) || !sheet.image.complete) continue;
      const context = canvas.getContext("2d");
      const x = (place % sheet.across) * sheet.side;
      const y = Math.floor(place / sheet.across) * sheet.side;
      context.drawImage(sheet.image, x, y, sheet.side, sheet.side, 0, 0, SIZE, SIZE);
      const left = pointer.clientX - SIZE - 18;
      canvas.style.left = (left < 0 ? pointer.clientX + 18 : left) + "px";
      canvas.style.top = Math.max(0, pointer.clientY - SIZE - 18) + "px";
      canvas.style.display = "block";
      return;
    }
    hidden();
  }

  function hidden() {
    canvas.style.display = "none";
  }

  // The chart is drawn later than this, and anew with other colours: it is looked for whenever the pointer enters it.
  function entered(event) {
    const found = event.target.closest?.(`.st-key-${data.chart} .js-plotly-plot`);
    if (!found) hidden();
    if (!found || found === plot || !found.on) return;
    left();
    plot = found;
    plot.on("plotly_hover", shown);
    plot.on("plotly_unhover", hidden);
  }

  function left() {
    plot?.removeListener?.("plotly_hover", shown);
    plot?.removeListener?.("plotly_unhover", hidden);
  }

  document.addEventListener("pointerover", entered);
  return () => {
    document.removeEventListener("pointerover", entered);
    left();
    canvas.remove();
  };
}
