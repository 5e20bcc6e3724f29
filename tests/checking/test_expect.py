"""What the page of a transfer opens with: what was done, and whether to expect an effect of it."""

import pytest

from loraport.checking.expect import expect
from loraport.checking.thresholds import thresholds


def _report(drift: float | None = 0.03, *, rounding: bool = False, **facts) -> dict:
    stats = {} if drift is None else {"drift_rel": drift, "drift_is_rounding": rounding}
    summary = {"method": "casa", "target": "fast", "amount": 1.0, "strength": 1.0, "energy_kept_total": 1.0} | facts
    return {"summary": summary, "layers": [{"stats": stats}] * 3}


FAR, LARGE = thresholds()["made_by_loras"].value, thresholds()["large_drift"].value
LORAS = {"target": None, "target_lora": [{"file": "few.safetensors"}]}


@pytest.mark.parametrize(
    ("report", "words", "tone", "said"),
    [
        (_report(), "converted", "plain", "Compare it with the LoRA as it is"),
        (_report(FAR, **LORAS), "converted", "plain", "nearer to source + LoRA than reuse"),
        (_report(FAR / 2, **LORAS), "converted", "plain", "Compare it with the LoRA as it is"),
        (_report(method="mean_matched"), "converted", "plain", "measured of mean_matched"),
        (_report(0.0), "nothing to transfer", "plain", "are the same"),
        (_report(0.001, rounding=True), "only rounding", "caution", "Rounding"),
        (_report(method="direct"), "the LoRA as it is", "good", "suited the target"),
        (_report(0.1, amount=0.0), "the LoRA as it is", "plain", "look at clips"),
        (_report(LARGE, method="direct"), "the LoRA as it is", "caution", "strength 1.25 was nearer"),
        (_report(None, method="direct", strength=0.5), "the LoRA as it is", "plain", "at strength 0.5"),
        (_report(energy_kept_total=0.5), "converted", "caution", "Compare it with"),
    ],
)
def test_what_is_said(report: dict, words: str, tone: str, said: str):
    found = expect(report)
    assert (found.words, found.tone) == (words, tone)
    assert said in " ".join(found.sentences)


def test_of_a_run_without_an_end_nothing_is_said():
    assert expect({"layers": []}) is None
    assert expect({"layers": [{"stats": {}}], "summary": {}}) is None
    assert expect({"layers": [], "error": "it broke"}).words == "failed"
