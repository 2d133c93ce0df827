"""Generators: prompts in, completions with per-token log-probs and policy versions out.

GeneratorExecutor   asyncio shell: submit, collect, update_weights, status     executor.py
  Batcher           slots, requests, stop rules, versions                      batcher.py
    Backend         the model: prefill, decode, move rows, load weights        native.py, fallback.py
      BlockCache    which blocks of keys and values a row holds                cache.py, blocks.py
    draw            one token per row from its seed                            draw.py
"""
