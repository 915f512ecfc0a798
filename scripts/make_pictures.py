"""Make pictures of README.md and docs/ again: `python scripts/make_pictures.py`, half a minute.

Those of the interactive page are screenshots. They need Chromium; a line says what to install if it is missing.
"""

import io
import sys
from pathlib import Path

from PIL import Image

import nanopatch
from nanopatch.experiments import CAPITAL, MICHELLE

DOCS = Path(__file__).parent.parent / "docs"
SURNAME = 12  # the cell of resid_pre at layer 1, position 1


def main(folder: Path = DOCS) -> None:
    """The pictures that results draw."""
    model = nanopatch.load("nano")
    nanopatch.sweep(model, MICHELLE).save(folder / "michelle.png")

    clean, paris = model.run(MICHELLE.clean), model.run(CAPITAL.clean)
    effect, scores = nanopatch.ablate(model, MICHELLE, "z"), nanopatch.edge_attribution(model, MICHELLE, steps=2)
    figures = {
        "lens": nanopatch.logit_lens(model, paris).plot(),
        "direct": nanopatch.direct_logit_attribution(model, paris, CAPITAL.answer, CAPITAL.wrong_answer).plot(),
        "attention": clean.plot_attention(layer=1, head=0),
        "heads": nanopatch.head_scores(model, beside=effect).plot(),
        "curves": nanopatch.circuit_curves(model, MICHELLE, scores, by=["size", "signed"], n_random=3).plot(),
    }
    for name, figure in figures.items():
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=100)
        save_with_few_colours(file.getvalue(), folder / f"{name}.png")


def screenshots(folder: Path = DOCS) -> None:
    """The pictures of the interactive page. Raises chromium.Missing if there is no Chromium."""
    from chromium import DRAWN, chromium, explored

    cell = f"cell={SURNAME}&run=patched"
    shown = {  # picture: (what the address says, the element that is shown; None: from the top of the page to the tabs)
        "page": (cell, None),
        "page-steps": (f"{cell}&view=steps&step=19", "#steps"),
        "page-circuit": ("view=circuit&n=40", "#circuit"),
    }
    with chromium() as browser, explored() as url:
        for name, (state, element) in shown.items():
            tab = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
            tab.set_default_timeout(120_000)
            tab.goto(f"{url}#{state}")
            tab.wait_for_selector(DRAWN, state="attached")
            box = tab.locator(element or ".side").bounding_box()
            top = box["y"] if element else 0
            clip = {"x": 0, "y": top, "width": 1280, "height": box["y"] + box["height"] + 8 - top}
            save_with_few_colours(tab.screenshot(full_page=True, clip=clip), folder / f"{name}.png")
            tab.close()


def save_with_few_colours(png: bytes, path: Path) -> None:
    few_colours = Image.open(io.BytesIO(png)).convert("RGB").quantize(256, kmeans=1)  # half the size
    few_colours.save(path, optimize=True)


if __name__ == "__main__":
    from chromium import Missing

    main()
    try:
        screenshots()
    except Missing as error:
        sys.exit(f"make_pictures: the pictures of the page are as they were: {error}")
