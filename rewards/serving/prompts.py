"""What the vision-language models are asked. A model fine-tuned on one of these texts must be asked with the same."""

from srgym.errors import Refusal

__all__ = [
    "COMPARE", "COMPARE_CHOICES", "COMPASS_FIELDS", "COMPASS_STOP", "FIDELITY", "KINDS", "QUALITY", "REFREWARD",
    "REFREWARD_FIELDS", "compass", "judge",
]  # fmt: skip

KINDS = ("synthetic", "real")
"""Where a low-resolution input comes from: made of a picture, so that fidelity is known, or met as it is."""

COMPASS_FIELDS = {"fidelity": (0.0, 1.0), "q_lr": (1.0, 5.0), "q_sr": (1.0, 5.0)}
"""COMPASS's scores and their ranges, in the order of the answer."""

COMPASS_STOP = '"description"'
"""Where decoding may stop in training: behind the scores, before the reasons."""

QUALITY = """Rate the visual quality of this image, its sharpness, its noise and how natural it looks, on a scale \
from 1 (bad) to 5 (excellent). Answer with one digit."""

FIDELITY = """The first image is a low-resolution input, enlarged to the size of the second. The second image is its \
super-resolution. Rate how far the second keeps the content and structure of the first, on a scale from 1 (another \
image) to 5 (the same in every respect). Answer with one digit."""

REFREWARD_FIELDS = {"consistency": (1.0, 5.0), "naturalness": (1.0, 5.0)}
"""RefReward-SR's two axes and their range."""

REFREWARD = """The first image is a low-resolution reference, enlarged to the size of the second. The second image \
is its super-resolution. Judge the second image on two axes, from 1.00 (worst) to 5.00 (best), with two decimals:
- consistency: whether everything it shows means the same as in the reference;
- naturalness: whether its textures and details look like a photograph's.
Answer with one JSON object whose keys are consistency and naturalness, in this order."""

COMPARE_CHOICES = ("1", "2", "0")
"""The answers to `COMPARE`: the first is better, the second is, neither."""

COMPARE = """The first image is a low-resolution input, enlarged. The two others, image 1 and image 2, are \
super-resolutions of it. Which is the better picture of what the input shows, in quality and without inventing \
anything? Answer with one digit: 1, 2, or 0 if neither is better."""


def compass(kind: str) -> str:
    """COMPASS's question about a pair. One of a `real` input has no fidelity to learn, and asks for none.

    A reward needs the fidelity, so it asks as of `synthetic` inputs whatever they are: the only question whose answer a
    model has learnt to give with one.

    Raises:
        Refusal: for a kind that there isn't.
    """
    if kind not in KINDS:
        raise Refusal(f"expected an input of kind {' or '.join(KINDS)}, got '{kind}'")
    known = kind == "synthetic"
    fidelity = (
        "- fidelity, from 0.00 to 1.00: how far the second image keeps the content and structure of the first, without "
        "inventing or losing any;\n"
    )
    return f"""<type: {kind}>
The first image is a low-resolution input, enlarged to the size of the second. The second image is its super-resolution.
Give {"three" if known else "two"} scores, with two decimals each:
{fidelity if known else ""}- q_lr, from 1.00 (bad) to 5.00 (excellent): the visual quality of the first image;
- q_sr, from 1.00 (bad) to 5.00 (excellent): the visual quality of the second image.
Answer with one JSON object whose keys are {"fidelity, " if known else ""}q_lr, q_sr and description, in this order. \
The description gives your reasons in a sentence or two."""


def judge(ids: list[str], referenced: bool) -> str:
    """The question to a judge that scores several super-resolutions of one input at once.

    Args:
        ids: one name for each candidate, in the order in which the images are shown.
        referenced: whether the low-resolution input is shown before them.
    """
    shown = "The first image is a low-resolution input. The others are" if referenced else "The images are"
    listed = ", ".join(ids)
    return f"""{shown} {len(ids)} super-resolutions of one picture, named in the order shown: {listed}.
Compare them, and score each from 0 (worst) to 10 (best) on:
- quality: sharpness, and the absence of noise and artefacts;
- realism: whether it could be a photograph;
- consistency: whether its content is that of the picture.
Answer with one JSON object that has each name as a key once, and for each an object with the keys quality, realism \
and consistency."""
