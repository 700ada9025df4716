"""`python -m tf_alexnet`."""

from tf_alexnet.cli.main import run

run()
