"""What computes a network's blobs: TensorFlow, or OpenVINO where it is installed.

Each module has one function, ``network(table, arrays, blobs)``, which returns a function from a
preprocessed batch, float32 (N, S, S, 3), to a dict of blobs, float32, channels last.
"""
