"""Writes page/digits.bin, the page's data, from scikit-learn's copy of the digits.

    pip install scikit-learn && python digits.py

Each image takes 65 bytes: 8x8 pixels from 0 to 16 in row-major order, then the digit.
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

images, labels = load_digits(return_X_y=True)
rows = np.column_stack([images, labels]).astype(np.uint8)
(Path(__file__).with_name("page") / "digits.bin").write_bytes(rows.tobytes())
