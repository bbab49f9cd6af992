"""What captions are asked with."""

from .order import choice, uniform

# MiniGPT-4's four prompts of stage 2 (Vision-CAIR/MiniGPT-4, prompts/alignment.txt).
MINIGPT4 = [
    "Describe this image in detail.",
    "Take a look at this image and describe what you notice.",
    "Please provide a detailed description of the picture.",
    "Could you describe the contents of this image for me?",
]

JAPANESE = [
    "この画像を説明してください。",
    "この写真には何が写っていますか？",
    "画像の内容を簡潔に述べてください。",
    "この場面の様子を教えてください。",
    "何が見えますか？",
    "この画像に説明文をつけてください。",
    "写真の内容を一文で表してください。",
    "画像に写っているものを説明してください。",
    "これはどのような場面ですか？",
    "見えるものを日本語で書いてください。",
]

STOCK = {"none": [], "japanese": JAPANESE, "minigpt4": MINIGPT4}


class CaptionPrompts:
    """Chooses what a caption is asked with, as a function of (seed, epoch, picture).

    Args:
        prompts: A key of `STOCK`, or a list of prompts. The article's prompt is none at all: `none`.
        probability: How often one of them is used; else nothing is asked.
        seed: What the choice is drawn from.

    Raises:
        ValueError: There is no such list, or the probability is none.
    """

    def __init__(self, prompts: str | list[str] = "none", probability: float = 1.0, seed: int = 0):
        if isinstance(prompts, str) and prompts not in STOCK:
            raise ValueError(f"Caption prompts are {', '.join(STOCK)} or a list of your own, not {prompts!r}.")
        if not 0 <= probability <= 1:
            raise ValueError(f"prompt_probability must be between 0 and 1, got {probability}.")
        self.prompts = STOCK[prompts] if isinstance(prompts, str) else list(prompts)
        self.probability, self.seed = probability, seed

    def choose(self, epoch: int, source: int, group: int) -> str:
        """The prompt of one group: all captions of a picture are asked alike, so they share their whole prefix."""
        numbers = (self.seed, epoch, source, group, 2)
        if not self.prompts or uniform(*numbers) >= self.probability:
            return ""
        return self.prompts[choice(len(self.prompts), *numbers, 3)]
