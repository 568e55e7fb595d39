// Names and roles that the theme leaves wrong or to pictures, for screen readers and speech control.
const named = () => {
  for (const button of document.querySelectorAll("button[aria-label]")) {
    const shown = button.textContent.replace(/\s+/g, " ").trim();
    if (shown) button.setAttribute("aria-label", shown);
  }
  for (const button of document.querySelectorAll(".theme-switch-button")) {
    button.querySelectorAll("svg").forEach((icon) => icon.setAttribute("aria-hidden", "true"));
    button.querySelectorAll("svg title").forEach((title) => title.remove());
    button.setAttribute("aria-label", "Color mode");
  }
  for (const summary of document.querySelectorAll("nav details > summary")) {
    const link = summary.closest("li")?.querySelector("a");
    summary.setAttribute("aria-label", `Pages below ${link?.textContent.trim() ?? "this one"}`);
  }
  for (const summary of document.querySelectorAll("details.hide > summary[aria-label]")) {
    summary.removeAttribute("aria-label");
  }
  for (const list of document.querySelectorAll(".citation-list[role=list]")) {
    list.removeAttribute("role");
  }
};
window.addEventListener("load", () => {
  named();
  // The theme's icons are drawn later, and drawn again when the scheme changes.
  const watch = new MutationObserver(named);
  for (const button of document.querySelectorAll(".theme-switch-button")) {
    watch.observe(button, { childList: true });
  }
});
