"""prefixbank: thousands of P-Tuning v2 task prompts served from one frozen transformer.

Importing this package loads neither torch nor ray; import the room you need:
`prefixbank.kernels`, `prefixbank.model_store`, `prefixbank.serving`, `prefixbank.trainer`.
"""

__version__ = "0.1.0"
__all__ = ["__version__"]
