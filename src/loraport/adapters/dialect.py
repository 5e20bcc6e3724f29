"""A LoRA dialect: prefix x naming x suffix style x place of alpha. Detect, parse a key, render a key."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from importlib import resources

from loraport.adapters.grammar import grammar
from loraport.errors import UsageError
from loraport.models.family import Family
from loraport.models.keys import read_yaml

SAME_AS_INPUT = "same-as-input"


@dataclass(frozen=True)
class Dialect:
    """How a LoRA file spells its keys.

    Args:
        prefix: what stands before the module path, e.g. "diffusion_model.".
        names: naming of the modules: "original", "diffusers", "fastvideo".
        style: suffix style of the factors, a key of `styles` in grammar.yaml ("peft", "kohya", ...).
        flat: whether the dots of the module path are written as underscores.
        adapter: adapter name inside the suffix ("default"), where the style has one.
        alpha: where alpha lies: "none", "alpha" or "lora_alpha" (tensors), "metadata" (PEFT's
            configuration in the header), "header" (a number there), "config" (file beside).
        others: titles of the kinds that stand in the place of plain factors, or beside them.
    """

    prefix: str
    names: str
    style: str
    flat: bool = False
    adapter: str | None = None
    alpha: str = "none"
    others: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """One line for people."""
        flat = ", dots as underscores" if self.flat else ""
        alpha = {
            "none": "no alpha",
            "metadata": "alpha in the header",
            "header": "alpha in the header",
            "config": "alpha in adapter_config.json",
        }
        factors = " and ".join(self.others) or f"{self._ending('down')}/{self._ending('up')}"
        return (
            f"{self.prefix or '(no prefix)'} + {self.names} names{flat}, "
            f"{factors}, {alpha.get(self.alpha, f'.{self.alpha} tensors')}"
        )

    @property
    def has_alpha_tensors(self) -> bool:
        """Whether the file holds an alpha tensor for every layer."""
        return self.alpha in {"alpha", "lora_alpha"}

    def of(self, keys: Collection[str]) -> "Dialect":
        """The dialect of a file with these keys, which may have no factors at all."""
        if self.others or any(key.endswith(self._ending("down")) for key in keys):
            return self
        matrices = any(key.endswith(".diff") for key in keys)
        alpha = self.alpha if any(key.endswith(f".{self.alpha}") for key in keys) else "none"
        return replace(self, alpha=alpha, others=("whole matrices" if matrices else "no factors",))

    def module(self, name: str, family: Family) -> str:
        """A canonical module path as this dialect writes it, with the prefix."""
        spelled = family.spell(name, self.names)
        return self.prefix + (spelled.replace(".", "_") if self.flat else spelled)

    def factor(self, name: str, part: str, family: Family) -> str:
        """The key of a factor ("down" or "up") of a canonical layer."""
        return self.module(name, family) + self._ending(part)

    def _ending(self, part: str) -> str:
        return grammar().styles[self.style][part].replace("<adapter>", self.adapter or "default")

    def extra(self, name: str, part: str, family: Family) -> str:
        """The key of another part of a canonical module: "alpha", "lora_alpha", "diff_b", ..."""
        if part == "diff_m":  # written in place of the parameter's own name, not after it
            name = name.removesuffix(".modulation")
            spelled = name.replace(".", "_") if self.flat else name
            return f"{self.prefix}{spelled}.diff_m"
        named = self.adapter is not None and part == "lora_bias"
        ending = grammar().parts["lora_bias_named" if named else part].replace("<adapter>", self.adapter or "default")
        return self.module(name, family) + ending


@dataclass(frozen=True)
class Profile:
    """An output dialect with what it can pass on.

    Args:
        name: as the user says it.
        dialect: the spelling.
        carries: what is changed ("bias", "weight", "param") -> the part that spells it.
        factor_matrices: write whole matrices as two factors.
        complete_biases: as soon as one layer has a bias, give every layer one.
        comfyui: the names are those that ComfyUI reads, which some families call differently.
    """

    name: str
    dialect: Dialect
    carries: dict[str, str]
    factor_matrices: bool = False
    complete_biases: bool = False
    comfyui: bool = False

    def of(self, family: Family) -> "Profile":
        """The profile as it is for a family of models."""
        if not self.comfyui or self.dialect.names == family.universal:
            return self
        return replace(self, dialect=replace(self.dialect, names=family.universal))


_ROWS = read_yaml((resources.files("loraport.adapters") / "profiles.yaml").read_text("utf-8"))
PROFILES: dict[str, Profile] = {
    name: Profile(name, **{**row, "dialect": Dialect(**row["dialect"])}) for name, row in _ROWS.items()
}
PROFILE_NAMES: tuple[str, ...] = (*PROFILES, SAME_AS_INPUT)


def check_profile(profile: str) -> None:
    """Raise UsageError unless there is an output profile of that name."""
    if profile not in PROFILE_NAMES:
        names = ", ".join(PROFILE_NAMES)
        raise UsageError(
            f"there is no output profile {profile!r}",
            fix=f"use one of: {names}; universal is for ComfyUI and most other programs",
        )


def profile_of(profile: str, input_dialect: Dialect | None = None) -> Profile:
    """An output profile by name.

    Args:
        profile: one of PROFILE_NAMES.
        input_dialect: the dialect of the input, for "same-as-input". An alpha that lies outside the tensors
            is dropped there, since the scale is then written into the factors.

    Raises:
        UsageError: no such profile, or "same-as-input" without an input.
    """
    check_profile(profile)
    if profile != SAME_AS_INPUT:
        return PROFILES[profile]
    if input_dialect is None:
        raise UsageError(
            "there is no LoRA among the inputs whose names could be kept",
            values=SAME_AS_INPUT,
            fix=f"one of {', '.join(PROFILES)}",
        )
    # Other kinds are written as plain factors.
    alpha = input_dialect.alpha if input_dialect.has_alpha_tensors else "none"
    kept = replace(input_dialect, alpha=alpha, others=())
    return Profile(SAME_AS_INPUT, kept, {})
