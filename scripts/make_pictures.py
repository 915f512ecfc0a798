"""Make pictures of README.md and docs/questions.md again: `python scripts/make_pictures.py`, some seconds."""

import io
from pathlib import Path

from PIL import Image

import nanopatch
from nanopatch.experiments import CAPITAL, MICHELLE

DOCS = Path(__file__).parent.parent / "docs"


def main(folder: Path = DOCS) -> None:
    model = nanopatch.load("nano")
    nanopatch.sweep(model, MICHELLE).save(folder / "michelle.png")

    clean, paris = model.run(MICHELLE.clean), model.run(CAPITAL.clean)
    effect = nanopatch.ablate(model, MICHELLE, "z")
    figures = {
        "lens": nanopatch.logit_lens(model, paris).plot(),
        "direct": nanopatch.direct_logit_attribution(model, paris, CAPITAL.answer, CAPITAL.wrong_answer).plot(),
        "attention": clean.plot_attention(layer=1, head=0),
        "heads": nanopatch.head_scores(model, beside=effect).plot(),
    }
    for name, figure in figures.items():
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=100)
        few_colours = Image.open(file).convert("RGB").quantize(256, kmeans=1)  # half the size
        few_colours.save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
