"""Parts of every kind that are not whole, do not fit, or hold bad numbers."""

import pytest
import torch

from adapter_parts import LAYERS, factors, gaussian, write_lycoris
from loraport.adapters.parse import open_adapter
from loraport.errors import MismatchError, NumericalError, UnmatchedKeysError, UnsupportedError


class TestRefused:
    Q = LAYERS[0]

    @pytest.mark.parametrize(
        ("parts", "error", "words"),
        [
            ({"dora_scale": gaussian(32, 1)}, UnmatchedKeysError, "lora_A.weight is missing"),
            ({"dora_scale": gaussian(32, 1), "oft_R.weight": gaussian(8, 6)}, UnsupportedError, "a magnitude on OFT"),
            (
                {"dora_scale": gaussian(31, 1), "lora_up.weight": gaussian(32, 2), "lora_down.weight": gaussian(2, 32)},
                MismatchError,
                "does not fit its factors",
            ),
            (
                {"dora_scale": gaussian(32, 1), "magnitude": gaussian(32)}
                | {"lora_up.weight": gaussian(32, 2), "lora_down.weight": gaussian(2, 32)},
                MismatchError,
                "does not fit its factors",
            ),
            (
                {"a1.weight": gaussian(32, 0), "a2.weight": gaussian(0, 32)}
                | {"b1.weight": gaussian(32, 0), "b2.weight": gaussian(0, 32)},
                MismatchError,
                "do not fit each other",
            ),
            (
                {f"hada_w{n}_a": gaussian(32, 0) for n in (1, 2)} | {f"hada_w{n}_b": gaussian(0, 32) for n in (1, 2)},
                MismatchError,
                "do not fit each other",
            ),
            ({"oft_blocks": gaussian(8, 4, 3)}, MismatchError, "not blocks"),
            ({"oft_blocks": gaussian(3, 5, 4, 4)}, MismatchError, "not blocks"),
            ({"oft_blocks": gaussian(8, 4, 4), "rescale": gaussian(31, 1)}, MismatchError, "not blocks"),
            ({"rescale": gaussian(32, 1)}, UnmatchedKeysError, "factors it belongs to are missing"),
            ({"oft_R.weight": gaussian(4, 7)}, MismatchError, "not blocks"),
            ({"boft_s": gaussian(32, 1)}, UnmatchedKeysError, "boft_R is missing"),
            (
                {"a1.weight": gaussian(32, 2), "a2.weight": gaussian(2, 32), "b1.weight": gaussian(32, 2)},
                UnmatchedKeysError,
                "b2.weight is missing",
            ),
            (
                {
                    "a1.weight": gaussian(32, 2),
                    "a2.weight": gaussian(3, 32),
                    "b1.weight": gaussian(32, 2),
                    "b2.weight": gaussian(2, 32),
                },
                MismatchError,
                "do not fit each other",
            ),
            ({"on_input": torch.tensor(1)}, UnmatchedKeysError, r"self_attn_q\.weight is missing"),
            ({"ia3_l": gaussian(32, 2)}, MismatchError, "one entry for each"),
            ({"set_weight": torch.zeros(0, 3)}, MismatchError, "is not a weight"),
            ({"set_weight": gaussian(16, 32)}, MismatchError, "sizes contradict"),
            ({"lora_up.0.weight": gaussian(32, 2)}, UnmatchedKeysError, r"lora_down\.0\.weight is missing"),
            ({"vera_lambda_b": gaussian(32)}, UnmatchedKeysError, "vera_lambda_d is missing"),
            (
                {"vera_lambda_b": gaussian(0), "vera_lambda_d": gaussian(2)}
                | {"vera_A": gaussian(2, 32), "vera_B": gaussian(32, 2)},
                MismatchError,
                "do not fit the matrices",
            ),
            (
                {"vera_lambda_b": gaussian(32), "vera_lambda_d": gaussian(2)}
                | {"vera_A": gaussian(2, 32), "vera_B": gaussian(32)},
                MismatchError,
                "do not fit the matrices",
            ),
            (
                {"lora_up.0.weight": gaussian(32, 3), "lora_down.0.weight": gaussian(2, 32)},
                MismatchError,
                "do not fit each other",
            ),
            ({"lora_up.0.weight": gaussian(32), "lora_down.0.weight": gaussian(2, 32)}, MismatchError, "do not fit"),
            ({"hada_t1": gaussian(2, 2, 2, 2)}, UnmatchedKeysError, "missing"),
            (
                {
                    "lora_up.weight": gaussian(32, 2),
                    "lora_down.weight": gaussian(2, 32),
                    "lora_mid.weight": gaussian(2),
                },
                MismatchError,
                "do not fit each other",
            ),
            (
                {"dora_scale": gaussian(), "lora_up.weight": gaussian(32, 2), "lora_down.weight": gaussian(2, 32)},
                MismatchError,
                "does not fit its factors",
            ),
            ({"diff_b": gaussian()}, UnmatchedKeysError, "which is not a bias"),
        ],
    )
    def test_parts_that_are_not_whole(self, parts, error, words, source, tmp_path):
        path = write_lycoris({self.Q: parts}, tmp_path / "x.safetensors")
        with pytest.raises(error, match=words):
            open_adapter(path, source)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize(
        "parts",
        [
            {"dora_scale": gaussian(32, 1), "lora_up.weight": gaussian(32, 2), "lora_down.weight": gaussian(2, 32)},
            {"oft_blocks": gaussian(8, 4, 4)},
            {"oft_blocks": gaussian(2, 8, 4, 4)},
            {
                "a1.weight": gaussian(32, 2),
                "a2.weight": gaussian(2, 32),
                "b1.weight": gaussian(32, 2),
                "b2.weight": gaussian(2, 32),
            },
            {"ia3_l": gaussian(32, 1)},
            {"set_weight": gaussian(32, 32)},
        ],
    )
    def test_numbers_that_are_not_finite(self, parts, value, source, tmp_path):
        for name in parts:
            spoilt = {n: t.clone() for n, t in parts.items()}
            spoilt[name].reshape(-1)[0] = value
            layer = open_adapter(write_lycoris({self.Q: spoilt}, tmp_path / "x.safetensors"), source).layers[self.Q]
            with pytest.raises(NumericalError, match=r"NaN or infinity|not finite"):
                layer.load()

    @pytest.mark.parametrize("part", ["dora_scale", "oft_blocks", "ia3_l", "set_weight"])
    def test_integers(self, part, source, tmp_path):
        parts, _ = factors("lora", 32, 32)
        shape = {"oft_blocks": (8, 4, 4), "set_weight": (32, 32)}.get(part, (32, 1))
        whole = {part: torch.ones(shape, dtype=torch.int32)} | (parts if part == "dora_scale" else {})
        with pytest.raises(UnsupportedError, match="integers"):
            open_adapter(write_lycoris({self.Q: whole}, tmp_path / "x.safetensors"), source)

    def test_sizes_beyond_all_measure_are_refused_before_they_are_read(self, tmp_path):
        """A few bytes in a torch file can claim a matrix of terabytes."""
        huge = 10**6
        cases = [
            {"lokr_w1": (huge, huge), "lokr_w2": (4, 4)},
            {"a1.weight": (32, huge), "a2.weight": (huge, 32), "b1.weight": (32, huge), "b2.weight": (huge, 32)},
            {"lora_up.weight": (32, 4), "lora_down.weight": (4, huge), "lora_mid.weight": (4, 4, huge)},
            {"lora_up.0.weight": (huge, 4), "lora_down.0.weight": (4, huge)},
            {"lora_up.weight": (huge, 2), "lora_down.weight": (2, huge), "dora_scale": (huge, 1)},
            {"set_weight": (huge, huge)},
            {"lora_up.weight": (32, huge), "lora_down.weight": (huge, 32), "lora_mid.weight": (huge, huge, 1)},
            {"lora_up.0.weight": (32, huge), "lora_down.0.weight": (huge, 32)},
            {"lokr_w1": (4, 4), "lokr_w2_a": (8, huge), "lokr_w2_b": (huge, 8)},
            {"hada_w1_a": (32, 2), "hada_w1_b": (2, 32), "hada_w2_a": (32, huge), "hada_w2_b": (huge, 32)},
            {"hada_w1_a": (32, huge), "hada_w1_b": (huge, 32), "hada_w2_a": (32, 2), "hada_w2_b": (2, 32)},
            {"vera_lambda_b": (32,), "vera_lambda_d": (huge,), "vera_A": (huge, 32), "vera_B": (32, huge)},
        ]
        for parts in cases:
            tensors = {f"lycoris_blocks_0_self_attn_q.{name}": torch.zeros(1).expand(s) for name, s in parts.items()}
            torch.save(tensors, tmp_path / "x.pt")
            with pytest.raises(MismatchError, match=r"far larger than any layer|rank far larger than the layer"):
                open_adapter(tmp_path / "x.pt")

    def test_factors_and_a_function_on_one_layer(self, source, tmp_path):
        parts, _ = factors("lora", 32, 32)
        path = write_lycoris({self.Q: parts | {"ia3_l": gaussian(32, 1)}}, tmp_path / "x.safetensors")
        with pytest.raises(UnsupportedError, match="several kinds: ia3 and lora"):
            open_adapter(path, source)
