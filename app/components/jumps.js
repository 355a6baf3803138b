// Links to places on the page: Back returns to where the page was scrolled to, which it does not do by itself, for the
// part of a Streamlit page that scrolls is not the document.
export default function () {
  const scrolled = () => document.querySelector("[data-testid=stMain]");
  function clicked(event) {
    if (!event.target.closest?.("a[href^='#']") || event.ctrlKey || event.metaKey || event.shiftKey) return;
    history.replaceState({ ...history.state, scrolled: scrolled().scrollTop }, "");
  }
  function moved(event) {
    const place = event.state?.scrolled;
    if (place !== undefined)
      for (const later of [0, 100, 400]) setTimeout(() => (scrolled().scrollTop = place), later); // after what jumps to the hash
    else if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
  }
  document.addEventListener("click", clicked);
  window.addEventListener("popstate", moved);
  return () => {
    document.removeEventListener("click", clicked);
    window.removeEventListener("popstate", moved);
  };
}
