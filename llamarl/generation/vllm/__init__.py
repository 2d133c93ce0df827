"""vLLM as generator: a server in an environment of its own, fed with weights and asked with token ids.

    client     its routes, and what they must answer     executor   how it is started, paused and fed
    transfer   weights over gloo                         plugin/    the file that runs inside it

What it shares with other servers is in `generation.server`. Nothing here imports vllm. Written for vLLM 0.32.
"""
