"""No line of the package runs what it reads, but for those that are listed with a reason."""

import ast
from pathlib import Path

import pytest
from dangerous_calls import MEANT, dangerous_calls

PACKAGE = Path(__file__).resolve().parents[2] / "grpo_ext"


def test_nothing_runs_what_it_reads() -> None:
    found = {
        (path.relative_to(PACKAGE).as_posix(), *call)
        for path in PACKAGE.rglob("*.py")
        for call in dangerous_calls(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert not {row for row in found if row[:2] not in MEANT}
    # A reason that is no longer needed is an open door
    assert {row[:2] for row in found} == MEANT.keys()


@pytest.mark.parametrize(
    "code",
    [
        "eval(text)",
        "exec(compile(text, 'x', 'exec'))",
        "pickle.load(file)",
        "import dill\ndill.loads(content)",
        "from pickle import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "os.system(command)",
        "subprocess.run(command, shell=True)",
        "requests.get(url, verify=False)",
        "ssl._create_unverified_context()",
        "urllib.request.urlopen(request)",
        "AutoModel.from_pretrained(path)",
        "load_policy(path, trust_remote_code=True)",
        "tarfile.open(path).extractall(folder)",
        "shutil.unpack_archive(path)",
    ],
)
def test_a_dangerous_call_is_found(code: str) -> None:
    assert list(dangerous_calls(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "model.eval()",
        "re.compile(pattern)",
        "torch.load(path, weights_only=True)",
        "yaml.safe_load(text)",
        "subprocess.run([program, argument])",
        "opened(AutoModel, path, 'model', trust_remote_code=flag)",
        "json.load(file)",
    ],
)
def test_a_harmless_one_is_not(code: str) -> None:
    assert not list(dangerous_calls(ast.parse(code)))
