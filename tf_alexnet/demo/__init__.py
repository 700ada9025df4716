"""The main job on a few photos, with whatever weights can be had."""

from tf_alexnet.demo.run import EMBEDDED, SMALL, Demo, example_photos, run_demo

__all__ = ["EMBEDDED", "SMALL", "Demo", "example_photos", "run_demo"]
