"""Short chat templates in the manner of seven families: for tiny checkpoints, and for base models that have none.

They are ours, written down to what reinforcement learning needs: roles, turn ends, the generation prompt. A released
model's own template always comes first; it travels with its tokenizer.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ChatStyle:
    """One family's chat template and the special tokens it speaks with."""

    template: str
    """Jinja, as Hugging Face chat templates are."""
    eos: str
    """The token that ends an assistant's turn."""
    bos: str | None = None
    """The token every text starts with, where the family has one."""
    specials: tuple[str, ...] = ()
    """Further tokens that must never be split."""


_PLAIN = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}"
    "{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% else %}{% set turns = messages %}{% set system = '' %}{% endif %}"
    "{% for m in turns %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.first else '') + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('this template knows system, user and assistant only') }}{% endif %}{% endfor %}"
)

_LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)

_CHATML = (
    "{% if tools %}{{ '<|im_start|>system\\nTools:' }}"
    "{% for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}{{ '<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% elif m['role'] == 'tool' %}{{ '[TOOL_RESULTS] ' + m['content'] + '[/TOOL_RESULTS]' }}"
    "{% elif m['role'] == 'system' %}{{ '[INST] ' + m['content'] + '\\n\\n' }}"
    "{% else %}{% if loop.first or loop.previtem['role'] != 'system' %}{{ '[INST] ' }}{% endif %}"
    "{{ m['content'] + '[/INST]' }}{% endif %}{% endfor %}"
)

_GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] not in ['user', 'assistant'] %}"
    "{{ raise_exception('this template knows user and assistant only') }}{% endif %}"
    "{% set role = 'model' if m['role'] == 'assistant' else 'user' %}"
    "{{ '<start_of_turn>' + role + '\\n' + m['content'] + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)

_PHI = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)

_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")

STYLES: dict[str, ChatStyle] = {
    "plain": ChatStyle(_PLAIN, eos="<eos>", specials=_ROLES),
    "llama2": ChatStyle(_LLAMA2, eos="</s>", bos="<s>"),
    "llama3": ChatStyle(
        _LLAMA3, eos="<|eot_id|>", bos="<|begin_of_text|>", specials=("<|start_header_id|>", "<|end_header_id|>")
    ),
    "chatml": ChatStyle(_CHATML, eos="<|im_end|>", specials=("<|im_start|>",)),
    "mistral": ChatStyle(
        _MISTRAL, eos="</s>", bos="<s>", specials=("[INST]", "[/INST]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")
    ),
    "gemma": ChatStyle(_GEMMA, eos="<end_of_turn>", bos="<bos>", specials=("<start_of_turn>",)),
    "phi": ChatStyle(_PHI, eos="<|end|>", specials=_ROLES),
}
"""The style of each family of models; `plain` is that of the shipped demo checkpoint."""
