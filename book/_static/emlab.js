// Names for what the theme leaves to pictures, so that a screen reader and speech control know it.
document.addEventListener("DOMContentLoaded", () => {
  for (const button of document.querySelectorAll("button[aria-label]")) {
    const shown = button.innerText.replace(/\s+/g, " ").trim();
    const label = button.getAttribute("aria-label");
    if (shown && !label.toLowerCase().includes(shown.toLowerCase())) {
      button.setAttribute("aria-label", `${shown} (${label})`);
    }
  }
  for (const summary of document.querySelectorAll("nav details > summary")) {
    const link = summary.closest("li")?.querySelector("a");
    summary.setAttribute("aria-label", `Pages below ${link?.textContent.trim() ?? "this one"}`);
  }
});
