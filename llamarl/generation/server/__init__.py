"""Inference servers as generators, whatever their program: what vLLM and SGLang have in common.

    settings   which server            process     its process, which lifeline.py ends with ours
    client     requests                completions what an answer must hold to be a completion
    weights    names, digests          executor    all of it as a generator; a kind adds its protocol

Each kind is in a package of its own (`generation.vllm`, `generation.sglang`). Nothing here imports a server.
"""
