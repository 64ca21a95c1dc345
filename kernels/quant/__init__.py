"""Products of activations with quantized matrices, and of few rows with float32 matrices."""

from plamo2_kernels.quant.api import MOST_FFI_ROWS, Implementation, quantized_product, quantized_products
from plamo2_kernels.quant.few_rows import few_rows_product

__all__ = ["MOST_FFI_ROWS", "Implementation", "few_rows_product", "quantized_product", "quantized_products"]
