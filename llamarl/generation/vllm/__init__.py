"""vLLM as generator: a server in an environment of its own, fed with weights and asked with token ids.

    settings   which server          server     its process            client     its routes, and what they must answer
    transfer   weights over gloo     executor   all of it as a generator
    plugin/    the file that runs inside the server; nothing here imports vllm

Written for vLLM 0.32.
"""
