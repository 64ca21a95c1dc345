"""Products of activations with quantized matrices, of few rows with float32 matrices, and in 8-bit floats for training."""

from plamo2_kernels.quant.api import MOST_FFI_ROWS, Implementation, quantized_product, quantized_products
from plamo2_kernels.quant.few_rows import few_rows_product
from plamo2_kernels.quant.float8_product import FORWARD, GRADIENT, float8_product, float8_scale

__all__ = [
    "FORWARD",
    "GRADIENT",
    "MOST_FFI_ROWS",
    "Implementation",
    "few_rows_product",
    "float8_product",
    "float8_scale",
    "quantized_product",
    "quantized_products",
]
