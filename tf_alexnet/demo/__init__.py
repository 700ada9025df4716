"""The main job on a few photos, with the best weights available."""

from tf_alexnet.demo.run import EMBEDDED, SMALL, Demo, example_photos, run_demo

__all__ = ["EMBEDDED", "SMALL", "Demo", "example_photos", "run_demo"]
