"""Small students for scikit-learn's handwritten digits: a classifier, a detector, a segmenter; ``make demo`` runs all of it."""
