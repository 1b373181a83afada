"""`grpo-ext plan`: its arithmetic against TRL's own objects, and one wrong config after another."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trl.trainer.utils import RepeatSampler

from grpo_ext.plan.batch import COUNTS, Batch, batch_of, nearest, problems_in
from grpo_ext.plan.command import main
from grpo_ext.plan.planned import memory_size
from grpo_ext.plan.shape import find_shape
from grpo_ext.recipes.problems import TRAINED_ON

ROOT = Path(__file__).resolve().parents[2]
# Those of the recipe rlhf have fields of their own, see test_rlhf_words.py
YAMLS = [path for path in sorted((ROOT / "recipes").rglob("*.yaml")) if path.parent.name not in ("rlhf", "accelerate")]
FIELDS = {
    "per_device_train_batch_size": 8, "gradient_accumulation_steps": 4, "steps_per_generation": None,
    "generation_batch_size": None, "num_generations": 8, "num_iterations": 1, "train_size": 100, "dataset": "gsm8k",
    "num_train_epochs": 3.0, "max_steps": -1, "max_completion_length": 50, "beta": 0.0,
    "num_rounds": 1, "steps_per_round": None,
}  # fmt: skip
ADAPTERS = ["--use_vllm", "true", "--vllm_sync", "adapter"]
CARD = ["--device", "cuda", "--memory", "16GB"]
SMALL = ["--model", "small", "--device", "cpu", "--memory", "24GB"]


def batch(processes: int = 1, **fields: Any) -> Batch:
    return batch_of({**FIELDS, **fields}, processes)


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = main([*SMALL, *words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_numbers_by_hand() -> None:
    made = batch(gradient_accumulation_steps=4, num_iterations=2, steps_per_generation=8, beta=0.04)
    assert (made.generated, made.trained, made.steps_a_generation) == (64, 32, 4.0)
    # 100 prompts are 12 generations of 8, each 8 micro-batches twice: 192, by four 48
    assert (made.steps_an_epoch, made.steps) == (48, 144)
    assert made.tokens_a_generation == 3200 and made.tokens == 36 * 3200
    assert made.old_pass and made.reference_pass and not batch().old_pass
    assert batch(max_steps=10).steps == 10
    assert batch(num_rounds=2, steps_per_round=600).steps == 1200
    assert batch(processes=2, generation_batch_size=64).parts == 4


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -1])
def test_counts_below_one(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"`{name}` is {value}; it must be at least 1"):
        batch(**{name: value})


def test_every_data_set_has_a_size() -> None:
    sizes = {"gsm8k": 7473, "arithmetic": 2048, "math": 12_000, "gsm8k+math": 19_473}
    assert {name: problems_in(name) for name in TRAINED_ON} == sizes


@given(
    micro=st.integers(1, 8),
    accumulation=st.integers(1, 6),
    parts=st.integers(1, 6),
    iterations=st.integers(1, 3),
    group=st.integers(2, 8),
    problems=st.integers(1, 60),
)
def test_an_epoch_is_as_long_as_the_one_of_trl(
    micro: int, accumulation: int, parts: int, iterations: int, group: int, problems: int
) -> None:
    made = batch(
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        steps_per_generation=parts,
        num_iterations=iterations,
        num_generations=group,
        train_size=problems,
    )
    if not made.divides:
        return
    sampler = RepeatSampler(
        data_source=range(problems),
        mini_repeat_count=group,
        batch_size=made.generated // group,
        repeat_count=iterations * parts,
    )
    micro_steps = len(list(sampler)) // (micro * parts)
    assert made.steps_an_epoch == -(-micro_steps // accumulation)


@given(
    micro=st.integers(1, 40),
    accumulation=st.integers(1, 20),
    processes=st.integers(1, 4),
    group=st.integers(2, 20),
    size=st.integers(1, 20),
    chosen=st.sampled_from(["none", "parts", "size"]),
)
def test_nearest_numbers_divide_and_are_nearest(
    micro: int, accumulation: int, processes: int, group: int, size: int, chosen: str
) -> None:
    given_size = {"parts": {"steps_per_generation": size}, "size": {"generation_batch_size": micro * processes * size}}
    fields = {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        "num_generations": group,
        **given_size.get(chosen, {}),
    }
    made = batch(processes, **fields)
    if made.divides:
        return
    options = nearest(made, {**FIELDS, **fields})
    assert options
    for option in options:
        name, _, numbers = option.partition("=")
        before = made.parts if fields.get(name) is None else fields[name]
        for number in map(int, numbers.split(" or ")):
            assert batch(processes, **{**fields, name: number}).divides
            between = range(min(number, before) + 1, max(number, before))
            step = micro * processes if name == "generation_batch_size" else 1
            least = 2 if name == "num_generations" else 1
            for other in between:
                if other % step == 0 and other >= least:
                    assert not batch(processes, **{**fields, name: other}).divides


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_every_recipe_can_be_planned(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main([str(path), "--memory", "400GB", "--device", "cpu"])
    out = capsys.readouterr().out
    assert code == 0, out
    assert "An optimiser step has" in out
    assert "at most at once" in out or "No estimate of memory" in out


STOPS = {
    "batch that does not divide": (
        ["--per_device_train_batch_size", "6", "--gradient_accumulation_steps", "3", "--num_generations", "8"],
        r"generation of 18 completions does not divide into groups of 8\. Nearest that fit: num_generations=6 or 9; "
        r"gradient_accumulation_steps=4; per_device_train_batch_size=8\.",
    ),
    "explicit generation that is no multiple": (
        ["--generation_batch_size", "20", "--per_device_train_batch_size", "8"],
        r"`generation_batch_size` is 20; it must be a multiple of .* 16 or 24\.",
    ),
    "rank above the limit": (
        ["--lora_r", "1024", "--use_vllm", "true", "--vllm_sync", "adapter"],
        r"`lora_r` is 1024, and vLLM serves ranks up to 512; set lora_r=512",
    ),
    "no adapter to send": (
        ["--lora_r", "0", "--use_vllm", "true", "--vllm_sync", "adapter"],
        r"`lora_r` 0 trains all weights; set lora_r=16",
    ),
    "4-bit with TRL's own sync": (
        ["--load_in_4bit", "true", "--use_vllm", "true"],
        r"merges the adapter into 4-bit weights, which loses most of it; set vllm_sync='adapter'",
    ),
    "4-bit without an adapter": (["--load_in_4bit", "true", "--lora_r", "0"], r"`load_in_4bit` needs an adapter"),
    "beams with the correction": (
        ["--group_generation", "beam", "--use_vllm", "true", "--vllm_sync", "adapter"],
        r"'beam', whose beams are no samples, so `vllm_importance_sampling_correction` .*; set it to false",
    ),
    "fewer prompts than a generation": (
        ["--train_size", "3", "--per_device_train_batch_size", "32", "--gradient_accumulation_steps", "1"],
        r"takes 4 prompts and the dataset has 3, .* use 24 completions a generation or fewer",
    ),
    "longer than the engine's window": (
        ["--use_vllm", "true", "--vllm_max_model_length", "512", "--max_completion_length", "400"],
        r"make 600, and `vllm_max_model_length` is 512; use max_completion_length=312 or less",
    ),
    "what the config itself refuses": (["--kl_in", "reward"], r"`kl_in` is 'reward', but with `beta` 0"),
    "does not fit": (["--memory", "0.1GB"], r"do not fit into 0\.10 GB; the largest part is \w+"),
    "all weights through Unsloth": (
        ["--backend", "unsloth", "--lora_r", "0"],
        r"`lora_r` is 0, which trains all weights, but backend 'unsloth' is for adapters; set lora_r=16\.",
    ),
    "an option of Unsloth elsewhere": (
        ["--max_seq_length", "4096"],
        r"`max_seq_length` is 4096, an option of Unsloth alone; set backend=unsloth, or leave it out\.",
    ),
    "vLLM inside Unsloth on a CPU": (
        ["--backend", "unsloth", "--fast_inference", "true"],
        r"`fast_inference` needs a GPU, .* set use_vllm=true and vllm_sync=adapter\.",
    ),
    "vLLM inside Unsloth that is not used": (
        ["--backend", "unsloth", "--fast_inference", "true", *CARD],
        r"`fast_inference` starts a vLLM engine that is given the adapter; set use_vllm=true and vllm_sync=adapter",
    ),
    "trees through Unsloth": (
        ["--backend", "unsloth", "--scoring", "tree", *CARD],
        r"`scoring` is 'tree', but Unsloth's own forward pass shares prompts in its own way",
    ),
    "longer than Unsloth's window": (
        ["--backend", "unsloth", "--max_seq_length", "512", "--max_completion_length", "400"],
        r"make 600, and `max_seq_length` is 512; use max_completion_length=312 or less",
    ),
    "GGUF without Unsloth": (
        ["--save_format", "adapter", "gguf", *CARD],
        r"`save_format` 'gguf' is Unsloth's, on a GPU; save 'merged_16bit' and convert",
    ),
    "an adapter that is not there": (
        ["--save_format", "adapter", "--lora_r", "0"],
        r"`save_format` 'adapter' needs an adapter, and `lora_r` 0 trains all weights; use 'model'\.",
    ),
    "groups over processes in a search": (
        ["--processes", "2", "--group_generation", "beam", "--per_device_train_batch_size", "4",
         "--gradient_accumulation_steps", "1"],
        r"Each of 2 processes has 4 completions, not whole groups of 8, which a search and resampling need",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STOPS)
def test_what_stops_a_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, sentence = STOPS[name]
    try:
        code, plan = planned(capsys, *words)
    except ValueError as error:
        assert re.search(sentence, str(error))
        return
    found = [text for text in plan["stops"] if re.search(sentence, text)]
    assert code == 1 and len(found) == 1, plan["stops"]
    assert len(plan["stops"]) == 1, plan["stops"]


NOTES = {
    "small groups": (["--num_generations", "4"], r"Of groups of 4 completions, 34% have any spread.* gives 57%"),
    "groups of two": (["--num_generations", "2"], r"`scale_rewards` 'group' every advantage is the same number"),
    "truncated sampling": (
        ["--use_vllm", "true", "--vllm_sync", "adapter", "--top_p", "0.9"],
        r"top_p=0\.9 draws from a truncated distribution.* biased",
    ),
    "groups over processes": (
        ["--processes", "2", "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "1"],
        r"Each of 2 processes has 4 completions.* num_generations in \[2, 4\] keeps groups together",
    ),
    "16-bit weights": (
        ["--lora_r", "0", "--dtype", "bfloat16", "--learning_rate", "1e-6"],
        r"`lora_r` 0 trains bfloat16 weights, to which most updates of `learning_rate` 1e-06 are rounded away; set",
    ),
    "padded on a GPU": (["--device", "cuda", "--memory", "16GB"], r"padded unless scoring=tree is set"),
    "unknown model": (["--model", "nobody/nothing"], r"No estimate of memory\. The sizes of 'nobody/nothing'"),
}


@pytest.mark.parametrize("name", NOTES)
def test_what_is_to_be_looked_at(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, sentence = NOTES[name]
    code, plan = planned(capsys, *words)
    assert code == 0, plan["stops"]
    assert any(re.search(sentence, text) for text in plan["notes"]), plan["notes"]


def test_a_usual_config_has_nothing_to_say(capsys: pytest.CaptureFixture[str]) -> None:
    code, plan = planned(capsys, "--num_generations", "8")
    assert (code, plan["stops"], plan["notes"]) == (0, [], [])
    assert plan["peak"] < 24e9


def test_pad_token_and_window_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
              "vocab_size": 100, "max_position_embeddings": 256}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    for pad, told in (("<end>", True), ({"content": "<end>"}, True), ("<pad>", False), (None, False)):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": pad, "eos_token": "<end>"}))
        _, plan = planned(capsys, "--model", str(tmp_path), "--max_completion_length", "32")
        assert any("pads with its end token" in text for text in plan["notes"]) is told
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert find_shape(str(tmp_path)).pad_is_end is False
    code, plan = planned(capsys, "--model", str(tmp_path), "--max_completion_length", "100")
    assert code == 1 and "use max_completion_length=56 or less" in plan["stops"][0]
    del config["hidden_size"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="has no 'hidden_size'"):
        main(["--model", str(tmp_path)])


def test_sizes_of_memory() -> None:
    assert memory_size("16GB") == memory_size("16") == memory_size(" 16 gb ") == 16e9
    assert memory_size("15.5GiB") == 15.5 * 2**30 and memory_size("512MB") == 512e6
    for wrong in ("16TBs", "much", "1.2.3GB", ""):
        with pytest.raises(ValueError, match="write it as 16GB"):
            memory_size(wrong)


def test_file_flag_and_own_flag_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("num_generations: 4\nmax_completion_length: 64\n")
    main([str(file), *SMALL, "--max_completion_length", "32", "--prompt_tokens", "50", "--json"])
    lines = json.loads(capsys.readouterr().out)["batch"]
    assert any("x 4 (" in line for line in lines) and any("(32 each)" in line for line in lines)


@pytest.mark.parametrize(
    "path", [path for path in YAMLS if "backend: unsloth" in path.read_text()], ids=lambda p: p.stem
)
def test_the_estimate_in_the_header_of_a_recipe(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ((told, card),) = re.findall(r"# Memory: ([\d.]+) GB .* --memory (\w+) --device cuda", path.read_text())
    main([str(path), "--memory", card, "--device", "cuda", "--json"])
    plan = json.loads(capsys.readouterr().out)
    assert plan["stops"] == [] and plan["peak"] / 1e9 == pytest.approx(float(told), abs=0.05)


def test_weights_that_vllm_shares_are_counted_once(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--backend", "unsloth", *ADAPTERS, "--load_in_4bit", "true", *CARD]
    words += ["--vllm_gpu_memory_utilization", "0.5"]
    code, shared = planned(capsys, *words, "--fast_inference", "true")
    assert code == 0 and shared["notes"] == [
        "`vllm_importance_sampling_mode` 'sequence_mask' leaves out long completions first, whose product of ratios "
        "strays furthest; 'token_truncate' keeps them."
    ]
    _, beside = planned(capsys, *words)
    assert beside["memory"]["vLLM"] == 8e9
    assert shared["memory"]["vLLM"] + shared["memory"]["weights"] == pytest.approx(8e9)
