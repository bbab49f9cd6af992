"""A checkpoint loaded, and a batch of prompts answered: what chat, evaluation and training have in common."""
