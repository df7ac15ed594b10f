from __future__ import annotations

import numpy as np

from rag_tuned_memory.store.values import unit


def test_unit_vectors_stay_bit_by_bit_the_same() -> None:
    vectors = np.random.default_rng(7).normal(size=(2000, 384)).astype(np.float32)
    once = unit(vectors)
    assert np.allclose(np.linalg.norm(once.astype(np.float64), axis=-1), 1, atol=1e-6)
    assert unit(once).tobytes() == once.tobytes()


def test_zeros_stay_and_others_get_length_one() -> None:
    vectors = np.array([[0, 0], [3, 4], [1.001, 0]], dtype=np.float32)
    assert np.allclose(unit(vectors), [[0, 0], [0.6, 0.8], [1, 0]])
