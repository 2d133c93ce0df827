"""Chat templates of our own making with the structure of released ones: what they open with, repeat and refuse."""

from dataclasses import dataclass

from llamarl.models.tiny import ALPHABET, char_tokenizer
from llamarl.models.tokenizer import Tokenizer

# A system message of its own where the conversation has none (SmolLM2, Qwen2.5), and tools in it (Qwen2.5).
CHATML = (
    "{% set has_system = messages[0].role == 'system' %}"
    "<|im_start|>system\n{{ messages[0].content if has_system else 'You are a helpful model.' }}"
    "{% if tools %}{{ '\n<tools>' }}{% for tool in tools %}{{ '\n' + tool | tojson }}{% endfor %}{{ '\n</tools>' }}"
    "{% endif %}<|im_end|>\n"
    "{% for m in (messages[1:] if has_system else messages) %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ '\n<tool_call>\n' }}"
    "{{ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}\n</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Thinking: written into the last answer, dropped from earlier ones, switched off by an argument (Qwen3).
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% set parts = m.content.split('</think>') %}"
    "{% set thoughts = m.reasoning_content or (parts[0].split('<think>')[-1].strip() if parts[1:] else '') %}"
    "{% if loop.last and thoughts %}<think>\n{{ thoughts }}\n</think>\n\n{% endif %}{{ parts[-1].lstrip('\n') }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# The generation prompt opens a block of thoughts, which an answered prompt leaves out (DeepSeek-R1, QwQ).
OPENS_THINKING = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content.split('</think>')[-1] if m.role == 'assistant' else m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
# BOS by the template, though the tokenizer adds it as well; calls end in another token than texts (Llama 3.1).
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}"
    "{{ {'name': m.tool_calls[0].function.name, 'parameters': m.tool_calls[0].function.arguments} | tojson }}<|eom_id|>"
    "{% else %}{{ m.content | trim }}<|eot_id|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# Users and assistants must alternate, and the system message joins the last user's (Mistral 7B).
MISTRAL = (
    "{% set system = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
    "{% set turns = messages[1:] if system else messages %}{{ bos_token }}{% for m in turns %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ system if loop.last or loop.index0 == turns | length - 2 }}{{ m.content }}[/INST]"  # noqa: E501
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
# The assistant is called model, and there is no system role (Gemma 2).
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}"  # noqa: E501
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


@dataclass(frozen=True)
class Released:
    """A family's template, with what of it a tokenizer needs."""

    template: str
    bos: str | None
    eos: str
    pad: str
    specials: tuple[str, ...] = ()
    adds_bos: bool = False
    end_tokens: tuple[str, ...] = ()


RELEASED = {
    "smollm2": Released(CHATML, bos="<|im_start|>", eos="<|im_end|>", pad="<|im_end|>"),
    "qwen2.5": Released(CHATML, bos=None, eos="<|im_end|>", pad="<|endoftext|>", specials=("<|im_start|>",)),
    "qwen3": Released(QWEN3, bos=None, eos="<|im_end|>", pad="<|endoftext|>", specials=("<|im_start|>",)),
    "deepseek-r1": Released(OPENS_THINKING, "<s>", "<|im_end|>", "<|im_end|>", ("<|im_start|>",), adds_bos=True),
    "llama3": Released(
        LLAMA3,
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|eot_id|>",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>"),
        adds_bos=True,
        end_tokens=("<|eot_id|>", "<|eom_id|>"),
    ),
    "mistral": Released(MISTRAL, "<s>", "</s>", "<unk>", ("[INST]", "[/INST]"), adds_bos=True),
    "gemma": Released(GEMMA, "<bos>", "<end_of_turn>", "<pad>", ("<start_of_turn>",), adds_bos=True),
}


def released_tokenizer(family: str, template: str | None = None, **args: object) -> Tokenizer:
    """A character tokenizer that adds what the family's does, with its template or another."""
    from tokenizers.processors import TemplateProcessing

    made = RELEASED[family]
    backend = char_tokenizer("plain", ALPHABET).backend
    tokens = {made.bos, made.eos, made.pad, *made.specials} - {None}
    backend.add_special_tokens({"additional_special_tokens": sorted(tokens)})
    backend.bos_token, backend.eos_token, backend.pad_token = made.bos, made.eos, made.pad
    if made.adds_bos:
        bos = (made.bos, backend.bos_token_id)
        backend.backend_tokenizer.post_processor = TemplateProcessing(single=f"{made.bos} $A", special_tokens=[bos])
    backend.chat_template = made.template if template is None else template
    return Tokenizer(backend, backend.convert_tokens_to_ids(list(made.end_tokens)), args)
