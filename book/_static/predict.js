// "Predict first": a guess is committed by a click, kept in this browser alone, and met again above the
// answers, in a chapter without these before its last section. Without JavaScript the questions stay a list.
(() => {
  const title = (box) => box.querySelector(".admonition-title")?.textContent.trim();
  const box = [...document.querySelectorAll(".admonition")].find((b) => title(b) === "Predict first");
  const questions = box ? [...box.querySelectorAll("li")] : [];
  if (!questions.length) return;

  const key = (i) => `ncsn-guess ${location.pathname.split("/").pop()} ${i}`;
  const read = (i) => { try { return localStorage.getItem(key(i)); } catch { return null; } };
  const write = (i, guess) => { try { localStorage.setItem(key(i), guess); } catch { /* not kept */ } };
  const make = (tag, text, parent) => {
    const element = parent.appendChild(document.createElement(tag));
    element.textContent = text;
    return element;
  };

  const recap = document.createElement("aside");
  recap.className = "admonition tip ncsn-recap";
  recap.hidden = true;
  make("p", "What you predicted", recap).className = "admonition-title";
  const answers = make("ol", "", recap);
  const sections = document.querySelectorAll("article section > section");
  const last = [...sections].filter((s) => s.parentElement === sections[0].parentElement).pop();
  (document.querySelector(".tag_remember") ?? last)?.before(recap);

  questions.forEach((question, i) => {
    const asked = question.cloneNode(true);
    const answer = answers.appendChild(asked);
    const met = make("p", "", answer);
    const form = make("form", "", question);
    form.className = "ncsn-guess";
    const label = make("label", "Your guess ", form);
    const input = make("input", "", label);
    const button = make("button", "Commit", form);
    const said = make("output", "", form);

    const show = (guess) => {
      input.value = guess ?? "";
      met.textContent = guess ? `Your guess: ${guess}` : "No guess.";
      button.textContent = guess ? "Change" : "Commit";
      recap.hidden = !questions.some((_, j) => read(j));
    };
    form.onsubmit = (event) => {
      event.preventDefault();
      write(i, input.value.trim());
      show(input.value.trim());
      said.textContent = "Kept; you will meet it at the end of the chapter.";
    };
    show(read(i));
  });
  addEventListener("load", () => window.MathJax?.startup?.promise.then(() => MathJax.typesetPromise([recap])));
})();
