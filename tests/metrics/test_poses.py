"""People and their joints: the decoding against its rules written out, and the networks on matplotlib's portrait."""

import itertools

import numpy as np
import pytest

from loraport.errors import FileError
from loraport.metrics import persons, posture
from loraport.metrics.judging import Judges, JudgeWeights
from loraport.metrics.measures import MEASURES
from loraport.metrics.poses import NETWORKS, SIGMAS, Pose, Poses, oks, pose_weights, refined

cv2 = pytest.importorskip("cv2", reason="opencv is not installed")
OF_MEDIAPIPE = np.array([
    [269.8, 225.2], [305.1, 189.6], [230.2, 194.9], [339.4, 210.9], [195.0, 217.1], [455.6, 428.5], [95.6, 422.9],
])  # fmt: skip
"""What mediapipe 0.10.21 finds on the portrait: nose, eyes, ears and shoulders; all else it takes for hidden."""


@pytest.fixture(scope="module")
def poses():
    weights = pose_weights()
    if weights is None:
        pytest.skip("ai-edge-litert or a mediapipe with weights is not installed")
    return Poses(weights)


def body(turn=0.0, at=(0.0, 0.0), scale=1.0, hidden=()):
    """A figure of 17 joints, 100 high, whose right forearm is turned around the elbow."""
    points = np.array([
        [50, 5], [53, 3], [47, 3], [56, 5], [44, 5], [65, 20], [35, 20], [70, 38], [30, 38], [70, 55], [30, 55],
        [58, 52], [42, 52], [58, 75], [42, 75], [58, 98], [42, 98],
    ], float)  # fmt: skip
    arm = points[10] - points[8]
    points[10] = points[8] + [np.cos(turn) * arm[0] - np.sin(turn) * arm[1],
                              np.sin(turn) * arm[0] + np.cos(turn) * arm[1]]  # fmt: skip
    seen = np.ones(17, bool)
    seen[list(hidden)] = False
    return Pose(scale * points + np.array(at), seen, 100.0 * scale)


def test_anchors_are_those_of_ssd_with_a_fixed_size():
    """Two a layer, of aspect 1 and of the next scale, layer by layer; layers of one stride share their cells."""
    made = []
    for stride, layers in itertools.groupby([8, 16, 32, 32, 32]):
        here = 2 * len(list(layers))
        for y, x in itertools.product(range(224 // stride), repeat=2):
            made += [((x + 0.5) / (224 // stride), (y + 0.5) / (224 // stride))] * here
    assert np.allclose(persons.anchors(), made)


def test_boxes_are_decoded_and_merged_by_the_rules():
    rng = np.random.default_rng(0)
    at = persons.anchors()[rng.choice(2254, 40, replace=False)]
    values, sure = rng.normal(0, 30, (40, 12)).astype(np.float32), rng.uniform(0.5, 1, 40)
    boxes = persons.decoded(values, at)
    for row, anchor, box in zip(values.astype(float), at, boxes, strict=True):
        x, y, w, h = row[0] / 224 + anchor[0], row[1] / 224 + anchor[1], row[2] / 224, row[3] / 224
        assert box[:4] == pytest.approx([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
        for k in range(4):
            point = [row[4 + 2 * k] / 224 + anchor[0], row[5 + 2 * k] / 224 + anchor[1]]
            assert box[4 + 2 * k : 6 + 2 * k] == pytest.approx(point)
    boxes[:, 2:4] = boxes[:, :2] + rng.uniform(0.1, 0.5, (40, 2))  # boxes with an inside, many of which overlap
    left, expected = sorted(range(40), key=lambda n: -sure[n]), []
    while left:
        group = [n for n in left if n == left[0] or _shared(boxes[left[0]], boxes[n]) > 0.3]
        expected.append(sum(sure[n] * boxes[n] for n in group) / sum(sure[n] for n in group))
        left = [n for n in left if n not in group]
    assert len(expected) < 40
    assert np.allclose(persons.merged(boxes, sure), expected)
    assert persons.merged(boxes[:0], sure[:0]).shape == (0, 12)


def _shared(a, b):
    wide, high = (max(min(a[k + 2], b[k + 2]) - max(a[k], b[k]), 0) for k in (0, 1))
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return wide * high / (areas - wide * high)


def test_a_square_that_is_cut_out_stands_upright():
    """A dot lies in the square where the way back takes it to its place in the frame."""
    frame = np.zeros((90, 120, 3), np.uint8)
    cv2.circle(frame, (70, 30), 3, (255, 255, 255), -1)
    circle = persons.Circle(60.0, 40.0, 35.0, 0.4)
    made = persons.cut(frame, circle, 128, around="black")
    row, column = np.indices((128, 128))
    place = [(made[..., 0] * where).sum() / made[..., 0].sum() for where in (column, row)]
    back = persons.from_square(circle, 128) @ [*place, 1]
    assert back == pytest.approx((70, 30), abs=0.3)
    lean = persons._circle(np.array([60.0, 40.0]), np.array([60 + 35 * np.sin(0.4), 40 - 35 * np.cos(0.4)]))
    assert (lean.radius, lean.tilt) == (pytest.approx(35), pytest.approx(0.4))  # the head's side of it is up


def test_places_are_moved_to_the_middle_of_what_the_map_shows():
    maps = np.full((64, 64, 4), -9, np.float32)
    maps[20:23, 30:33, 0] = 5  # within reach
    maps[40, 50, 1] = 5  # out of reach
    maps[10, 10, 2] = -0.5  # not sure
    places = np.array([[33, 22], [30, 20], [10, 10], [-3, 5]]) / 64
    made = refined(places, maps)
    assert made[0] * 64 == pytest.approx((31, 21), abs=0.1)
    assert np.array_equal(made[1:], places[1:])


def test_oks_is_cocos_formula():
    ours, theirs = body(1.0, at=(3, 1)), body(hidden=(0, 15))
    wanted = []
    area = 0.53 * 40 * (98 - 3)  # of the box around the joints that are shown
    for k in range(17):
        if theirs.seen[k]:
            dx, dy = ours.joints[k] - theirs.joints[k]
            wanted.append(np.exp(-(dx**2 + dy**2) / ((2 * SIGMAS[k]) ** 2) / area / 2))
    assert oks(ours, theirs) == pytest.approx(np.mean(wanted))
    assert pytest.approx(
        [0.026, 0.025, 0.025, 0.035, 0.035, *[0.079] * 2, *[0.072] * 2, *[0.062] * 2, *[0.107] * 2, *[0.087] * 2,
         *[0.089] * 2]
    ) == SIGMAS  # fmt: skip


def test_a_posture_is_the_same_wherever_and_however_large_it_is():
    assert posture.gap(body(), body()) == 0
    assert posture.gap(body(0.3, at=(40, -7), scale=2.5), body(0.3)) == pytest.approx(0, abs=1e-12)
    gaps = [posture.gap(body(turn), body()) for turn in (0.2, 0.6, 1.5)]
    assert gaps == sorted(gaps)
    assert 0 < gaps[0] < gaps[-1] < 0.1
    assert posture.gap(body(0.6, scale=3), body(scale=3)) == pytest.approx(gaps[1])  # in body heights
    assert posture.gap(body(hidden=range(9)), body(hidden=range(6, 17))) is None
    point = Pose(np.zeros((17, 2)), np.ones(17, bool), 1.0)
    assert posture.gap(point, body()) is None


def test_people_are_told_apart_and_their_speed_is_theirs():
    left = [body(0.1 * n, at=(3 * n, 0)) for n in range(5)]
    right = [body(at=(200 - 2 * n, 0)) for n in range(5)]
    people = [[a, b] if n % 2 else [b, a] for n, (a, b) in enumerate(zip(left, right, strict=True))]
    alone = posture.speed([[a] for a in left], 8.0)
    assert alone > 0
    assert posture.speed(people, 8.0) == pytest.approx(alone / 2)  # the other one only glides
    assert posture.speed(people, 16.0) == pytest.approx(alone)
    assert posture.speed(people[:1], 8.0) is None
    assert posture.likeness([[left[0]]], [[left[0], right[0]]]) == pytest.approx(0.5)  # one is missing
    assert posture.likeness([[left[0], right[0]]], [[right[0]]]) == 1
    assert posture.likeness([[left[0]]], [[]]) is None
    assert posture.distance([[]], [[left[0]]]) is None
    there = posture.numbers([[left[0]], [], [left[0], right[0]]], [[left[0]]] * 3, 8.0)
    assert (there["people"], there["people_off"]) == (1, pytest.approx(2 / 3))
    assert there["people_spread"] == pytest.approx(np.std([1, 0, 2]))


def test_the_joints_are_those_of_mediapipe(poses, portrait):
    """To what another OpenCV makes of the same pixels; a body is 1540 high there, most of it outside of the picture."""
    (found,) = poses.find(portrait)
    assert found.seen.tolist() == [True] * 7 + [False] * 10
    assert found.joints[found.seen] == pytest.approx(OF_MEDIAPIPE, abs=6)
    (small,) = poses.find(portrait[::3, ::3])
    assert 3 * small.joints[small.seen] == pytest.approx(OF_MEDIAPIPE, abs=15)


def test_doubles_are_counted_and_nobody_is_nobody(poses, portrait):
    half = portrait[::3, ::3]
    one = np.concatenate([half, np.full_like(half, 128)], 1)
    two = np.concatenate([half, half[:, ::-1]], 1)
    noise = np.random.default_rng(0).integers(0, 256, one.shape, np.uint8)
    tiny = noise[:16, :16]
    people = [poses.find(frame) for frame in (one, two, noise, tiny, np.zeros_like(two))]
    assert posture.count(people).tolist() == [1, 2, 0, 0, 0]
    twin = min(people[1], key=lambda each: each.joints[0, 0])
    assert posture.gap(twin, people[0][0]) < 0.01


def test_what_is_measured_of_a_clip(poses, portrait):
    half = portrait[::3, ::3]
    still, moved = np.stack([half] * 3), np.stack([np.roll(half, 2 * n, 1) for n in range(3)])
    nobody = np.random.default_rng(0).integers(0, 256, still.shape, np.uint8)
    judges = Judges(poses=poses)
    looks = {name: judges.look(clip) for name, clip in (("still", still), ("moved", moved), ("nobody", nobody))}
    same = judges.judge(looks["still"], looks["still"], "a portrait", 8.0)
    assert {each.key: same[each.key] for each in MEASURES if each.needs == "poses"} == {
        "people": 1,
        "people_spread": 0,
        "people_off": 0,
        "poses": 1,
        "postures_off": 0,
        "joint_speed": 0,
    }
    panned = judges.judge(looks["moved"], looks["still"], "a portrait", 8.0)
    assert panned["people"] == 1
    assert 0.5 < panned["poses"] < 0.99
    assert 0 < panned["postures_off"] < 0.01
    assert panned["joint_speed"] < 0.15
    lost = judges.judge(looks["nobody"], looks["still"], "a portrait", 8.0)
    assert (lost["people"], lost["people_off"], lost["poses"]) == (0, 1, 0)
    assert not {"postures_off", "joint_speed"} & set(lost)
    alone = judges.judge(looks["nobody"], looks["nobody"], "a portrait", 8.0)
    assert not {"poses", "postures_off", "joint_speed"} & set(alone)
    assert len(judges.look(np.stack([half] * 5), 24.0).people) == 2  # about eight a second


def test_nothing_is_written_to_the_terminal(poses, capfd):
    Poses(pose_weights())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("what", ["torn", "swapped", "missing"])
def test_what_is_no_network_is_said(poses, tmp_path, what):
    finder, landmarks = (pose_weights() / each for each in NETWORKS)
    given = {"torn": finder.read_bytes()[:5000], "swapped": landmarks.read_bytes()}
    for each in NETWORKS:
        (tmp_path / each).parent.mkdir(parents=True)
    if what in given:
        (tmp_path / NETWORKS[0]).write_bytes(given[what])
    (tmp_path / NETWORKS[1]).write_bytes(landmarks.read_bytes())
    with pytest.raises(FileError, match=r"pose_detection\.tflite"):
        Judges.open(JudgeWeights(poses=tmp_path))
