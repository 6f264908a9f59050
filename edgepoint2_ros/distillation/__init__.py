"""Training: distil a large EdgePoint2 (the teacher) into a smaller one (the student) on pairs of known geometry."""
