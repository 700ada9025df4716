"""The main job on a few photos, with whatever weights can be had."""

from tf_alexnet.demo.run import Demo, example_photos, run_demo

__all__ = ["Demo", "example_photos", "run_demo"]
