"""Detectors of hallucinations, all behind `Detector.score`; `detector` holds what they share, each method has a file."""
