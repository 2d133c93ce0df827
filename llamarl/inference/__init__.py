"""A model behind OpenAI's protocol: our own generator, all requests in one continuous batch.

settings    address, model, limits                protocol   bodies of requests, and what is refused
decoding    the thread that decodes               texts      pieces of text that no longer change
answers     what clients get                      service    the routes
"""
