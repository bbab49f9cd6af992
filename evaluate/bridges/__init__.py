"""Ways into the field's own evaluation frameworks: llm-jp-eval-mm and lmms-eval."""
