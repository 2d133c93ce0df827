"""A language model as a judge: the question, the server, the answer, and verdicts kept. No torch here."""
