"""Uploads to a stand-in for the hub: what arrives, what must not, and what happens when things break."""

import json
import re
import socket
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from finished_runs import BASE, EXPECTED, HOST, REPO, USER, adapted, finished_run, prepared, target
from peft import PeftModel
from transformers import AutoModelForCausalLM

from fake_hub import OWNER, TOKEN, FakeHub, Fault
from grpo_ext.__main__ import main as command
from grpo_ext.hub.prepare import kept, read_state
from grpo_ext.hub.push import push_run
from grpo_ext.models.tiny import tiny_tokenizer


def test_one_commit_with_exactly_the_files_that_may_go(hub: FakeHub, run: Path) -> None:
    address = push_run(run, target())
    assert address == f"{hub.url}/{REPO}/commit/{1:040d}"
    assert [row["paths"] for row in hub.commits] == [EXPECTED]
    assert set(hub.files[REPO]) == EXPECTED
    weights = run / "adapter"
    for name in ("adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"):
        assert hub.files[REPO][name] == (weights / name).read_bytes(), name
    state = read_state(run / "to_push")
    assert state is not None
    assert state["left_out"] == ["notes.txt", "optimizer.pt", "training_args.bin"]
    assert (state["state"], state["commit"]) == ("pushed", address)
    assert prepared(run) == {}


def test_nothing_private_is_uploaded(hub: FakeHub, run: Path, base_folder: Path) -> None:
    push_run(run, target())
    everything = b"\0".join([*(body for _, body in hub.seen), *hub.files[REPO].values()])
    private = [TOKEN, USER, HOST, socket.gethostname(), str(Path.home()), str(Path.cwd()), tempfile.gettempdir() + "/"]
    for word in [*private, str(run), str(base_folder), str(base_folder.parent), "hf_", "optimizer", "training_args"]:
        assert word.encode() not in everything, word
    config = json.loads(hub.files[REPO]["adapter_config.json"])
    assert config["base_model_name_or_path"] == "tiny-base"
    assert "vocab_file" not in json.loads(hub.files[REPO]["tokenizer_config.json"])
    card = hub.files[REPO]["README.md"].decode()
    assert "--output_dir first-try --learning_rate 1e-6" in card and "push_to_hub" not in card


def test_the_uploaded_adapter_says_what_the_policy_said(hub: FakeHub, run: Path, base_folder: Path) -> None:
    push_run(run, target(), base_model=BASE)
    there = run.parent / "downloaded"
    there.mkdir()
    for name, content in hub.files[REPO].items():
        (there / name).write_bytes(content)
    assert json.loads((there / "adapter_config.json").read_text())["base_model_name_or_path"] == BASE
    ids = torch.tensor([tiny_tokenizer()("7 + 8 = ", add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        expected = adapted(base_folder)(ids).logits.log_softmax(-1)
        plain = AutoModelForCausalLM.from_pretrained(base_folder)
        bare = plain(ids).logits.log_softmax(-1)
        loaded = PeftModel.from_pretrained(plain, there).eval()(ids).logits.log_softmax(-1)
    assert torch.equal(loaded, expected)
    assert (loaded - bare).abs().max() > 0.1

    # The block that the card shows, with folders in place of the two names
    block = re.search(r"With peft:\n\n```python\n(.*?)```", (there / "README.md").read_text(), re.DOTALL)
    assert block is not None
    code = block[1].replace(f'"{REPO}"', repr(str(there))).replace(f'"{BASE}"', repr(str(base_folder)))
    names: dict[str, Any] = {}
    exec(code.replace("max_new_tokens=256", "max_new_tokens=3"), names)
    with torch.no_grad():
        assert torch.equal(names["model"](ids).logits.log_softmax(-1), expected)


def test_a_second_upload_of_the_same_makes_no_commit(hub: FakeHub, run: Path) -> None:
    push_run(run, target())
    push_run(run, target())
    assert len(hub.commits) == 1
    (run / "adapter" / "chat_template.jinja").write_text("{{ messages }}")
    push_run(run, target())
    assert hub.commits[1]["paths"] == {"chat_template.jinja"}


STEPS = ["whoami", "create", "validate", "preupload", "batch", "put", "commit"]
PASSING = [
    *((step, what) for step in STEPS for what in (503, "close")),
    *(("whoami", 429), ("create", 500), ("create", "lost"), ("validate", "page"), ("put", "half"), ("put", "lost")),
    *(("commit", 429), ("commit", 502), ("commit", "page"), ("commit", "half"), ("commit", "lost")),
]


@pytest.mark.parametrize(("step", "what"), PASSING)
def test_what_passes_is_tried_again(hub: FakeHub, ready: Path, waits: list[float], step: str, what: Any) -> None:
    hub.faults.append(Fault(step, what))
    push_run(ready, target())
    assert set(hub.files[REPO]) == EXPECTED
    assert hub.files[REPO]["adapter_model.safetensors"] == (ready / "adapter/adapter_model.safetensors").read_bytes()
    assert len(hub.commits) == 1 and len(waits) == 1
    # A commit that was made although its answer was lost is found and not made again
    assert hub.asked.count("preupload" if (step, what) == ("commit", "lost") else step) >= 2


@pytest.mark.parametrize(
    ("step", "status", "said"),
    [
        ("whoami", 401, "does not accept the token (401); log in with `hf auth login`, or set HF_TOKEN"),
        ("create", 403, "The token may not write to 'first-try' (403)"),
        ("preupload", 403, f"The token may not write to '{REPO}' (403)"),
        ("preupload", 404, f"The hub has no repository '{REPO}', or no such branch of it (404"),
        ("commit", 409, f"Something else is changing '{REPO}' on the hub (409"),
        ("commit", 413, f"The hub finds the files for '{REPO}' too large (413"),
        ("commit", 418, "The hub answered 418"),
    ],
)
def test_a_refusal_is_one_sentence_and_keeps_everything(
    hub: FakeHub, ready: Path, waits: list[float], step: str, status: int, said: str
) -> None:
    hub.faults.append(Fault(step, status, times=-1))
    with pytest.raises(OSError, match=re.escape(said)) as caught:
        push_run(ready, target())
    text = str(caught.value)
    assert "\n" not in text and "http" not in text and TOKEN not in text
    assert text.endswith(f"everything is kept in {ready / 'to_push'}, and `grpo-ext push {ready}` uploads it.")
    assert waits == [] and hub.asked.count(step) == 1
    state = kept(ready / "to_push")
    assert state is not None and state["state"] == "failed" and said[:20] in state["error"]
    assert set(prepared(ready)) == EXPECTED

    hub.faults.clear()
    before = prepared(ready)
    push_run(ready, target())
    assert {name: hub.files[REPO][name] for name in EXPECTED - {"README.md"}} == {
        name: before[name] for name in EXPECTED - {"README.md"}
    }


@pytest.mark.parametrize("what", ["half", "close", 503])
def test_a_broken_upload_is_finished_later_byte_for_byte(
    hub: FakeHub,
    run: Path,
    waits: list[float],
    what: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.faults.append(Fault("put", what, times=-1))
    with pytest.raises(OSError, match=r"3 times; everything is kept in .*to_push, and `grpo-ext push"):
        push_run(run, target())
    assert hub.commits == [] and hub.files[REPO] == {}
    before = prepared(run)
    assert set(before) == EXPECTED

    hub.faults.clear()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert command(["push", str(run)]) == 0
    assert f"Uploaded: {hub.url}/{REPO}/commit/" in capsys.readouterr().out
    assert hub.files[REPO] == before
    assert len(hub.commits) == 1


def test_waits_double_and_end(hub: FakeHub, ready: Path, waits: list[float]) -> None:
    hub.faults.append(Fault("whoami", 503, times=-1))
    with pytest.raises(OSError, match=r"The hub answered 503.*, 4 times; everything is kept"):
        push_run(ready, target(attempts=4))
    assert hub.asked == ["whoami"] * 4
    assert len(waits) == 3
    assert all(low <= wait <= 1.25 * low for low, wait in zip([1.0, 2.0, 4.0], waits, strict=True))


def test_a_server_that_says_how_long_is_obeyed_up_to_a_minute(hub: FakeHub, ready: Path, waits: list[float]) -> None:
    hub.faults += [
        Fault("commit", 429, headers={"Retry-After": "17"}),
        Fault("commit", 429, headers={"Retry-After": "900"}),
    ]
    push_run(ready, target())
    assert waits == [17.0, 60.0]


def test_a_slow_answer_is_waited_for_and_silence_is_not(hub: FakeHub, ready: Path, waits: list[float]) -> None:
    hub.faults.append(Fault("commit", 0.4))
    push_run(ready, target(silence=10.0))
    assert hub.asked.count("commit") == 1 and waits == []

    hub.faults.append(Fault("whoami", 30.0, times=-1))
    with pytest.raises(OSError, match=r"The hub cannot be reached \(.*[Tt]imed? ?out.*\), 2 times"):
        push_run(ready, target(silence=0.2, attempts=2))


def test_nobody_is_there(hub: FakeHub, ready: Path, waits: list[float]) -> None:
    hub.stop()
    with pytest.raises(OSError, match=r"^The hub cannot be reached \(.*\), 3 times; everything is kept"):
        push_run(ready, target())


def test_offline_mode_is_said(hub: FakeHub, ready: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="HF_HUB_OFFLINE is set; unset it; everything is kept"):
        push_run(ready, target())
    assert waits == [] and hub.asked == []


def test_a_card_that_was_rewritten_keeps_its_words(hub: FakeHub, ready: Path) -> None:
    card = ready / "to_push" / "README.md"
    card.write_text(card.read_text() + "\nIt likes apples.\n")
    push_run(ready, target())
    there = hub.files[REPO]["README.md"].decode()
    assert "It likes apples." in there and f'"{REPO}"' in there and "OWNER/" not in there


def test_another_name_and_branch(hub: FakeHub, ready: Path) -> None:
    push_run(ready, target(repo_id=f"{OWNER}/better-name", revision="trial", private=True))
    assert (hub.commits[0]["repo"], hub.commits[0]["branch"]) == (f"{OWNER}/better-name", "trial")
    card = hub.files[f"{OWNER}/better-name"]["README.md"].decode()
    assert "# better-name\n" in card and "first-try" not in card.replace("--output_dir first-try", "")
    created = hub.created[f"{OWNER}/better-name"]
    assert created.get("private") is True or created.get("visibility") == "private"


def test_a_later_run_in_the_same_folder_is_not_taken_for_the_kept_one(
    hub: FakeHub, run: Path, base_folder: Path, waits: list[float]
) -> None:
    hub.faults.append(Fault("commit", 503, times=-1))
    with pytest.raises(OSError):
        push_run(run, target())
    hub.faults.clear()
    finished_run(run, base_folder, steps=99)
    push_run(run, target())
    assert b"trained for 99 steps" in hub.files[REPO]["README.md"]


def test_a_whole_model_goes_with_its_config(hub: FakeHub, run: Path, base_folder: Path) -> None:
    (run / "adapter").rename(run / "elsewhere")
    model = run / "model"
    for part in (AutoModelForCausalLM.from_pretrained(base_folder), tiny_tokenizer()):
        part.save_pretrained(model)
    push_run(run, target())
    assert hub.commits[0]["paths"] == EXPECTED - {"adapter_config.json", "adapter_model.safetensors"} | {
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }
    assert "_name_or_path" not in json.loads(hub.files[REPO]["config.json"])
