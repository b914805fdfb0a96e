// Draws what pymdownx.arithmatex marks: \(…\) in a line, \[…\] on its own. A formula that cannot be read is an error.
for (const element of document.querySelectorAll(".arithmatex")) {
  const text = element.textContent.trim();
  katex.render(text.slice(2, -2), element, { displayMode: text.startsWith("\\["), throwOnError: true });
}
