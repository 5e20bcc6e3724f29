"""Makes the pictures of pages in report.md on the bundled models, in a browser: `python docs/pictures.py [KIND...]`.

Kinds: transfer, check, analysis, calibration; all by default. It takes a few minutes.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

import loraport  # noqa: E402
from browser import browsing  # noqa: E402
from loraport.report import write_page  # noqa: E402
from loraport.report.analysis_page import write_analysis_page  # noqa: E402
from loraport.report.check_page import write_check_page  # noqa: E402
from loraport.zoo.catalogue import loras, model_card, models  # noqa: E402

WIDE, HIGH = 1100, 760
OPEN = """(async () => {
  const button = document.querySelector('.layers tbody button');
  button.click();
  while (!document.querySelector('.panel')) await new Promise((done) => setTimeout(done, 20));
  const box = button.closest('.scroll');
  box.style.maxHeight = 'none';
  scrollTo(0, document.querySelector('.layers').getBoundingClientRect().top - 10);
})()"""
OPTIONS = loraport.RunOptions(cache="off", log="off")


def _pair() -> tuple[str, str, str]:
    """The first LoRA, the source, and the first model that was made of it."""
    target = next(name for name in models() if model_card(name).parent is not None)
    source = model_card(target).parent
    return f"zoo:{loras()[0]}", f"zoo:{source}", f"zoo:{target}"


def transfer(page: Path) -> None:
    """A transfer, at a layer's own figures."""
    lora, source, target = _pair()
    output = page.with_name("carried-over.safetensors")
    write_page(page, loraport.transfer(lora, source=source, target=target, output=output, options=OPTIONS).to_json())


def calibration(page: Path) -> None:
    """A calibration."""
    lora, source, target = _pair()
    output = page.with_name("calibrated.safetensors")
    write_page(page, loraport.calibrate(lora, source=source, target=target, output=output, options=OPTIONS).to_json())


def check(page: Path) -> None:
    """A check."""
    lora, source, target = _pair()
    write_check_page(page, loraport.check(lora, source=source, target=target))


def analysis(page: Path) -> None:
    """An analysis, at a layer's own figures."""
    lora, source, target = _pair()
    write_analysis_page(page, loraport.analyze(source, target, lora, options=OPTIONS))


KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "transfer": (transfer, OPEN),
    "check": (check, ""),
    "analysis": (analysis, OPEN),
    "calibration": (calibration, ""),
}


def main(kinds: list[str]) -> None:
    """Make the pictures of these kinds of pages."""
    with tempfile.TemporaryDirectory() as folder, browsing(Path(folder) / "profile") as browser:
        for kind in kinds:
            make, before = KINDS[kind]
            page = Path(folder) / f"{kind}.html"
            make(page)
            browser.open(page, width=WIDE, height=HIGH)
            if before:
                browser.run(before)
            picture = HERE / "images" / f"page-{kind}.png"
            picture.write_bytes(browser.picture(whole=False))
            print(picture)


if __name__ == "__main__":
    main(sys.argv[1:] or list(KINDS))
