"""The folder that a vLLM server has in its PYTHONPATH. Nothing in llamarl imports from it."""
