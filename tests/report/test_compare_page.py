"""The page of a comparison: nothing of a prompt runs in it, frames are where they are looked for, and it plays."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from loraport.report import compare_page
from loraport.report.compare_page import ComparePage, Interval, Scene, Way
from loraport.report.comparison import Measure

HOSTILE = "</option></select><script>document.title = 'ran'</script>\" onerror=alert(1) {{ 7 * 7 }} \u202egnp.exe"


def clip(number, frames=5, high=6, wide=8):
    """Each frame one colour, which says its number."""
    made = np.zeros((frames, high, wide, 3), np.uint8)
    made[...] = np.array([[20 * i % 256, 10 * number, 200] for i in range(frames)], np.uint8)[:, None, None]
    return made


def page(ways=2):
    return ComparePage(
        title="style.safetensors, side by side",
        lead="What became of it.",
        ways=tuple(Way(f"way {n}", HOSTILE if n else "", "result" if n else "reference") for n in range(ways)),
        measures=(Measure("move", "motion", "How much moves."), Measure("far", "distance", "From the first.", "lower")),
        scores=(
            {"move": Interval(1.5, 1.0, 2.0)},
            *({"move": Interval(1.25, 1.0, 2.0), "far": Interval(3.0)},) * (ways - 1),
        ),
        clips=4,
        warnings=(HOSTILE,),
        facts=(("sampling", HOSTILE),),
    )  # fmt: skip


def scenes(ways=2, frames=5, prompts=("a cat", HOSTILE), seeds=(0, 1)):
    for prompt in prompts:
        for seed in seeds:
            yield Scene(prompt, seed, tuple(clip(n, frames) for n in range(ways)))


def made(**changes):
    return compare_page.render(page(), scenes(**changes), count=4)


class _Reader(HTMLParser):
    """Tags, attributes and text as a browser sees them."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def test_hostile_text_is_text():
    seen = _Reader()
    html = made()
    seen.feed(html)
    assert seen.tags.count("script") == 1
    assert not [name for name, _ in seen.attributes if name.startswith("on")]
    assert not [value for name, value in seen.attributes if name in ("src", "href", "action")]
    shown = HOSTILE.replace("\u202e", "⟨U+202E⟩")  # what would turn the direction of the text is seen
    assert seen.text.count(shown) >= 4  # the prompt chosen and shown, the note, the warning, the setting
    assert any(name == "aria-label" and shown in value for name, value in seen.attributes)
    assert "default-src 'none'" in html


def test_numbers_and_their_intervals_are_there():
    html = made()
    assert re.search(r"<span>1\.50</span><small>1\.00 to 2\.00</small>", html)
    assert "<span>3.00</span></td>" in html
    assert html.index("motion") < html.index("distance")


def test_a_sprite_holds_each_frame_in_its_place():
    from PIL import Image

    html = made(frames=5)
    data = base64.b64decode(re.findall(r"data:image/webp;base64,([^)]+)", html)[1])
    sheet = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert sheet.shape == (2 * 6, 3 * 8, 3)
    for number in range(5):
        row, column = divmod(number, 3)
        cell = sheet[row * 6 : row * 6 + 6, column * 8 : column * 8 + 8]
        assert (cell == [20 * number, 10, 200]).all()


def test_long_clips_and_large_ones_are_made_smaller():
    one = compare_page._shown(Scene("p", 0, (clip(0, 200, 36, 64),)), 1)
    assert (one["frames"], one["of"]) == (compare_page.MOST_FRAMES, 200)
    wide = np.zeros((4, 480, 832, 3), np.uint8)
    few, many = (compare_page._shown(Scene("p", 0, (wide,)), count) for count in (1, 3000))
    sizes = [len(base64.b64decode(one["clips"][0])) for one in (few, many)]
    assert few["tiny"] is False
    assert sizes[0] > sizes[1]


def test_stills_have_no_player():
    html = made(frames=1)
    assert 'type="range"' not in html
    assert "stills" in html


@pytest.mark.slow
def test_in_a_browser(tmp_path):
    """It plays in step, chooses, is no wider than a phone, and nothing complains."""
    browser = pytest.importorskip("browser", reason="what drives a browser is not there")
    file = compare_page.write(tmp_path / "index.html", page(3), scenes(3), count=4)
    with browser.browsing(tmp_path / "profile") as chromium:
        chromium.open(file, width=1100)
        assert chromium.run("document.title") == "style.safetensors, side by side"
        chromium.run("document.querySelector('.bar button').click()")  # stops
        chromium.run("{ const at = document.querySelector('.bar input'); at.value = 4; at.oninput(); }")
        shown = "[...document.querySelectorAll('.scene:not([hidden]) .sprite')]"
        places = f"{shown}.map(one => getComputedStyle(one).backgroundPosition)"
        assert chromium.run(places) == ["50% 100%"] * 3
        chromium.run("{ const at = document.querySelector('[name=seed]'); at.value = '1'; at.onchange(); }")
        assert chromium.run("document.querySelector('.scene:not([hidden])').dataset.seed") == "1"
        assert chromium.run(places) == ["50% 100%"] * 3
        chromium.run("document.querySelector('.bar button').click()")
        moved = "new Promise(done => setTimeout(() => done(document.querySelector('.bar input').value), 400))"
        assert chromium.run(moved) != "4"
        assert chromium.complaints() == []
        assert chromium.fetched() == []
        chromium.open(file, width=760)
        chromium.run("document.querySelector('.compared').scrollLeft = 1000")
        left = "document.querySelectorAll('.compared tbody tr')[1].cells[{}].getBoundingClientRect().left"
        assert chromium.run(left.format(1)) >= 12 * 16  # the motion stays where it can be seen
        for width in (1100, 360):
            chromium.open(file, width=width)
            assert chromium.run("document.documentElement.scrollWidth") <= width
        shown = "[...document.querySelectorAll('.compared td')].every(one => one.scrollWidth <= one.clientWidth + 1)"
        assert chromium.run(shown)
        assert chromium.complaints() == []
