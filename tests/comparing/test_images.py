"""Which prompt has which image, and what an image is, before any model is loaded."""

import hashlib
import json

import numpy as np
import pytest

from loraport.comparing.images import FirstFrame, find_images, said_of_shapes
from loraport.comparing.prompts import read_prompts
from loraport.errors import FileError, UsageError

Image = pytest.importorskip("PIL.Image")


def picture(file, size=(6, 4), colour=(200, 40, 90)):
    Image.new("RGB", size, colour).save(file)
    return file


def pairs(prompts):
    return [(one.text, None if one.image is None else one.image.file.name) for one in prompts]


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(("shot10.png", "shot2.PNG", "shot1.jpg")):
        picture(tmp_path / name, colour=(40 * number, 0, 0))
    (tmp_path / "notes.txt").write_text("no image", encoding="utf-8")
    (tmp_path / "._shot1.jpg").write_bytes(b"left by another system")
    return tmp_path


def test_a_folder_is_all_its_images_in_the_order_of_their_numbers(folder):
    names = [file.name for file in find_images([folder])]
    assert names == ["shot1.jpg", "shot2.PNG", "shot10.png"]
    assert find_images([folder / "shot10.png", folder / "nowhere.png"])[1].name == "nowhere.png"
    (folder / "none").mkdir()
    with pytest.raises(UsageError, match="no image in this folder"):
        find_images([folder / "none"])


def test_images_are_paired_with_prompts(folder):
    one, two = folder / "shot1.jpg", folder / "shot2.PNG"
    assert pairs(read_prompts(["a", "b"])) == [("a", None), ("b", None)]
    assert pairs(read_prompts(["a", "b"], [two, one])) == [("a", "shot2.PNG"), ("b", "shot1.jpg")]
    assert pairs(read_prompts(["a", "b"], [one])) == [("a", "shot1.jpg"), ("b", "shot1.jpg")]
    assert pairs(read_prompts(["a"], [folder])) == [("a", name) for name in ("shot1.jpg", "shot2.PNG", "shot10.png")]
    with pytest.raises(UsageError, match=r"(?s)which image belongs.*2 prompts, 3 images"):
        read_prompts(["a", "b"], [folder])
    with pytest.raises(UsageError, match=r"(?s)twice.*shot1\.jpg"):
        read_prompts(["a"], [one, folder])


def test_without_prompts_the_text_beside_each_image_is_taken(folder):
    for number in (1, 2):
        (folder / f"shot{number}.txt").write_text(f"a cat,\n number {number}\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"(?s)an image has no prompt.*shot10\.png.*shot10\.txt"):
        read_prompts(None, [folder])
    (folder / "shot10.txt").write_text("a cat, number 10", encoding="utf-8")
    assert pairs(read_prompts(None, [folder])) == [
        (f"a cat, number {n}", name) for n, name in ((1, "shot1.jpg"), (2, "shot2.PNG"), (10, "shot10.png"))
    ]
    for given in (None, []):
        with pytest.raises(UsageError, match="no prompt"):
            read_prompts(given)


def test_lines_of_json_name_the_image_of_a_prompt(folder):
    file = folder / "prompts.jsonl"

    def written(*rows):
        file.write_text("\n\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), "utf-8")
        return file

    rows = [{"prompt": " a cat ", "image": "shot2.PNG"}, {"prompt": "a dog", "image": str(folder / "shot1.jpg")}]
    assert pairs(read_prompts(written(*rows))) == [("a cat", "shot2.PNG"), ("a dog", "shot1.jpg")]
    with pytest.raises(UsageError, match="given twice"):
        read_prompts(file, [folder / "shot1.jpg"])
    texts = written({"prompt": "a"}, {"prompt": "b"})
    assert pairs(read_prompts(texts)) == [("a", None), ("b", None)]
    assert pairs(read_prompts(texts, [folder / "shot1.jpg"])) == [("a", "shot1.jpg"), ("b", "shot1.jpg")]
    for odd in ("{", "[" * 100_000, "3", {"image": "shot1.jpg"}, {"prompt": 3}, {"prompt": "a", "img": "x.png"}):
        with pytest.raises(UsageError, match=r"(?s)not understood.*line 3"):
            read_prompts(written(rows[0], odd))
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(rows[0]).encode() + b"\r\n")  # as Windows writes it
    assert pairs(read_prompts(file)) == [("a cat", "shot2.PNG")]
    with pytest.raises(UsageError, match=r"(?s)one object per line.*\.jsonl"):
        read_prompts(file.with_suffix(".json"))
    with pytest.raises(UsageError, match="some do not"):
        read_prompts(written(rows[0], {"prompt": "b"}))


def test_what_is_no_image_is_said(folder):
    whole = (folder / "shot10.png").read_bytes()
    (folder / "torn.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("a cat", encoding="utf-8")
    (folder / "empty.png").write_bytes(b"")
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(folder / "deep.png")
    (folder / "folder.png").mkdir()
    told = {
        "torn": "cannot be read", "text": "not a kind of image", "empty": "not a kind of image",
        "deep": "more than 8 bits", "folder": "no such image", "none": "no such image",
    }  # fmt: skip
    for name, words in told.items():
        with pytest.raises(FileError, match=rf"(?s){words}") as said:
            FirstFrame.of(folder / f"{name}.png")
        assert f"{name}.png" in said.value.message
        assert "0x" not in said.value.message


def test_an_image_is_opened_as_diffusers_opens_it(folder):
    """Upright by what its camera wrote, in three colours; and never another one than was looked at."""
    loading = pytest.importorskip("diffusers.utils")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 4), np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels[..., :3]).save(folder / "phone.png", exif=turned)
    Image.fromarray(pixels).save(folder / "clear.png")
    Image.fromarray(pixels[..., 0]).convert("P").save(folder / "palette.gif")
    for name, size in {"phone.png": (4, 6), "clear.png": (6, 4), "palette.gif": (6, 4), "shot1.jpg": (6, 4)}.items():
        found = FirstFrame.of(folder / name)
        assert (found.width, found.height) == size
        assert found.digest == hashlib.sha256((folder / name).read_bytes()).hexdigest()
        with Image.open(folder / name) as held:
            assert np.array_equal(np.asarray(found.open()), np.asarray(loading.load_image(held)))
    picture(folder / "clear.png")
    with pytest.raises(FileError, match="changed"):
        FirstFrame(folder / "clear.png", "0" * 64, 6, 4).open()


def test_images_of_another_shape_than_the_clips_are_said(folder):
    square, wide, tall = (
        FirstFrame(folder / f"{n}.png", "0" * 64, *size) for n, size in enumerate(((40, 40), (85, 48), (9, 16)))
    )
    assert said_of_shapes([square, wide, tall], None) == ()
    assert said_of_shapes([wide], (832, 480)) == ()  # 16:9, as near as sides of that kind come
    (one,) = said_of_shapes([wide, tall, square, tall], (832, 480))
    assert "2.png and 1 more: 9 x 16, which the pipeline stretches to clips of 832 x 480" in one
