"""Services over HTTP: limits, tokens, deadlines, metrics and an orderly end (`http`), common batches (`batching`).

Nothing here knows what is served.
"""
