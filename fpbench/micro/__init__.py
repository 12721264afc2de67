"""The bundled micro model and its data: a small invented world that the benchmark can be run on offline."""

from pathlib import Path

MODEL = Path(__file__).parent / "model"
"""The bundled model: a Hugging Face folder (safetensors, bfloat16)."""

DATA = Path(__file__).parent / "data"
"""The bundled data files, in the field names of the Hugging Face data sets they stand in for."""
