"""Programs and services that make pictures: their names in metadata, and the texts that they leave there."""

from __future__ import annotations

import re

# name -> how a field such as Software spells it, in lower case. A common word needs its maker or version beside it.
# Editors (Photoshop, Lightroom, GIMP, Canva) and cameras are not here: they do not say that AI made the picture.
_GENERATORS: dict[str, str] = {
    "Midjourney": r"midjourney",
    "DALL-E": r"dall[\s\u00b7.\-]?e\b",
    "OpenAI": r"open\s?ai\b|chatgpt|gpt-?(?:image|4o)",
    "Adobe Firefly": r"adobe[ _]firefly|firefly image",
    "Google AI": r"(?:made|edited|created|generated) with google ai|google (?:gemini|imagen|ai)\b|imagen [2-9]",
    "Meta AI": r"meta ai\b|imagined with ai",
    "Microsoft Designer": r"bing image creator|microsoft designer|image creator from (?:microsoft )?(?:bing|designer)",
    "NovelAI": r"novelai",
    "InvokeAI": r"invoke\s?ai\b",
    "ComfyUI": r"comfyui",
    "AUTOMATIC1111": r"automatic1111|stable-diffusion-webui|sd\.next|sdnext",
    "Fooocus": r"fooocus",
    "SwarmUI": r"swarmui",
    "Stable Diffusion": r"stable\s?diffusion|\bsdxl\b|stability\.?\s?ai|dreamstudio",
    "FLUX": r"\bflux[\s.\-]?(?:1|2|dev|pro|schnell|kontext)\b|black forest labs",
    "Draw Things": r"draw things",
    "DiffusionBee": r"diffusionbee",
    "Easy Diffusion": r"easy diffusion",
    "Leonardo.Ai": r"leonardo\.?\s?ai\b",
    "Ideogram": r"ideogram",
    "Recraft": r"\brecraft",
    "Krea": r"\bkrea(?:\.ai|\s?ai)\b",
    "NightCafe": r"nightcafe",
    "Artbreeder": r"artbreeder",
    "Craiyon": r"craiyon",
    "Playground AI": r"playground\s?(?:ai|\.com)\b",
    "Tensor.Art": r"tensor\.art",
    "Civitai": r"civitai",
    "Grok": r"\bgrok\b",
    "Runway": r"\brunway\s?ml\b|runway gen-?\d",
}
_ANY = re.compile("|".join(_GENERATORS.values()))  # so that a camera's name costs one search
_PATTERNS = {name: re.compile(pattern) for name, pattern in _GENERATORS.items()}
_MADE_WITH = re.compile(r"\b(?:made|edited|created|generated)\s(?:with|by|using)\s", re.IGNORECASE)
_MOST_NAME = 500

# What made the text -> patterns that all occur in it. No pattern spans an unbounded distance, because a search for one
# that does may take time quadratic in the text.
_RECIPES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("SwarmUI", (r'"sui_image_params"',)),
    ("ComfyUI", (r'\{\s{0,9}"', r'"class_type"\s{0,9}:')),
    ("ComfyUI", (r'\{\s{0,9}"', r'"nodes"\s{0,9}:', r'"(?:last_node_id|links)"\s{0,9}:')),
    ("Stable Diffusion", (r"\bSteps: \d", r"\b(?:Sampler: \w|Seed: \d|CFG scale: \d|Model hash: \w)")),
    ("NovelAI", (r'\{\s{0,9}"', r'"steps"\s{0,9}:', r'"sampler"\s{0,9}:', r'"uc"\s{0,9}:')),
    ("Fooocus", (r'\{\s{0,9}"', r'"base_model"\s{0,9}:', r'"negative_prompt"\s{0,9}:')),
    ("Stable Diffusion", (r'\{\s{0,9}"', r'"prompt"\s{0,9}:', r'"sampler\w{0,20}"\s{0,9}:', r'"seed"\s{0,9}:')),
    ("Midjourney", (r"\bJob ID: [0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",)),
)
_RECIPE_PATTERNS = [(name, [re.compile(pattern) for pattern in patterns]) for name, patterns in _RECIPES]


def generator(text: str) -> str | None:
    """Return the generator that a short field such as Software names, or None."""
    text = text[:_MOST_NAME].lower()
    if _ANY.search(text) is None:
        return None
    return next(name for name, pattern in _PATTERNS.items() if pattern.search(text))


def credited(text: str) -> str | None:
    """Return the generator in a credit like "Made with Google AI", or None.

    A name alone is not enough, because the company may have handed out a photograph.
    """
    return generator(text) if _MADE_WITH.search(text[:_MOST_NAME]) else None


def recipe(text: str) -> str | None:
    """Return the generator whose settings a text lists, or None. It knows them by their form, not by any word alone."""
    for name, patterns in _RECIPE_PATTERNS:
        if all(pattern.search(text) for pattern in patterns):
            return name
    return None
