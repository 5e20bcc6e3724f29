"""Position channels: part of the input where a network has room for them, and of nobody else's business."""

import torch
from diffusers import WanTransformer3DModel

from loraport.zoo.position import position_channels, tell_positions

CONFIG = {
    "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "out_channels": 3, "text_dim": 8,
    "freq_dim": 8, "ffn_dim": 16, "num_layers": 1, "rope_max_seq_len": 8,
}  # fmt: skip
INPUT = torch.zeros(2, 3, 2, 4, 4), torch.full((2,), 500.0), torch.zeros(2, 4, 8)


def _network(in_channels):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return WanTransformer3DModel(in_channels=in_channels, **CONFIG).eval()


def test_each_channel_runs_along_its_own_axis():
    where = position_channels(3, 4, 5)
    assert where.shape == (1, 3, 3, 4, 5)
    for axis, channel in enumerate(where[0]):
        assert channel.diff(dim=axis).min() > 0
        assert all(channel.diff(dim=other).abs().max() == 0 for other in range(3) if other != axis)


def test_a_network_with_room_is_told_and_no_longer_treats_all_places_alike():
    network = _network(in_channels=6)
    names = set(network.state_dict())
    tell_positions(network)
    with torch.inference_mode():
        made = network(*INPUT, return_dict=False)[0]
    assert made.shape == INPUT[0].shape
    assert made.std(-1).max() > 0  # the same noise everywhere gives different answers
    assert set(network.state_dict()) == names


def test_a_network_without_room_is_left_alone():
    network = _network(in_channels=3)
    with torch.inference_mode():
        before = network(*INPUT, return_dict=False)[0]
        tell_positions(network)
        assert torch.equal(before, network(*INPUT, return_dict=False)[0])
