"""Detectors of hallucinations, all behind `Detector.score`. `method` says how to add one; each method has a file."""
