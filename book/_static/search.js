// A search result shows the sentence in which the words were found, and not menus, code or formulas.
if (typeof Search !== "undefined") {
  const sentences = (html) => {
    const page = new DOMParser().parseFromString(html, "text/html");
    page.querySelectorAll(".headerlink, script, style, pre, nav").forEach((e) => e.remove());
    const places = [...page.querySelectorAll("article p, article dd, article figcaption")];
    const texts = places.map((e) => e.textContent.replace(/\s+/g, " ").trim());
    return texts.flatMap((text) => text.split(/(?<=[.?!]) (?=[A-Z“])/));
  };
  Search.makeSearchSummary = (html, keywords) => {
    const words = [...keywords].map((word) => word.toLowerCase());
    const worth = (sentence) =>
      words.filter((word) => sentence.toLowerCase().includes(word)).length +
      (sentence.length > 50 && sentence.length < 300) / 2 + /[.?!]”?$/.test(sentence) / 2 -
      sentence.includes("\\(") / 2;
    const best = sentences(html).reduce((a, b) => (worth(b) > worth(a) ? b : a), "");
    const summary = document.createElement("p");
    summary.className = "context";
    summary.textContent = best.replace(/\\\(.*?\\\)/g, "…");
    return summary;
  };
}
