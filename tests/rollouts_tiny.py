"""A random two-layer Llama with 32 tokens and a chat template, and LoRA adapters for it."""

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 32
EOS = 1
CHAT = (
    "{% for m in messages %}{{ 't2 ' + m['content'] + ' t3 ' }}{% endfor %}{% if add_generation_prompt %}t4{% endif %}"
)


def save_model(folder: Path, *, tied: bool = False) -> Path:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,  # distributions far from uniform
        eos_token_id=EOS,
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    # As many published models have them: an engine must not let them shape its samples.
    model.generation_config = GenerationConfig(eos_token_id=[EOS, 0], repetition_penalty=1.9, top_k=3, do_sample=True)
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"t{index}": index for index in range(VOCABULARY)}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token=f"t{EOS}")
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return folder


def save_adapter(model_folder: Path, folder: Path, *, seed: int, scale: float = 0.1, **lora: object) -> Path:
    """An adapter with random B, as PEFT saves it."""
    options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **lora}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), LoraConfig(**options))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=scale)
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def trainer_logprobs(
    model_folder: Path, adapter: Path | None, sequences: Sequence[tuple], temperature: float = 1.0
) -> list[list[float]]:
    """What a trainer computes: Hugging Face and PEFT, one sequence at a time, no padding, no cache."""
    with torch.random.fork_rng():
        model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, str(adapter))
    model.eval()
    rows = []
    for prompt, completion in sequences:
        logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0] / temperature
        logprobs = logits.log_softmax(-1)
        rows.append([logprobs[len(prompt) + at - 1, token].item() for at, token in enumerate(completion)])
    return rows
