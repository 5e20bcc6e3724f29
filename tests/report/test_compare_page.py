"""The page of a comparison: nothing of a prompt runs in it, frames are where they are looked for, and it plays."""

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from loraport.report import frame, scenes
from loraport.report.comparison import Measure
from loraport.report.content import Fact, Input, Page, Words
from loraport.report.scenes import Given, Interval, Making, Scene, SideBySide

HOSTILE = "</option></select><script>document.title = 'ran'</script>\" onerror=alert(1) {{ 7 * 7 }} \u202egnp.exe"


def clip(number, frames=5, high=6, wide=8):
    """Each frame one colour, which says its number."""
    made = np.zeros((frames, high, wide, 3), np.uint8)
    made[...] = np.array([[20 * i % 256, 10 * number, 200] for i in range(frames)], np.uint8)[:, None, None]
    return made


def played(ways=2, frames=5, prompts=("a cat", HOSTILE), seeds=(0, 1)):
    return SideBySide(
        makings=tuple(Making(f"way {n}", HOSTILE if n else "", "result" if n else "reference") for n in range(ways)),
        measures=(Measure("move", "motion", "How much moves."), Measure("far", "distance", "From the first.", "lower")),
        scores=(
            {"move": Interval(1.5, 1.0, 2.0)},
            *({"move": Interval(1.25, 1.0, 2.0), "far": Interval(3.0)},) * (ways - 1),
        ),
        scenes=(
            Scene(prompt, seed, tuple(clip(n, frames) for n in range(ways))) for prompt in prompts for seed in seeds
        ),
        count=len(prompts) * len(seeds),
        prompts=len(prompts),
    )


def page(side):
    return Page(
        words=Words(title="style.safetensors, side by side", lead="What became of it."),
        warnings=(HOSTILE,),
        side_by_side=side,
        inputs=(Input("LoRA", HOSTILE, (), "ab" * 16),),
        done=(Fact("sampling", HOSTILE),),
    )


def made(**changes):
    return frame.render(page(played(**changes)))


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
    assert seen.text.count(shown) >= 5  # the prompt chosen and shown, the note, the warning, the file, the setting
    assert any(name == "aria-label" and shown in value for name, value in seen.attributes)
    assert "default-src 'none'" in html


def test_numbers_and_their_intervals_are_there():
    html = made()
    assert re.search(r"<span>1\.50</span><small>1\.00 to 2\.00</small>", html)
    assert "<span>3.00</span></td>" in html
    assert html.index("motion") < html.index("distance")


def test_what_is_not_there_is_said_in_words():
    """Nobody in any clip, or in some of them; what a way cannot have is a dash."""
    side = played(ways=2)
    cells = (
        {"move": Interval(1.0)},
        {"move": Interval(None, note="nobody found"), "far": Interval(2.0, note="in 1 of 4")},
    )
    html = frame.render(page(dataclasses.replace(side, scores=cells)))
    assert '<td data-title="motion"><small>nobody found</small></td>' in html
    assert '<td data-title="distance"><span>2.00</span><small>in 1 of 4</small></td>' in html
    assert '<td data-title="distance" class="none">–</td>' in html


def test_what_clips_begin_with_stands_beside_the_prompt():
    """By its shape and not by that of the clips; a prompt with two images is two to choose from."""
    from PIL import Image

    given = [Given(name, lambda n=n: np.full((300, 100, 3), 50 * n, np.uint8)) for n, name in enumerate((HOSTILE, "b"))]
    side = played()
    shots = (Scene("a cat", 0, (clip(0), clip(1)), image) for image in given)
    seen = _Reader()
    html = frame.render(page(dataclasses.replace(side, scenes=shots, count=2)))
    seen.feed(html)
    assert [value for name, value in seen.attributes if name == "data-prompt"] == ["0", "1"]
    assert html.count("<option") == 3  # and one seed
    assert ">b: a cat</option>" in html
    assert "begins with b" in html
    assert "width:64px;aspect-ratio:100/300" in html
    sheets = re.findall(r"data:image/webp;base64,([^)]+)", html)
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheets[3]))).convert("RGB"))
    assert image.shape == (192, 64, 3)
    assert abs(image.astype(int) - 50).max() < 4
    assert not [name for name, _ in seen.attributes if name.startswith("on")]
    assert not [value for name, value in seen.attributes if name in ("src", "href", "action")]
    cut = scenes._cut(Scene("p", 0, (clip(0),), given[0]), (448, 49))
    assert scenes._bytes(cut) == len(cut["image"]["sheet"]) + len(cut["clips"][0])


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


def test_long_clips_and_large_ones_are_made_smaller(monkeypatch):
    one = scenes._cut(Scene("p", 0, (clip(0, 200, 36, 64),)), (448, 49))
    assert (one["frames"], one["of"]) == (49, 200)
    rough = np.random.default_rng(0).integers(0, 256, (50, 10, 500, 3), np.uint8)
    scene = Scene("p", 0, (rough,))
    whole = len(scenes._cut(scene, scenes.SIZES[0])["clips"][0])
    monkeypatch.setattr(scenes, "BUDGET", whole)
    sizes = [scenes._size(scene, count) for count in (1, 2, 12, 1000)]
    assert sizes == sorted(sizes, reverse=True)
    assert (sizes[0], sizes[-1]) == (scenes.SIZES[0], scenes.SIZES[-1])
    assert len(set(sizes)) >= 3


def test_the_page_stays_small_and_says_what_is_left_out(monkeypatch):
    whole = made()
    assert "left out" not in whole
    sheets = sum(map(len, re.findall(r"data:image/webp;base64,([^)]+)", whole)))
    monkeypatch.setattr(scenes, "BUDGET", sheets * 3 // 4)
    html = made()
    assert html.count('<div class="scene"') == 3
    assert "1 of 4 combinations of prompt and seed are left out" in html
    assert "means over 4 clips" in html
    assert sum(map(len, re.findall(r"data:image/webp;base64,([^)]+)", html))) <= scenes.BUDGET
    monkeypatch.setattr(scenes, "BUDGET", 1)
    assert made().count('<div class="scene"') == 1  # never none


def test_stills_have_no_player():
    html = made(frames=1)
    assert 'type="range"' not in html
    assert "stills" in html


@pytest.mark.slow
def test_in_a_browser(tmp_path):
    """It plays in step, chooses, is no wider than a phone, and nothing complains."""
    browser = pytest.importorskip("browser", reason="what drives a browser is not there")
    file = frame.write(tmp_path / "index.html", page(played(3)))
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
        for key in ("keyDown", "keyUp"):  # the dial by the keyboard, which stops the player
            chromium.run("document.querySelector('.bar input').focus()")
            chromium.ask("Input.dispatchKeyEvent", type=key, key="Home", code="Home", windowsVirtualKeyCode=36)
        assert chromium.run("document.querySelector('.bar input').value") == "0"
        assert chromium.run("document.querySelector('.bar button').textContent") == "play"
        told = "[...document.querySelectorAll('.sprite')].map(one => [one.role, one.ariaLabel])"
        assert all(role == "img" and label.startswith("way ") for role, label in chromium.run(told))
        for dark in (True, False):
            chromium.open(file, width=1100, dark=dark)
            paper = chromium.run("getComputedStyle(document.body).backgroundColor")
            assert paper == ("rgb(20, 22, 26)" if dark else "rgb(255, 255, 255)")
            row = "getComputedStyle(document.querySelector('.compared tbody th')).backgroundColor"
            assert chromium.run(row) == paper  # what stays beside the scrolled numbers is not seen through
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
