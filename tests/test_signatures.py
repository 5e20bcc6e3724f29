"""The signatures and docstrings of `loraport.transfer` and `transfer_many` are those of the fields of `Recipe`, and
their values arrive.

They stand in api.py as text, so that editors and type checkers see them. After a change of the fields,

    PYTHONPATH=src python tests/test_signatures.py

writes them anew.
"""

import inspect
import re
import textwrap
import types
import typing
from pathlib import Path

import pytest

import loraport
from loraport.adapters.added_lora import AddedLora
from loraport.engine.options import RunOptions
from loraport.engine.recipe import Recipe
from loraport.errors import UsageError
from loraport.settings import Setting, Settings

API = Path(loraport.__file__).with_name("api.py")  # not imported here, since it may be what is to be mended
BEGIN, END = "# The fields of Recipe, written by tests/test_signatures.py.\n", "# End of what is written.\n"
OTHERWISE = {  # handier than in a recipe
    "params": ("Mapping[str, Any] | None", "None"),
    "rank": ("str | int", None),
    "source_lora": ("PathLike | AddedLora | Sequence[PathLike | AddedLora]", "()"),
    "target_lora": ("PathLike | AddedLora | Sequence[PathLike | AddedLora]", "()"),
}
NOTES = {
    "output": "file to write; None computes and reports only.",
    "options": "how to use the machine: device, workers, memory, cache.",
    "on_event": "called with every `loraport.engine.events.Event`.",
}
MANY = {
    "loras": "LoRAs to transfer: files, folders that hold one or several, or zoo:NAME.",
    "output": "folder to write to. Files from a folder of LoRAs keep their relative paths.",
    "recursive": "also take LoRAs from subfolders.",
    "skip_existing": "skip LoRAs whose output exists.",
}
HEAD = """Transfer a LoRA from the model it was trained on to another of its family, such as a distilled variant."""
MANY_HEAD = """Transfer many LoRAs in one job. Each layer of the two models is read and decomposed once.

    Each output is the one that `transfer` writes. A failure of one LoRA does not stop the others. What is not explained
    here is explained there and applies to each LoRA."""
TAIL = '''
    Returns:
        The report: per-layer results, totals, warnings.

    Raises:
        LoraportError: see `loraport.errors`; the output is then left as it was.
    """
'''
MANY_TAIL = '''
    Returns:
        The outcome of each LoRA, in the order given: its report or its error.

    Raises:
        LoraportError: the settings, the machine or the two models are wrong, which concerns all LoRAs. Outputs that
            were already finished stay; the others are left as they were.
    """
'''
BODY = """    check_arguments(transfer, locals(), besides=Recipe.model_fields)
    made = make_plan(Recipe.build(recipe_settings(locals())))
    from loraport.engine.run import run  # loads torch, after all refusals

    return run(made, output, options or RunOptions(), on_event)
"""
MANY_BODY = """    check_arguments(transfer_many, locals(), besides=Recipe.model_fields)
    settings = recipe_settings(locals())

    def recipe(lora: str) -> Recipe:
        return Recipe.build(settings | {"lora": lora})

    asked = find_loras(as_paths(loras), Path(output), recursive=recursive)
    options = options or RunOptions()
    return carry_many(asked, recipe, Path(output), options, on_event, skip_existing=skip_existing)
"""


def written() -> str:
    """The functions as they should stand in api.py."""
    return f"{_function(many=False)}\n\n{_function(many=True)}"


def _function(*, many: bool) -> str:
    name, given = ("transfer_many", "loras") if many else ("transfer", "lora")
    lines = [f"def {name}(\n", f"    {given}: PathLike{' | Iterable[PathLike]' if many else ''},\n", "    *,\n"]
    for name, setting in Recipe.described().items():
        if name != "lora":
            kind, default = _kind(name, setting), _default(name)
            lines.append(f"    {name}: {kind}{'' if default is None else f' = {default}'},\n")
            if name == "target_lora":
                lines.append("    output: PathLike,\n" if many else "    output: PathLike | None = None,\n")
                lines += ["    recursive: bool = False,\n", "    skip_existing: bool = False,\n"] if many else []
    lines += ["    options: RunOptions | None = None,\n", "    on_event: Listener = ignore,\n"]
    lines.append(f") -> {'ManyReport' if many else 'TransferReport'}:\n")
    lines.append(f'    """{MANY_HEAD if many else HEAD}\n\n    Args:\n')
    lines += [_filled(f"{name}: {note}") for name, note in MANY.items()] if many else []
    for name, setting in Recipe.described().items() if not many else ():
        lines.append(_filled(setting.in_python(name)))
        lines += [_filled(f"output: {NOTES['output']}")] if name == "target_lora" else []
    lines += [_filled(f"{name}: {NOTES[name]}") for name in ("options", "on_event") if not many]
    lines += [MANY_TAIL, MANY_BODY] if many else [TAIL, BODY]
    return "".join(lines)


def _kind(name: str, setting: Setting) -> str:
    if name in OTHERWISE:
        return OTHERWISE[name][0]
    kind = _spelt(Recipe.model_fields[name].annotation)
    return kind.replace("str", "PathLike") if setting.path else kind


def _spelt(annotation: object) -> str:
    if typing.get_origin(annotation) is typing.Annotated:
        return _spelt(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) is typing.Literal:
        return f"Literal[{', '.join(_quoted(value) for value in typing.get_args(annotation))}]"
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " | ".join(_spelt(part) for part in typing.get_args(annotation))
    return "None" if annotation is type(None) else annotation.__name__


def _default(name: str) -> str | None:
    field = Recipe.model_fields[name]
    if name in OTHERWISE and OTHERWISE[name][1] is not None:
        return OTHERWISE[name][1]
    if field.is_required():
        return None
    if name == "method":
        return "DEFAULT"
    return _quoted(field.default)


def _quoted(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _filled(text: str) -> str:
    return textwrap.fill(text, 120, initial_indent=" " * 8, subsequent_indent=" " * 12) + "\n"


def _in_the_file() -> str:
    text = API.read_text(encoding="utf-8")
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)]


def test_what_stands_in_the_file_is_what_the_fields_say():
    assert _in_the_file().strip() == written().strip(), "run: PYTHONPATH=src python tests/test_signatures.py"


def test_every_value_arrives(monkeypatch):
    from loraport import api

    values = {
        "lora": "a", "source": Path("s"), "target": "t", "nested_source": "n", "nested_target": "m", "force": True,
        "architecture": "wan",
        "strength": 0.5, "scale": 2.0, "expert": "high", "adapter": "b", "drop": "d", "allow_partial": True,
        "method": "casa", "params": {"q_dom": 0.5}, "amount": 0.25, "layers": "l", "rank": 12, "to": "kohya",
        "dtype": "float16",
    }  # fmt: skip
    assert values.keys() | {"target_lora", "source_lora"} == Recipe.model_fields.keys()
    arrived = []

    def stop(plan, output, options, on_event):
        arrived.append((output, options))
        raise UsageError("far enough")

    monkeypatch.setattr(api, "make_plan", arrived.append)
    monkeypatch.setattr("loraport.engine.run.run", stop)
    lora = values.pop("lora")
    with pytest.raises(UsageError, match="far enough"):
        api.transfer(lora, output="o", **values)
    expected = {name: str(value) if name in ("source", "rank") else value for name, value in values.items()}
    assert {name: getattr(arrived[0], name) for name in expected} == expected
    assert arrived[1] == ("o", RunOptions())
    del values["target"]
    with pytest.raises(UsageError, match="far enough"):
        api.transfer(lora, target_lora="d:0.5", source_lora="e", **values)
    assert arrived[2].target_lora == (AddedLora(file="d", strength=0.5),)
    assert arrived[2].source_lora == (AddedLora(file="e"),)


def test_every_value_arrives_for_each_of_many(monkeypatch):
    from loraport import api

    arrived = []

    def stop(asked, make, folder, options, on_event, *, skip_existing):
        arrived.extend([[each.output for each in asked], make("a"), options, skip_existing])
        raise UsageError("far enough")

    monkeypatch.setattr(api, "carry_many", stop)
    with pytest.raises(UsageError, match="far enough"):
        api.transfer_many(
            ["a", Path("b.pt")], source="s", target="t", output="o", skip_existing=True, rank=7, amount=0.5
        )
    assert arrived[0] == [Path("o/a.safetensors"), Path("o/b.safetensors")]
    assert arrived[1] == Recipe(lora="a", source="s", target="t", rank="7", amount=0.5)
    assert arrived[2:] == [RunOptions(), True]


def test_every_field_is_explained_once():
    for model in (Recipe, RunOptions):
        assert model.described().keys() == model.model_fields.keys()
        for name, setting in model.described().items():
            assert setting.help.endswith("."), name
            assert all(flag.startswith("-") for flag in setting.flags)
    flags = [flag for model in (Recipe, RunOptions) for it in model.described().values() for flag in it.flags]
    assert len(set(flags)) == len(flags)


def test_help_shows_every_field_of_a_public_class_and_its_type():
    public = [getattr(loraport, name) for name in loraport.__all__]
    shown = [it for it in public if inspect.isclass(it) and issubclass(it, Settings)]
    assert Recipe in shown
    for model in shown:
        assert all(f"\n    {name}: " in inspect.getdoc(model) for name in model.described()), model
        assert "--" not in inspect.getdoc(model), model
        assert inspect.signature(model).parameters.keys() == model.model_fields.keys()
        assert not re.search("Annotated| at 0x", str(inspect.signature(model))), model
    assert "workers: int | None = None" in str(inspect.signature(RunOptions))


def test_parts_of_a_recipe_in_other_functions_have_its_defaults():
    for function in (loraport.convert, loraport.verify):
        for name, parameter in inspect.signature(function).parameters.items():
            field = (Recipe.model_fields | RunOptions.model_fields).get(name)
            if field is not None and not field.is_required():
                assert parameter.default == field.default, name


if __name__ == "__main__":
    whole = API.read_text(encoding="utf-8")
    API.write_text(whole.replace(_in_the_file(), f"{written()}\n\n"), encoding="utf-8")
