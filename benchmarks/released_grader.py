"""The released Multi-IF grader, one turn of `grading` after another. Runs in a Python that has what that code needs.

    PYTHON released_grader.py CHECKOUT REPLIES

REPLIES holds lines of {"response", "instruction_id_list", "kwargs"}. Each line of standard input asks for a turn, which
is answered by its seconds; after the first one the verdicts stand in REPLIES.verdicts. Nothing of llamarl is imported.
"""

import json
import logging
import sys
import time


def main(checkout: str, replies: str) -> None:
    sys.path.insert(0, checkout)
    import langdetect
    import metrics  # type: ignore[import-not-found]  # of the checkout

    logging.disable()
    langdetect.DetectorFactory.seed = 0
    with open(replies, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    for number, _ in enumerate(sys.stdin):
        started = time.perf_counter()
        graded = [(metrics.gen_acc_strict(row), metrics.gen_acc_loose(row)) for row in rows]
        seconds = time.perf_counter() - started
        if number == 0:
            with open(f"{replies}.verdicts", "w", encoding="utf-8") as file:
                for both in graded:
                    file.write(json.dumps([each["follow_instruction_list"] for each in both]) + "\n")
        print(seconds, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
