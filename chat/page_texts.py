"""Texts of the web page where gradio needs them in forms of its own, from the table in [`texts`]."""

import json
import re

from .texts import JAPANESE

# Those that stand on the page, by the names that gradio knows them by.
LABELS = {
    "about": "Show a picture and talk about it in Japanese.",
    "placeholder": "Add a picture and ask",
    "settings": "Settings",
    "sample": "Another answer each time (sampling)",
    "temperature": "Temperature (higher is freer)",
    "top_p": "top-p (lower is safer)",
    "length": "Length of answers (tokens)",
}
TRANSLATIONS = {"en": LABELS, "ja": {name: JAPANESE[english] for name, english in LABELS.items()}}
# Those that gradio's page says by itself, in English whatever the browser's language is.
GRADIO_TEXTS = (
    "Error",
    "Warning",
    "Info",
    "File(s) exceed the maximum allowed size of {limit}: {names}",
    "Invalid file type: {names}. Only {kinds} allowed.",
    "Invalid file types: {names}. Only {kinds} allowed.",
    "This application is currently busy. Please try again.",
    "Connection errored out.",
    "Connection Lost",
    "Connection to the server was lost. Attempting reconnection...",
)


def head() -> str:
    """HTML for the head of the page: a script that says gradio's own notices in Japanese, in Japanese browsers."""
    pairs = []
    for english in GRADIO_TEXTS:
        names = re.findall(r"\{(\w+)\}", english)
        pattern, replacement = re.escape(english), JAPANESE[english]
        for number, name in enumerate(names, 1):
            pattern = pattern.replace(re.escape(f"{{{name}}}"), "(.+?)")
            replacement = replacement.replace(f"{{{name}}}", f"${number}")
        pairs.append((f"^{pattern}$", replacement))
    return f"<script>({_SCRIPT})({json.dumps(pairs, ensure_ascii=False)})</script>"


_SCRIPT = """(pairs) => {
  if (!/^ja\\b/i.test(navigator.language)) return;
  const translate = () => {
    for (const toast of document.querySelectorAll("[data-testid=toast-body]")) {
      const nodes = document.createTreeWalker(toast, NodeFilter.SHOW_TEXT);
      while (nodes.nextNode()) {
        const said = nodes.currentNode.data.trim();
        const pair = pairs.find(([english]) => new RegExp(english, "s").test(said));
        if (pair) nodes.currentNode.data = said.replace(new RegExp(pair[0], "s"), pair[1]);
      }
    }
  };
  new MutationObserver(translate).observe(document.documentElement,
    { childList: true, subtree: true, characterData: true });
}"""
