"""SGLang as generator: a server in an environment of its own, fed with weights and asked with token ids.

    client     its routes, and what they must answer     executor   how it is started, paused and fed
    weights    the folder, names and digests

What it shares with other servers is in `generation.server`. Nothing here imports sglang. Written after the source of
SGLang 0.5.23, and tried against a fake of its protocol only: never on a real server.
"""
